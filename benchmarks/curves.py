"""Draw PSNR against minutes of training, several runs in one picture.

    python benchmarks/curves.py reference=outputs/x3 fast=outputs-fast/x3 --output curves.png

Reads the metrics.csv and timing.csv of each run's folder; evaluation time is not counted.
"""

import argparse
import csv
from itertools import accumulate
from pathlib import Path

from matplotlib.figure import Figure


def column(path: Path, name: str) -> list[float]:
    """Return one column of a CSV file."""
    with path.open(encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def main() -> None:
    """Draw the runs that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, required=True, help="PNG file")
    args = parser.parse_args()
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for run in args.runs:
        name, _, folder = run.partition("=")
        minutes = [s / 60 for s in accumulate(column(Path(folder, "timing.csv"), "train_seconds"))]
        axes.plot(minutes, column(Path(folder, "metrics.csv"), "psnr"), marker=".", label=name)
    axes.axhline(33.27, color="grey", linestyle=":", label="published, 500 epochs: 33.27")
    axes.axhline(30.92, color="grey", linestyle="--", label="bicubic: 30.92")
    axes.set(xlabel="minutes of training", ylabel="dB", title="Set5 ×3, modelzoo protocol")
    axes.set_ylim(bottom=29)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.output, dpi=110)


if __name__ == "__main__":
    main()
