"""Damaged files of every kind: a result or a one-line error, never more, never half a file."""

import io
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from commands import HANG
from samples import encoded, noise, png

import evaluate
import prepare
import upscale
from datasets import EvalDataset, TrainDataset
from inference.weights import load_weights
from model import SRCNN
from runtime.errors import UserError
from training import checkpoint

SMALL = noise(24, 26)


def damaged(whole: bytes, count: int, seed: int) -> list[bytes]:
    """Return a third truncated copies, two thirds with bytes changed, more often near the start."""
    rng, copies = random.Random(seed), []
    for number in range(count):
        copy = bytearray(whole)
        if number % 3 == 0:
            copy = copy[: rng.randrange(len(copy))]
        for _ in range(rng.choice((1, 2, 8, 64)) if number % 3 and copy else 0):
            copy[rng.randrange(min(len(copy), rng.choice((100, 2500, 10**9))))] = rng.randrange(256)
        copies.append(bytes(copy))
    return copies


def too_slow(*_: object) -> None:
    raise AssertionError(f"took more than {HANG} s")


def endings(use: Callable[[], object]) -> bool:
    """Whether the input was used; it may end in a UserError of one line otherwise."""
    signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(HANG)
    try:
        use()
    except UserError as error:
        assert str(error)
        assert "\n" not in str(error)
        return False
    finally:
        signal.alarm(0)
    return True


def hdf5(kind: str, **options) -> bytes:
    values = np.random.default_rng(0).uniform(16, 235, (4, 12, 12)).astype("f4")
    file = io.BytesIO()
    with h5py.File(file, "w", **({"libver": ("v108", "latest")} if kind == "eval" else {})) as h5:
        for name in ("lr", "hr"):
            if kind == "train":
                h5.create_dataset(name, data=values, **options)
            for i in range(3 if kind == "eval" else 0):
                h5[f"{name}/{i}"] = values[i]
        h5.attrs["names"] = ["a", "b", "c"]
    return file.getvalue()


def read_patches(path: Path) -> None:
    dataset = TrainDataset(path)
    assert all(torch.isfinite(part).all() for part in dataset.read(0, len(dataset)))


def read_images(path: Path) -> None:
    dataset = EvalDataset(path)
    assert len(dataset.names) == len(dataset.pairs)


@pytest.mark.parametrize(
    ("whole", "read"),
    [
        (hdf5("train"), read_patches),
        (hdf5("train", chunks=(2, 12, 12), compression="gzip"), read_patches),
        (hdf5("eval"), read_images),
    ],
    ids=["patches", "compressed", "images"],
)
def test_150_damaged_hdf5_files(tmp_path: Path, whole: bytes, read: Callable) -> None:
    used = 0
    for copy in damaged(whole, 150, seed=1):
        (tmp_path / "bad.h5").write_bytes(copy)
        used += endings(lambda: read(tmp_path / "bad.h5"))
    assert 0 < used < 150


@pytest.mark.parametrize("shape", [(10**6, 10**6), (10**5, 10**5)])
def test_an_image_that_claims_more_than_the_file_holds(tmp_path: Path, shape: tuple) -> None:
    path = tmp_path / "bomb.h5"
    with h5py.File(path, "w") as file:
        for name in ("lr", "hr"):
            file.create_dataset(f"{name}/0", shape, "f4", chunks=(100, 100))[0, 0] = 1
    with pytest.raises(UserError, match="more values than the file holds"):
        EvalDataset(path)


@pytest.mark.parametrize("name", ["../../out", "a\nb", "", "x" * 250, "\x1b[2J"])
def test_names_that_lead_elsewhere_become_numbers(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(hdf5("eval"))
    with h5py.File(path, "a") as file:
        file.attrs["names"] = ["a", name, "c"]
    assert EvalDataset(path).names == ["0", "1", "2"]


@pytest.mark.parametrize("new_format", [True, False])
def test_150_damaged_weights_files(tmp_path: Path, new_format: bool) -> None:
    file, path, used = io.BytesIO(), tmp_path / "w.pth", 0
    state = SRCNN(channels=(4, 3)).state_dict()
    torch.save(state, file, _use_new_zipfile_serialization=new_format)
    for copy in damaged(file.getvalue(), 150, seed=2):
        path.write_bytes(copy)
        used += endings(lambda: load_weights(path)(torch.rand(1, 1, 8, 8)))
    assert 0 < used < 150


def test_60_damaged_checkpoints_are_all_noticed(tmp_path: Path) -> None:
    parts = {"options": {}, "training": {"w": torch.rand(50)}, "recorder": {}}
    path = checkpoint.save(tmp_path, 1, checkpoint.pack(parts))
    whole = path.read_bytes()
    state = checkpoint.load(path)
    for copy in damaged(whole, 60, seed=3):
        path.write_bytes(copy)
        if endings(lambda: checkpoint.load(path)):
            assert torch.equal(checkpoint.load(path)["training"]["w"], state["training"]["w"])


def test_weights_larger_than_their_file(tmp_path: Path) -> None:
    state = SRCNN().state_dict() | {
        "conv1.weight": torch.zeros(1).expand(10**6, 1, 9, 9),
        "conv1.bias": torch.zeros(1).expand(10**6),
        "conv2.weight": torch.zeros(1).expand(32, 10**6, 5, 5),
    }
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match="larger than what the file holds"):
        load_weights(tmp_path / "w.pth")


def bomb() -> bytes:
    """Return the head of a PNG file of 40,000×40,000 pixels."""
    data = bytearray(png(SMALL))
    data[16:24] = (40000).to_bytes(4, "big") * 2
    data[29:33] = __import__("zlib").crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def commands(folder: Path) -> dict[str, tuple[Callable, list[str], Path]]:
    out, images = folder / "out", folder / "images"
    eval_file = ["--images-dir", str(images), "--output-path", str(out / "e.h5"), "--eval"]
    patches = ["--images-dir", str(images), "--output-path", str(out / "t.h5"), "--patch-size=9"]
    measured = ["--images-dir", str(images), f"--json={out / 'r.json'}", "--device=cpu"]
    return {
        "prepare --eval": (prepare.main, [*eval_file, "--jobs=1"], out / "e.h5"),
        "prepare": (prepare.main, [*patches, "--jobs=1"], out / "t.h5"),
        "evaluate": (evaluate.main, measured, out / "r.json"),
        "upscale": (upscale.main, [str(images), "--output", str(out), "--device=cpu"], out),
    }


@pytest.mark.parametrize("command", ["prepare --eval", "prepare", "evaluate", "upscale"])
def test_45_damaged_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    main, words, result = commands(tmp_path)[command]
    monkeypatch.setattr(sys, "argv", ["command", *words])
    inputs = [(b"", "png"), (bomb(), "png"), (encoded(SMALL, "JPEG"), "png"), (b"text", "bmp")]
    for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP"):
        inputs += [(copy, kind.lower()) for copy in damaged(encoded(SMALL, kind), 9, seed=4)][:9]
    for data, suffix in inputs:
        path = tmp_path / "images" / f"picture.{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        used = endings(main)
        left = [p for p in (tmp_path / "out").glob("*") if p.is_file()]
        assert not any(p.name.startswith(".") for p in left), "half a file"
        assert bool(left) == used
        if result.suffix == ".h5" and used:
            h5py.File(result).close()
        for p in [*left, path]:
            os.unlink(p)  # noqa: PTH108
