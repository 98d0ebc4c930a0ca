"""The product's own command lines on the simulated card."""

import csv
from pathlib import Path

from commands import ROOT
from simulator import Result, Simulator

SHORT = ("--scale=3", "--batch-size=8", "--num-epochs=3", "--lr=1e-3")


def train(npu: Simulator, dataset: Path, out: Path, *options: str, **more: object) -> Result:
    command = [ROOT / "train.py", f"--data_url={dataset}", f"--train_url={out}"]
    return npu.fork(*command, *SHORT, *options, **more)


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))
