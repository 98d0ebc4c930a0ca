"""Curves: what a run's metrics.csv holds, drawn for its folder, for the report, for comparisons."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

os.environ["MPLBACKEND"] = "agg"  # the user's, and the user's style, are for windows and papers

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator

from runtime.errors import UserError, first_line

COLOURS = ("#2f6fed", "#e0663b", "#2a9d6f", "#9b5de5")
GRID = "#8884"
matplotlib.rcdefaults()
Points = tuple[Sequence[float], Sequence[float]]


class Panel(NamedTuple):
    """One system of axes.

    Attributes:
        title: stands above it.
        curves: name → x and y of its points, which may be NaN.
        levels: name → y of a horizontal line.
        xlabel: names the x axis.
        ylabel: names the y axis.
        log: whether y is logarithmic.
    """

    title: str
    curves: Mapping[str, Points]
    levels: Mapping[str, float] = {}
    xlabel: str = "epoch"
    ylabel: str = ""
    log: bool = False


def draw(*panels: Panel, width: float = 5.6, height: float = 3.0) -> Figure:
    """Return a figure with the panels side by side, each so many inches wide and high."""
    figure = Figure(figsize=(width * len(panels), height), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel)
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    for (name, (x, y)), colour in zip(panel.curves.items(), cycle(COLOURS), strict=False):
        marker = "o" if len(x) == 1 else None
        label = name.replace("$", r"\$")  # no formula
        axes.plot(x, y, label=label, color=colour, linewidth=1.8, marker=marker)
    for (name, level), style in zip(panel.levels.items(), cycle(("--", ":")), strict=False):
        axes.axhline(level, label=name, color="grey", linestyle=style)
    if panel.log:
        axes.set_yscale("log")  # and name the ticks between powers of ten, too
        axes.yaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(3, 1)))
    whole = panel.xlabel == "epoch"
    axes.xaxis.set_major_locator(MaxNLocator(integer=whole, min_n_ticks=1))
    axes.tick_params(which="both", color=GRID)
    axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    if len(panel.curves) + len(panel.levels) > 1:
        axes.legend(frameon=False)


def draw_log(path: Path) -> dict[str, str]:
    """Draw the loss and, in a second picture, every column whose name contains "psnr".

    Columns without a value are left out.

    Args:
        path: CSV with a header; columns `epoch`, `loss`, … ; cells may be empty.

    Returns:
        Title → SVG element, without the title, and with text as text so that the page styles it.

    Raises:
        UserError: unreadable, no such columns, or a cell that is no number.
    """
    columns = _read(path)
    epochs = columns.pop("epoch")
    drawn = {
        name: (epochs, values)
        for name, values in columns.items()
        if not all(map(math.isnan, values))
    }
    psnr = {name: points for name, points in drawn.items() if "psnr" in name.lower()}
    loss = {name: points for name, points in drawn.items() if name not in psnr}
    panels = {"Loss": Panel("", loss, log=True), "PSNR in dB": Panel("", psnr)}
    return {title: _svg(panel, title) for title, panel in panels.items() if panel.curves}


def _svg(panel: Panel, salt: str) -> str:
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        buffer = io.StringIO()
        draw(panel).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _read(path: Path) -> dict[str, list[float]]:
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = [name for name in reader.fieldnames or () if name]
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a training log ({first_line(error)})") from None
    wanted = [name for name in names if name.lower() == "loss" or "psnr" in name.lower()]
    if "epoch" not in names or not wanted:
        raise UserError(
            f"{path} is no training log: it has the columns {', '.join(names) or '(none)'}; "
            f"expected epoch, and loss or psnr, as train.py's metrics.csv has"
        )
    if not rows:
        raise UserError(f"{path} has no epoch in it yet")
    return {name: [_number(path, row[name]) for row in rows] for name in ("epoch", *wanted)}


def _number(path: Path, cell: str | None) -> float:
    try:
        return float(cell) if cell else math.nan
    except ValueError:
        raise UserError(f"{path}: {cell!r} is no number; expected train.py's metrics.csv") from None
