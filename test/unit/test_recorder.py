"""What a run leaves behind for people: its files, its tables, its curves, its events."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from commands import ROOT
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from report import curves
from runtime.errors import UserError
from training.recorder import Recorder


def epoch(number: int) -> tuple[dict, dict]:
    """Return the rows of an epoch, each value another one."""
    metrics = {"epoch": number, "step": 10 * number, "lr": 1e-4 / number, "loss": 0.5 / number}
    metrics |= {"psnr": 30.0 + number, "raw_psnr": 29.0 + number, "held_out_psnr": ""}
    timing = {"epoch": number, "train_seconds": 2.5 * number, "each_step_time": 0.25}
    return metrics | {"skipped_steps": number - 1}, timing | {"images_per_second": 64.0 * number}


METRICS = """epoch,step,lr,loss,psnr,raw_psnr,held_out_psnr,skipped_steps
1,10,0.0001,0.5,31.0,30.0,,0
2,20,5e-05,0.25,32.0,31.0,,1
"""
TIMING = """epoch,train_seconds,each_step_time,images_per_second
1,2.5,0.25,64.0
2,5.0,0.25,128.0
"""


def test_the_tables_hold_every_epoch_of_an_interrupted_run_too(tmp_path: Path) -> None:
    first, second = Recorder(tmp_path, False), Recorder(tmp_path, False)
    tables = first.add(*epoch(1))
    assert tables["metrics.csv"].decode() == "".join(METRICS.splitlines(keepends=True)[:2])
    state = first.state_dict()
    second.load_state_dict(state)
    tables = second.add(*epoch(2))
    assert {name: table.decode() for name, table in tables.items()} == {
        "metrics.csv": METRICS,
        "timing.csv": TIMING,
    }
    assert state == first.state_dict() == {"metrics": [epoch(1)[0]], "timing": [epoch(1)[1]]}
    first.close()  # there are no events
    assert list(tmp_path.iterdir()) == []


def test_arguments_and_environment_are_described(tmp_path: Path) -> None:
    args = {"data_path": Path("set/three"), "scale": 3, "lr": None}
    Recorder(tmp_path, False).describe(args, device="npu:1", world_size=2)
    text = (tmp_path / "args.json").read_text()
    assert text == '{\n  "data_path": "set/three",\n  "scale": 3,\n  "lr": null\n}\n'
    text = (tmp_path / "environment.json").read_text()
    assert text.startswith('{\n  "device": "npu:1",\n')
    assert text.endswith("}\n")
    assert json.loads(text) == {
        "device": "npu:1",
        "world_size": 2,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "platform": platform.platform(),
    }


def test_the_curves_are_those_of_the_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = [], curves.draw
    monkeypatch.setattr(curves, "draw", lambda *panels: drawn.append(draw(*panels)) or drawn[-1])
    recorder = Recorder(tmp_path, False)
    for number in (1, 2, 3):
        recorder.add(*epoch(number))
    path = recorder.draw_curves(30.5, "Set5")
    assert [each.name for each in tmp_path.iterdir()] == ["curve.png"]
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (1344, 360))
    loss, psnr = drawn[0].axes
    assert (loss.get_title(), loss.get_yscale()) == ("Training loss", "log")
    assert (psnr.get_title(), psnr.get_yscale()) == ("Set5, modelzoo protocol", "linear")
    assert (loss.get_ylabel(), psnr.get_ylabel()) == ("mean squared error", "dB")
    assert [line.get_label() for line in (*loss.lines, *psnr.lines)] == ["loss", "SRCNN", "bicubic"]
    assert loss.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.25], [3, 0.5 / 3]]
    assert psnr.lines[0].get_xydata().tolist() == [[1, 31], [2, 32], [3, 33]]
    assert set(psnr.lines[1].get_ydata()) == {30.5}


def test_tensorboard_events_go_by_the_step(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, True)
    for number in (1, 2):
        recorder.add(*epoch(number))
    recorder.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    names = ("loss", "psnr", "lr", "images_per_second")
    assert set(events.Tags()["scalars"]) == set(names)
    for name in names:
        seen = [(event.step, event.value) for event in events.Scalars(name)]
        rows = [metrics | timing for metrics, timing in map(epoch, (1, 2))]
        assert seen == [(row["step"], pytest.approx(row[name])) for row in rows]


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        UserError, match=r"--tensorboard needs .*torch.utils.tensorboard.*; pip install t"
    ):
        Recorder(tmp_path, True)


DRAW = """
import io
from report.curves import Panel, draw
draw(Panel("a_title", {"loss": ([1, 2], [3, 4])})).savefig(io.BytesIO(), format="png")
"""


@pytest.mark.parametrize("backend", ["", "no_such"])
def test_what_the_user_has_set_for_own_figures_does_not_count(tmp_path: Path, backend: str) -> None:
    """LaTeX may be missing, and so may the backend; a run would end by them after its training."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    settings = {"MATPLOTLIBRC": str(tmp_path), "PATH": "", "MPLBACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", DRAW], env=os.environ | settings, cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
