"""What ModelArts starts for the performance run, on one card or on several.

Usage: python modelarts_entry_perf.py [--data_url FOLDER] [--train_url FOLDER]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
import runtime  # noqa: F401 - ends here on a Python that is too old

# isort: split
from collections.abc import Sequence

from ascend.modelarts import run
from runtime.errors import run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Train by test/train_performance_1p.sh, 8p on several cards; return its exit status."""
    return run("performance", argv)


if __name__ == "__main__":
    sys.exit(run_main(main))
