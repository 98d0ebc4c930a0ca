"""Run train.py and end it by SIGKILL at its Nth import, or at its Nth operation on a result.

    python killed_at.py import N train.py --data_url=…
    python killed_at.py save N train.py --data_url=…

Such an operation is the opening of a temporary file, before anything is in it; its opening to be
flushed, when all is written; and its renaming.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

kind, left = sys.argv[1], int(sys.argv[2])
sys.argv = sys.argv[3:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))


def count(event: str, arguments: tuple) -> None:
    """Count down at the audit events that matter."""
    global left  # noqa: PLW0603 - an audit hook is a plain function
    if kind == "import":
        counts = event == "import"
    else:
        counts = event in ("open", "os.rename") and str(arguments[0]).endswith(".tmp")
    if counts:
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(count)
runpy.run_path(sys.argv[0], run_name="__main__")
