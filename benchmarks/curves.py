"""Draw PSNR against minutes of training, several runs in one picture, and say when each got there.

    python benchmarks/curves.py reference=outputs/x3 fast=outputs-fast/x3 --output curves.png

Reads the metrics.csv and timing.csv of each run's folder; evaluation time is not counted.
"""

import csv
import sys
from itertools import accumulate
from pathlib import Path

from report.curves import Panel, draw
from runtime.errors import UserError, run_main
from runtime.options import Parser

PUBLISHED = 33.27  # dB, the page of ID3003
TITLE = "Set5 ×3, modelzoo protocol"


def column(path: Path, name: str) -> list[float]:
    """Return one column of a CSV file."""
    if not path.is_file():
        raise UserError(f"no {path}; name runs as fast=outputs/x3, by the folder of their results")
    with path.open(encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def main() -> None:
    """Draw the runs that are named."""
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, required=True, help="PNG file")
    args = parser.parse_args()
    curves = {}
    print(f"{TITLE}, PSNR in dB")
    print(f"{'run':16}{'epochs':>7}{'minutes':>9}{'last':>8}{'best':>8}   {PUBLISHED} dB after")
    for run in args.runs:
        name, _, folder = run.partition("=")
        minutes = [s / 60 for s in accumulate(column(Path(folder, "timing.csv"), "train_seconds"))]
        psnr = column(Path(folder, "metrics.csv"), "psnr")
        curves[name] = minutes, psnr
        first = next((m for m, p in zip(minutes, psnr, strict=True) if p >= PUBLISHED), None)
        when = "never" if first is None else f"{60 * first:.0f} s"
        print(f"{name:16}{len(psnr):7}{minutes[-1]:9.1f}{psnr[-1]:8.2f}{max(psnr):8.2f}   {when}")
    levels = {"bicubic: 30.92": 30.92, f"published, 500 epochs: {PUBLISHED}": PUBLISHED}
    figure = draw(Panel(TITLE, curves, levels, "minutes of training", "dB"), width=7, height=3.6)
    figure.axes[0].set_ylim(bottom=29)
    figure.savefig(args.output, dpi=110)


if __name__ == "__main__":
    sys.exit(run_main(main))
