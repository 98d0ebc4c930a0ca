"""The folder of a run: who has it, what an earlier run left in it, what is written into it."""

import errno
import fcntl
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dataset_files import blocks, save_images
from samples import network, new_state, save_weights

from datasets import EvalDataset
from imaging.pictures import save_strip
from inference.weights import load_weights
from runtime.distributed import World
from runtime.errors import RunError, UserError
from training import checkpoint, results
from training.evaluation import Evaluator
from training.precision import Precision
from training.recipes import FAST, REFERENCE
from training.results import Results
from training.state import TrainingState

CPU = torch.device("cpu")


def rows(epoch: int, step: int) -> tuple[dict, dict]:
    metrics = {"epoch": epoch, "step": step, "lr": 1e-4, "loss": 0.5 / (epoch + 1),
               "psnr": 20.0 + epoch, "raw_psnr": None, "held_out_psnr": None,
               "skipped_steps": 0}  # fmt: skip
    timing = {"epoch": epoch, "train_seconds": 1.5, "each_step_time": 0.5, "images_per_second": 4.0}
    return metrics, timing


def add_epoch(made: Results, state: TrainingState, epoch: int) -> None:
    """Two steps, after which the biases tell which epoch it was."""
    with torch.no_grad():
        state.model.conv1.bias.fill_(float(epoch))
    state.step += 2
    metrics, timing = rows(epoch, state.step)
    state.end_epoch(metrics)
    made.add_epoch(state, metrics, timing)


def epoch_of(path: Path) -> float:
    return torch.load(path, weights_only=True)["conv1.bias"][0].item()


def test_weights_and_checkpoints_are_those_of_their_epoch(tmp_path: Path) -> None:
    """Though they are written while training goes on."""
    folder, state = tmp_path / "new" / "x3", new_state(REFERENCE, 8)
    made = Results(folder, {"seed": 1}, save_every=2)
    for epoch in range(4):
        add_epoch(made, state, epoch)
        with torch.no_grad():
            state.model.conv1.bias.fill_(99.0)
    made.wait()
    names = ("best", "epoch_0", "epoch_2", "epoch_3")
    assert sorted(path.stem for path in folder.glob("*.pth")) == sorted(names)
    assert [epoch_of(folder / f"{name}.pth") for name in names] == [3, 0, 2, 3]
    path, saved = checkpoint.load_newest(folder)
    assert path.name == "checkpoint_8.pt"
    assert saved["options"] == {"seed": 1}
    assert saved["training"]["weights"]["conv1.bias"][0] == 3
    assert [row["epoch"] for row in saved["recorder"]["metrics"]] == [0, 1, 2, 3]


def test_a_worse_epoch_leaves_the_best_weights(tmp_path: Path) -> None:
    """Of a run that goes on, too: its tables begin with the earlier rows."""
    state = new_state(REFERENCE, 6)
    made = Results(tmp_path, {}, save_every=9)
    add_epoch(made, state, 2)
    add_epoch(made, state, 1)
    made.wait()
    os.close(made.lock)
    assert epoch_of(tmp_path / "best.pth") == 2
    resumed = checkpoint.load_newest(tmp_path)[1]
    other = new_state(REFERENCE, 6)
    checkpoint.restore(resumed, {}, other)
    made = Results(tmp_path, {}, save_every=9, resumed=resumed)
    add_epoch(made, other, 0)
    made.wait()
    assert epoch_of(tmp_path / "best.pth") == 2
    assert sorted(path.name for path in tmp_path.glob("epoch*")) == ["epoch_0.pth"], "the last"
    for name in ("metrics.csv", "timing.csv"):
        lines = (tmp_path / name).read_text().splitlines()
        assert [line.split(",")[0] for line in lines] == ["epoch", "2", "1", "0"]
    assert not list(tmp_path.parent.glob(f"{tmp_path.name}.*"))


def test_the_rest_of_an_epoch_leaves_the_best_weights_where_it_is_worse(tmp_path: Path) -> None:
    """Of a run that was to end within an epoch, and goes on: the epoch is evaluated twice."""
    made, state = Results(tmp_path, {}), new_state(REFERENCE, 8)
    for psnr, bias in ((21.0, 1.0), (20.0, 2.0), (22.0, 3.0)):
        with torch.no_grad():
            state.model.conv1.bias.fill_(bias)
        state.step += 2
        metrics, timing = rows(0, state.step)
        metrics["psnr"] = psnr
        state.end_epoch(metrics)
        made.add_epoch(state, metrics, timing)
        made.wait()
        assert epoch_of(tmp_path / "epoch_0.pth") == bias
        assert epoch_of(tmp_path / "best.pth") == (1.0 if psnr < 22 else 3.0)


def test_a_run_that_goes_on_elsewhere_has_its_best_weights_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And none of another run, whose results are moved aside as by a run that starts anew."""
    state = new_state(REFERENCE, 6)
    made = Results(tmp_path / "one", {})
    add_epoch(made, state, 2)
    add_epoch(made, state, 1)
    made.wait()
    resumed = checkpoint.load_newest(tmp_path / "one")[1]
    (tmp_path / "two").mkdir()
    for name in ("best.pth", "checkpoint_1.pt", "metrics.csv"):
        (tmp_path / "two" / name).write_text("another run's")
    made = Results(tmp_path / "two", {}, resumed=resumed, elsewhere=True)
    assert epoch_of(tmp_path / "two/best.pth") == 2
    for name in ("metrics.csv", "timing.csv"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()
    (aside,) = tmp_path.glob("two.*")
    assert capsys.readouterr().out == f"earlier results are now in {aside}\n"
    for name in ("best.pth", "checkpoint_1.pt", "metrics.csv"):
        assert (aside / name).read_text() == "another run's"
    add_epoch(made, state, 0)
    made.wait()
    assert sorted(path.name for path in (tmp_path / "two").glob("*.pt")) == ["checkpoint_6.pt"]


def test_checkpoints_of_a_branch_that_is_left_make_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or the next saves would be older than these, and removed at once."""
    state = new_state(REFERENCE, 6)
    made = Results(tmp_path, {})
    for epoch in range(2):
        add_epoch(made, state, epoch)
    made.wait()
    early = checkpoint.load(tmp_path / "checkpoint_2.pt")
    add_epoch(made, state, 2)
    made.wait()
    os.close(made.lock)
    capsys.readouterr()
    state = new_state(REFERENCE, 6)
    checkpoint.restore(early, {}, state)
    made = Results(tmp_path, {}, resumed=early)
    assert checkpoint.load_newest(tmp_path) is None, "checkpoint_2.pt made room for the third"
    warnings = capsys.readouterr().err
    for name in ("checkpoint_4.pt", "checkpoint_6.pt"):
        assert (tmp_path / f"{name}.left").is_file()
    (tmp_path / "checkpoint_4.pt").touch()
    checkpoint.leave_behind(tmp_path, 2)
    assert (tmp_path / "checkpoint_4.pt.left").stat().st_size, "an earlier one is kept"
    assert (tmp_path / "checkpoint_4.pt.left1").is_file()
    for name in ("checkpoint_4.pt", "checkpoint_6.pt"):
        assert f"{name} is ahead of the run that goes on, and now {name}.left" in warnings
    state.step += 1
    made.save_checkpoint(state)
    assert checkpoint.load_newest(tmp_path)[1]["training"]["step"] == 3


def test_what_could_not_be_written_is_told_with_the_next_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, made = new_state(REFERENCE, 6), Results(tmp_path / "x3", {})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    add_epoch(made, state, 0)
    with pytest.raises(RunError, match=r"cannot write .*: No space left on device"):
        add_epoch(made, state, 1)
    assert not list((tmp_path / "x3").glob("*.pt*"))


def test_earlier_results_are_moved_aside_and_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "time", SimpleNamespace(strftime=lambda form: "20260102-030405"))
    folder = tmp_path / "x3"
    for number, name in enumerate(["best.pth", "checkpoint_1.pt", "metrics.csv"]):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(name)
        made = Results(folder, {})
        aside = tmp_path / f"x3.20260102-030405.{number}"
        assert (aside / name).read_text() == name
        assert capsys.readouterr().out == f"earlier results are now in {aside}\n"
        assert [path.name for path in folder.iterdir()] == [".lock"]
        made.save_checkpoint(new_state(REFERENCE, 6))
        os.close(made.lock)
        (folder / "checkpoint_0.pt").unlink()


def test_results_stay_on_the_disk_that_a_link_leads_to(tmp_path: Path) -> None:
    disk = tmp_path / "disk/x3"
    disk.mkdir(parents=True)
    (tmp_path / "x3").symlink_to(disk)
    (disk / "best.pth").write_text("earlier")
    made = Results(tmp_path / "x3", {})
    made.save_checkpoint(new_state(REFERENCE, 6))
    assert (tmp_path / "x3").is_symlink()
    (aside,) = disk.parent.glob("x3.*")
    assert (aside / "best.pth").read_text() == "earlier"
    assert (disk / "checkpoint_0.pt").is_file()


def test_without_tensorboard_earlier_results_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "best.pth").touch()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"^--tensorboard needs .*; pip install tensorboard"):
        Results(tmp_path, {}, tensorboard=True)
    assert (tmp_path / "best.pth").exists()


def test_the_stamp_of_what_is_moved_aside_tells_when(tmp_path: Path) -> None:
    (tmp_path / "x3").mkdir()
    (tmp_path / "x3/epoch_0.pth").touch()
    Results(tmp_path / "x3", {})
    (aside,) = tmp_path.glob("x3.*")
    assert re.fullmatch(r"x3\.20\d{6}-\d{6}\.0", aside.name)


def test_other_files_stay_and_what_a_killed_run_left_half_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [".0123456789abcdef.tmp", ".hidden", ".mine.tmp", "notes.txt"]
    for name in (*others, ".metrics.csv.0123456789abcdef.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".folder.0123456789abcdef.tmp").mkdir()
    Results(tmp_path, {})
    others += [".folder.0123456789abcdef.tmp", ".lock"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
    assert capsys.readouterr() == ("", "")


def locked(reason: int):
    def lockf(descriptor: int, operation: int) -> None:
        assert operation == fcntl.LOCK_EX | fcntl.LOCK_NB
        raise OSError(reason, os.strerror(reason))

    return lockf


@pytest.mark.parametrize("reason", [errno.EAGAIN, errno.EACCES])
def test_a_folder_that_another_run_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    (tmp_path / "best.pth").write_text("its own")
    monkeypatch.setattr(fcntl, "lockf", locked(reason))
    with pytest.raises(UserError, match=f"another run is writing to {tmp_path}; use another"):
        Results(tmp_path, {})
    assert (tmp_path / "best.pth").read_text() == "its own"


def test_a_folder_that_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "lockf", locked(errno.ENOLCK))
    made = Results(tmp_path, {})
    assert capsys.readouterr().err.startswith(f"warning: {tmp_path} cannot be locked")
    made.save_checkpoint(new_state(REFERENCE, 6))
    assert checkpoint.load_newest(tmp_path)[0] == tmp_path / "checkpoint_0.pt"
    assert (tmp_path / ".lock").stat().st_mode & 0o111 == 0, "no program"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=f"cannot write to {tmp_path}/file/x3: Not a directory"):
        Results(tmp_path / "file/x3", {})


def test_what_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the folder, which can: a lock of another user, or the folder around it."""
    (tmp_path / "x3/.lock").mkdir(parents=True)  # root may write all files, but no folder
    with pytest.raises(RunError, match=f"^cannot write to {tmp_path}/x3/.lock: Is a directory$"):
        Results(tmp_path / "x3", {})
    (tmp_path / "x3/.lock").rmdir()
    (tmp_path / "x3/best.pth").touch()

    def refused(path: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path), None, str(target))

    monkeypatch.setattr(Path, "rename", refused)
    why = "Permission denied; name another --outputs-dir"
    with pytest.raises(RunError, match=f"^cannot move earlier results from {tmp_path}/x3: {why}$"):
        Results(tmp_path / "x3", {})
    assert (tmp_path / "x3/best.pth").is_file()


def test_what_a_finished_run_says_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By best.pth, image by image, next to the bicubic enlargements."""
    rng = np.random.default_rng(3)
    save_images(tmp_path / "Val_x3.h5", [blocks(rng, 20 + i, 31) for i in range(2)])
    evaluator = Evaluator(EvalDataset(tmp_path / "Val_x3.h5"), [], World(CPU), Precision())
    folder, state = tmp_path / "line\nbreak", new_state(REFERENCE, 6)
    made = Results(folder, {})
    add_epoch(made, state, 0)
    made.wait()
    best = network()
    with torch.no_grad():
        best.conv3.weight *= 4  # beyond both ends of the range
        best.conv3.bias -= 1
    save_weights(folder / "best.pth", best)
    drawn, titles, as_it_is = [], [], []

    @contextmanager
    def evaluation() -> Iterator[None]:
        """In which apex O1 casts nothing."""
        as_it_is.append(True)
        yield
        as_it_is.clear()

    monkeypatch.setattr(evaluator.precision, "evaluation", evaluation)

    def strip(path: Path, name: str, *pictures: object, psnrs: tuple[float, float]) -> None:
        assert as_it_is
        drawn.append((name, *(picture.shape for picture in pictures), psnrs))
        assert (pictures[1].min(), pictures[1].max()) == (0, 255)
        save_strip(path, name, *pictures, psnrs=psnrs)

    monkeypatch.setattr(results, "save_strip", strip)
    draw = made.recorder.draw_curves
    monkeypatch.setattr(
        made.recorder, "draw_curves", lambda *words: (titles.append(words), draw(*words))[1]
    )
    closed = []
    made.recorder.events = SimpleNamespace(close=lambda: closed.append("what was left of them"))
    capsys.readouterr()
    made.finish(evaluator)
    assert closed == ["what was left of them"]
    model = load_weights(folder / "best.pth")
    psnrs = []
    for pair in evaluator.pairs:
        lr, hr = pair
        with torch.no_grad():
            outputs = (lr, model(lr).clamp(0, 1))
        psnrs.append([-10 * torch.log10((out - hr).square().mean()).item() for out in outputs])
    means = [sum(column) / 2 for column in zip(*psnrs, strict=True)]
    shown = str(folder).replace("\n", "\\n")
    assert capsys.readouterr().out.splitlines() == [
        "Val_x3, modelzoo protocol, PSNR in dB",
        "image           bicubic    SRCNN",
        *(f"picture{i}       {psnrs[i][0]:8.2f} {psnrs[i][1]:8.2f}" for i in range(2)),
        f"mean            {means[0]:7.2f}  {means[1]:7.2f}",
        f"weights: {shown}/best.pth",
        f"curve: {shown}/curve.png",
        f"pictures: {shown}/strip_*.png",
    ]
    assert sorted(path.name for path in folder.glob("*.png")) == [
        "curve.png", "strip_picture0.png", "strip_picture1.png"
    ]  # fmt: skip
    for i, (name, *shapes, figures) in enumerate(drawn):
        assert (name, shapes) == (f"picture{i}", 3 * [(20 + i, 31)])
        assert figures == pytest.approx(psnrs[i], abs=1e-3)
    assert titles == [(evaluator.bicubic_psnr, "Val_x3")]


def test_a_checkpoint_is_written_when_what_it_says_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed between them would go on behind an epoch whose weights are missing."""
    written: list[str | int] = []
    monkeypatch.setattr(results, "write_bytes", lambda path, _: written.append(path.name))
    monkeypatch.setattr(checkpoint, "save", lambda folder, step, packed: written.append(step))
    made = Results(tmp_path / "x3", {})
    add_epoch(made, new_state(REFERENCE, 8), 0)
    made.wait()
    assert written == ["metrics.csv", "timing.csv", "epoch_0.pth", "best.pth", 2]


def test_the_weights_that_are_left_are_the_averaged_ones(tmp_path: Path) -> None:
    made, state = Results(tmp_path / "x3", {}), new_state(replace(FAST, ema_share=0.5), 8)
    state.ema["conv1.bias"].fill_(7.0)
    add_epoch(made, state, 0)
    made.wait()
    assert [epoch_of(tmp_path / f"x3/{name}.pth") for name in ("best", "epoch_0")] == [7, 7]
