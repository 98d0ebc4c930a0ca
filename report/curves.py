"""Training curves: a run's metrics.csv as SVG."""

import csv
import io
import math
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator

from runtime.errors import UserError

COLOURS = ("#2f6fed", "#e0663b", "#2a9d6f", "#9b5de5")
GRID = "#8884"


def draw_curves(path: Path) -> dict[str, str]:
    """Draw the loss and, in a second picture, every column whose name contains "psnr".

    Args:
        path: CSV with a header; columns `epoch`, `loss`, … ; cells may be empty.

    Returns:
        Title → SVG element, with text as text so that the page styles it.

    Raises:
        UserError: unreadable, no such columns, or a cell that is no number.
    """
    columns = _read(path)
    psnr = {name: values for name, values in columns.items() if "psnr" in name.lower()}
    loss = {name: values for name, values in columns.items() if name.lower() == "loss"}
    pictures = {"Loss": (loss, "log"), "PSNR in dB": (psnr, "linear")}
    return {
        title: _draw(columns["epoch"], series, scale, title)
        for title, (series, scale) in pictures.items()
        if series
    }


def _read(path: Path) -> dict[str, list[float]]:
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a training log ({error})") from None
    names = [name for name in (rows[0] if rows else ()) if name]
    wanted = [name for name in names if name.lower() == "loss" or "psnr" in name.lower()]
    if "epoch" not in names or not wanted:
        raise UserError(
            f"{path} is no training log: it has the columns {', '.join(names) or '(none)'}; "
            f"expected epoch, and loss or psnr, as train.py's metrics.csv has"
        )
    return {name: [_number(path, row[name]) for row in rows] for name in ("epoch", *wanted)}


def _number(path: Path, cell: str | None) -> float:
    try:
        return float(cell) if cell else math.nan
    except ValueError:
        raise UserError(f"{path}: {cell!r} is no number; expected train.py's metrics.csv") from None


def _draw(epochs: list[float], series: dict[str, list[float]], scale: str, title: str) -> str:
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure = Figure(figsize=(5.6, 3.0), layout="constrained")
        axes = figure.subplots()
        marker = "o" if len(epochs) == 1 else None
        for (name, values), colour in zip(series.items(), COLOURS * len(series), strict=False):
            axes.plot(epochs, values, label=name, color=colour, linewidth=1.8, marker=marker)
        axes.set_yscale(scale)
        if scale == "log":  # name the ticks between powers of ten too
            axes.yaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(3, 1)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(which="both", color=GRID)
        axes.set_xlabel("epoch")
        axes.grid(color=GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GRID)
        if len(series) > 1:
            axes.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
