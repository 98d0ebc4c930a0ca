"""What ModelArts starts for the performance run, on one card or on several.

Usage: python modelarts_entry_perf.py [--data_url FOLDER] [--train_url FOLDER]
"""

import sys

from ascend.modelarts import run
from runtime.errors import run_main

if __name__ == "__main__":
    sys.exit(run_main(lambda: run("performance")))
