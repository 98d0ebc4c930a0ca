"""What a run leaves behind for people: arguments, environment, metrics, curves."""

import csv
import io
import json
import platform
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from runtime.errors import UserError
from runtime.files import whole_file, write_text

METRICS = ("epoch", "step", "lr", "loss", "psnr", "raw_psnr", "held_out_psnr", "skipped_steps")
TIMING = ("epoch", "train_seconds", "each_step_time", "images_per_second")


class Recorder:
    """Keeps metrics.csv, which a rerun reproduces, timing.csv, which it does not, and the rest.

    Args:
        folder: the run's output folder, exists.
        tensorboard: write TensorBoard events, too.

    Raises:
        UserError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool) -> None:
        self.folder = folder
        self.metrics: list[dict[str, Any]] = []
        self.timing: list[dict[str, Any]] = []
        self.events = summary_writer()(str(folder)) if tensorboard else None

    def describe(self, args: dict[str, Any], **environment: Any) -> None:
        """Write args.json and environment.json."""
        versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "h5py": h5py.__version__,
            "platform": platform.platform(),
        }
        write_text(self.folder / "args.json", json.dumps(args, indent=2, default=str) + "\n")
        environment = {**environment, **versions}
        write_text(self.folder / "environment.json", json.dumps(environment, indent=2) + "\n")

    def add(self, metrics: dict[str, Any], timing: dict[str, Any]) -> dict[str, bytes]:
        """Add an epoch; return the tables."""
        self.metrics.append(metrics)
        self.timing.append(timing)
        if self.events:
            for name in ("loss", "psnr", "lr"):
                self.events.add_scalar(name, metrics[name], metrics["step"])
            self.events.add_scalar(
                "images_per_second", timing["images_per_second"], metrics["step"]
            )
        return self.tables()

    def tables(self) -> dict[str, bytes]:
        """Return the files of the epochs so far, by their names."""
        return {
            "metrics.csv": _table(METRICS, self.metrics),
            "timing.csv": _table(TIMING, self.timing),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, for the checkpoint."""
        return {"metrics": self.metrics, "timing": self.timing}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the rows of the interrupted run."""
        self.metrics, self.timing = list(state["metrics"]), list(state["timing"])

    def draw_curves(self, bicubic_psnr: float, evaluation_set: str) -> Path:
        """Draw loss and PSNR against epochs as curve.png and return its path."""
        from report.curves import Panel, draw  # noqa: PLC0415 - a second to import, needed once

        def curve(name: str) -> tuple[list[float], list[float]]:
            return [row["epoch"] for row in self.metrics], [row[name] for row in self.metrics]

        figure = draw(
            Panel("Training loss", {"loss": curve("loss")}, ylabel="mean squared error", log=True),
            Panel(
                f"{evaluation_set}, modelzoo protocol",
                {"SRCNN": curve("psnr")},
                {"bicubic": bicubic_psnr},
                ylabel="dB",
            ),
        )
        path = self.folder / "curve.png"
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
        return path

    def close(self) -> None:
        """Flush the events."""
        if self.events:
            self.events.close()


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def summary_writer() -> Any:
    """Return TensorBoard's writer, a class, or raise UserError."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  optional, and slow
    except ImportError as error:
        raise UserError(
            f"--tensorboard needs TensorBoard ({error}); pip install tensorboard"
        ) from None
    return SummaryWriter
