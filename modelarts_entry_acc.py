"""What ModelArts starts for the full training, on one card or on several.

Usage: python modelarts_entry_acc.py [--data_url FOLDER] [--train_url FOLDER]
"""

import sys

from runtime.errors import run_main
from runtime.modelarts import run

if __name__ == "__main__":
    sys.exit(run_main(lambda: run("full")))
