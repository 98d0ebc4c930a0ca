"""The benchmarks can be started, and those that judge judge rightly."""

import os
import re
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from clock import Clock
from commands import HANG, ROOT, assert_one_line_error, run, wait_until
from dataset_files import blocks, save_dataset, save_images
from PIL import Image
from runs import start
from samples import coffee, png, save_weights

from benchmarks import (
    accelerator,
    enlarging_speed,
    mean_weights,
    pictures,
    preparing_speed,
    scale,
    soak,
    training_speed,
)
from datasets import EvalDataset, ImageDataset, TrainDataset, find_file
from imaging.photo import Photo
from model import SRCNN
from preparing.pairs import patch_blocks
from runtime.device import Choice
from runtime.errors import UserError
from train import train_epoch
from training.precision import Autocast
from training.state import TrainingState

HOLDING = """
import sys
held = []
for size in sys.stdin:
    held.append(bytearray(int(size)))
    print("holds it", flush=True)
"""


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_help(path: Path) -> None:
    result = run(path.relative_to(ROOT), "--help")
    assert result.returncode == 0, result.stderr
    assert "usage: " in result.stdout


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["accelerator.py", "--device=tpu"], "'tpu'"),
        (["accelerator.py", "--batch=0"], "'0'"),
        (["enlarging_speed.py", "--scale=3", "--weights={missing}"], "{missing}"),
        (["enlarging_speed.py", "--images-dir={missing}"], "{missing}"),
        (["ideas.py", "--data-path={missing}"], "{missing}"),
        (["odd_pictures.py", "{file}"], "{file}"),
        (["pictures.py", "{missing}"], "{missing}"),
        (["preparing_speed.py", "--images-dir={missing}"], "{missing}"),
        (["scale.py", "--data-path={missing}"], "{missing}"),
        (["training_speed.py", "--data-path={missing}"], "{missing}"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_wrong_input_is_one_line(words: list[str], part: str, tmp_path: Path) -> None:
    names = {"missing": tmp_path / "missing", "file": tmp_path / "file"}
    names["file"].touch()
    script, *options = (word.format_map(names) for word in words)
    assert_one_line_error(run(f"benchmarks/{script}", *options), part.format_map(names))


@pytest.mark.parametrize("words", [["teacher.py", "--output-path={}/taught"], ["scale.py"]])
def test_sigterm_leaves_no_temporary_files(words: list[str], tmp_path: Path) -> None:
    script, *options = (word.format(tmp_path) for word in words)
    data, folder = tmp_path / "data", tmp_path / "temporary"
    for new in (data, folder):
        new.mkdir()
    save_dataset(data)
    picture = blocks(np.random.default_rng(1), 78, 81)
    save_images(data / "train/T91_x3_images.h5", [picture] * 4)
    process = start(
        ROOT / "benchmarks" / script, f"--data-path={data}", *options,
        env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    wait_until(lambda: list(folder.rglob("train")), process)
    process.terminate()
    _, errors = process.communicate(timeout=HANG)
    assert (process.returncode, errors) == (143, "")
    assert not list(folder.rglob("train"))
    assert not (tmp_path / "taught").exists()


@pytest.mark.parametrize(("size", "status"), [(0, 0), (10**6, 1)])
def test_the_soak_tells_flat_from_growing(
    size: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """In seconds that pass when the process that is watched has taken so many bytes more."""
    process = start("-c", HOLDING, stdin=subprocess.PIPE)

    def grow() -> None:
        print(size, file=process.stdin, flush=True)
        assert process.stdout.readline() == "holds it\n"

    grow()
    monkeypatch.setattr(soak, "time", Clock(*[grow] * 60))
    monkeypatch.setattr(sys, "argv", ["soak.py", str(process.pid), "--minutes=1"])
    try:
        assert soak.main() == status
    finally:
        process.kill()
        process.communicate()
    assert ("flat" in capsys.readouterr().out) == (status == 0)


def test_the_soak_of_nothing_is_an_error() -> None:
    process = start("-c", "pass")
    process.communicate()
    result = run("benchmarks/soak.py", str(process.pid))
    assert result.returncode == 2
    assert "error: no process" in result.stderr


def test_a_set_so_many_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of prepare.py's --sample, which is not named T91."""
    monkeypatch.setattr(scale, "BLOCK", 10)
    (tmp_path / "small").mkdir()
    small, large = save_dataset(tmp_path / "small"), tmp_path / "large"
    for path in small.glob("*/*.h5"):
        path.rename(path.with_name(path.name.replace("T91", "sample").replace("Set5", "sample")))
    scale.enlarge(small, large, times=3)
    for dataset, suffix, count in ((TrainDataset, "", 44), (ImageDataset, "_images", 6)):
        before, after = (
            dataset(find_file(folder, "train", 3, suffix)) for folder in (small, large)
        )
        assert len(after) == 3 * count
        for number in range(len(after)):
            assert all(map(torch.equal, after[number], before[number % count]))
    assert len(EvalDataset(find_file(large, "val", 3))) == 3


def test_an_accelerator_that_computes_in_fp16_takes_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their optimizer must be known to the precision, or each step counts as an overflow.

    In fp32 with a loss scale, as a CPU's autocast has no fp16 before torch 2.3.
    """
    half = Choice(Autocast(torch.device("cpu"), torch.float32, 32.0), "as on a V100 or a 910A")
    monkeypatch.setattr(accelerator, "choose_precision", lambda *_, **__: half)
    step = accelerator.make_step(torch.device("cpu"), 2, compiled=False)
    assert [step()[1] for _ in range(2)] == [True, True]
    with pytest.raises(RuntimeError, match="a loss scale waits"):  # before a capture begins
        accelerator.as_graph(torch.device("cpu"), 2)


def test_what_a_graph_computes_with_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph knows addresses alone: what lies there is freed where nothing else holds it."""

    class Step:
        def __call__(self) -> None:
            taken.append(None)

    taken: list[None] = []
    kept = weakref.WeakSet()

    def make_step(*_: object, **__: object) -> Step:
        kept.add(step := Step())
        return step

    monkeypatch.setattr(accelerator, "make_step", make_step)
    monkeypatch.setattr(accelerator, "module", lambda _: MagicMock())
    replay = accelerator.as_graph(torch.device("cpu"), 2)
    assert len(taken) == 3 + 1
    replay()
    assert len(kept) == 1


def test_a_step_of_a_real_epoch_is_timed_over_the_steps_taken(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which an epoch may have fewer: here one."""
    taken = []

    def counting(state: TrainingState, *rest: object) -> None:
        before = state.step
        train_epoch(state, *rest)
        taken.append(state.step - before)

    monkeypatch.setattr(training_speed, "train_epoch", counting)
    training_speed.real_epoch(dataset, "fp32", steps=2)
    assert sum(taken) == 2 * (training_speed.ROUNDS + 1)


def test_the_mean_of_weights(tmp_path: Path) -> None:
    names = "abc"
    models = [SRCNN(channels=(3, 2)) for _ in names]
    files = [save_weights(tmp_path / name, m) for name, m in zip(names, models, strict=True)]
    mean_weights.main([*map(str, files), f"--output={tmp_path / 'mean.pth'}"])
    mean = torch.load(tmp_path / "mean.pth", weights_only=True)
    assert mean.keys() == models[0].state_dict().keys()
    for name, value in mean.items():
        expected = sum(model.state_dict()[name] for model in models) / 3
        torch.testing.assert_close(value, expected)
    save_weights(files[2], SRCNN(channels=(2, 2)))
    with pytest.raises(UserError, match=f"{files[2]} is of another network than {files[0]}"):
        mean_weights.main([*map(str, files), f"--output={tmp_path / 'other.pth'}"])
    assert not (tmp_path / "other.pth").exists()


def test_curves_say_when_a_run_got_there(tmp_path: Path) -> None:
    for name, figures in (("timing.csv", "train_seconds\n60\n60\n60\n60\n"),
                          ("metrics.csv", "psnr\n33.0\n33.3\n33.4\n33.2\n")):  # fmt: skip
        (tmp_path / name).write_text(figures)
    picture = tmp_path / "curves.png"
    result = run("benchmarks/curves.py", f"fast={tmp_path}", f"--output={picture}")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "Set5 ×3, modelzoo protocol, PSNR in dB"
    assert lines[-1].split() == ["fast", "4", "4.0", "33.20", "33.40", "120", "s"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_operations_of_a_patch() -> None:
    """Forward, and twice that backward but for the first layer's input."""
    first, *others = (
        layer.weight.numel() for layer in SRCNN().children() if hasattr(layer, "weight")
    )
    pixels = training_speed.SIDE**2
    assert 2 * pixels * (2 * first + 3 * sum(others)) == training_speed.FLOP_PER_PATCH
    assert accelerator.STEPS_OF_500_EPOCHS == 341_500


def test_the_plain_loop_cuts_the_same_patches() -> None:
    image = np.random.default_rng(1).uniform(size=(61, 75))
    ours = patch_blocks(image, preparing_speed.SIZE, preparing_speed.STRIDE)
    np.testing.assert_array_equal(preparing_speed.plain_patches(image), np.concatenate([*ours]))


@pytest.mark.parametrize(
    ("data", "grown", "end"),
    [
        (png(coffee(9, 8)), 3, "enlarged"),
        (png(coffee(9, 8)), 2, "result of another size"),
        (png(coffee(9, 8)), None, "crashed"),
        (b"hello", 3, "refused"),
    ],
)
def test_what_comes_of_a_picture(
    monkeypatch: pytest.MonkeyPatch, data: bytes, grown: int | None, end: str
) -> None:
    def enlarge(image: Image.Image, *_: object, **__: object) -> Image.Image:
        return image.resize((9 * grown, 8 * grown))

    monkeypatch.setattr(pictures, "enlarge", enlarge)
    assert pictures.ending(data, "")[0] == end


def test_ratios_of_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """In seconds that pass while something is enlarged; the first round does not count."""
    clock = Clock()
    clock.perf_counter = clock.monotonic
    seconds = {"plain": 6.0, "onnxruntime": 3.0, "upscale.py, fp32": 1.5}
    first = dict.fromkeys(seconds, 99.0)

    def run(name: str, photo: Photo) -> None:
        assert photo.size == (333, 333)
        clock.sleep(first.pop(name, seconds[name]))

    runs = {name: partial(run, name) for name in seconds}
    monkeypatch.setattr(enlarging_speed, "time", clock)
    monkeypatch.setattr(enlarging_speed, "contenders", lambda *_: runs)
    enlarging_speed.compare_speed(Path(), 3, 2, rounds=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "333×333 → 999×999, 2 threads, 2 rounds"
    assert lines[-1].split() == ["upscale.py,", "fp32", "1.500", "1.500", "4.00", "2.00"]


def test_what_bf16_takes_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Where the network, which leaves out a border, makes the picture brighter."""

    def restore(brighter: float, lr: np.ndarray) -> np.ndarray:
        return lr[8:-8, 8:-8] + brighter

    made = {"fp32": SimpleNamespace(model=0.0), "bf16": SimpleNamespace(model=40.0)}
    monkeypatch.setattr(enlarging_speed, "Upscaler", lambda *words: made[words[-1]])
    monkeypatch.setattr(enlarging_speed, "restore", restore)
    coffee(60, 54).save(tmp_path / "a.png")
    enlarging_speed.compare_quality(Path(), 3, [tmp_path / "a.png"])
    found = re.search(r"bf16 (\S+) dB.*\nbf16 costs (\S+) dB", capsys.readouterr().out)
    assert float(found[1]) == -float(found[2]) < 0


@pytest.mark.parametrize(("files", "status"), [((3, 3), 0), ((3, 4), 1)])
def test_the_soak_counts_open_files(
    monkeypatch: pytest.MonkeyPatch, files: tuple[int, int], status: int
) -> None:
    seen = [soak.Use(100.0, count, 1) for count in files]
    monkeypatch.setattr(soak, "watch", lambda *_: seen)
    monkeypatch.setattr(sys, "argv", ["soak.py", "1"])
    assert soak.main() == status
