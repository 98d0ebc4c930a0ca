"""Weights files: every shape of the paper, other people's, and what is no weights file."""

import hashlib
import os
import re
from pathlib import Path

import pytest
import torch
from commands import ROOT

from inference.weights import load_weights, shipped_weights
from model import SRCNN
from runtime.errors import UserError


def save(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    "options",
    [{}, {"kernel_sizes": (9, 1, 5)}, {"channels": (128, 64)}, {"num_channels": 3}],
)
def test_the_shape_is_read_off_the_weights(tmp_path: Path, options: dict) -> None:
    model = SRCNN(**options)
    loaded = load_weights(save(tmp_path / "w.pth", model.state_dict()))
    x = torch.rand(1, options.get("num_channels", 1), 12, 14)
    assert torch.equal(loaded(x), model(x))
    assert not loaded.training


def test_parallel_and_half_precision_files_load(tmp_path: Path) -> None:
    state = {f"module.{name}": w.half() for name, w in SRCNN().state_dict().items()}
    model = load_weights(save(tmp_path / "w.pth", state))
    assert model.conv1.weight.dtype == torch.float32


def changed(**tensors: torch.Tensor | None) -> dict:
    state = SRCNN().state_dict() | {name.replace("_", "."): t for name, t in tensors.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


class Mischief:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


NO_WEIGHTS = {
    "missing": (changed(conv2_bias=None), r"missing: conv2\.bias; not known: none"),
    "extra": (changed(extra=torch.zeros(1)), "missing: none; not known: extra"),
    "shape": (changed(conv2_weight=torch.zeros(32, 60, 5, 5)), r"conv2\.weight has shape"),
    "bias": (changed(conv1_bias=torch.zeros(63)), r"conv1\.bias has shape \(63,\), expected"),
    "even": (changed(conv3_weight=torch.zeros(1, 32, 4, 4)), "kernels are square, odd"),
    "flat": (changed(conv3_weight=torch.zeros(800)), "not 4 sizes"),
    "whole": (changed(conv3_bias=torch.zeros(1, dtype=torch.long)), "no floating-point"),
    "nan": (changed(conv3_bias=torch.tensor([float("nan")])), "not finite"),
    "huge": (changed(conv3_bias=torch.tensor([1e300], dtype=torch.float64)), "not finite"),
    "float8": (changed(conv3_bias=torch.zeros(1).to(torch.float8_e4m3fn)), "no floating-point"),
    "meta": (changed(conv3_bias=torch.zeros(1, device="meta")), "no floating-point"),
    "list": ([1, 2], "holds a list; expected a state dict"),
    "code": ({"conv1.weight": Mischief()}, "cannot be read safely|can be read safely"),
}


@pytest.mark.parametrize("case", NO_WEIGHTS)
def test_what_is_no_weights_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = NO_WEIGHTS[case]
    path = save(tmp_path / "w.pth", content)
    with pytest.raises(UserError, match=message) as error:
        load_weights(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", bytes(1000)])
def test_files_of_other_kinds(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="no weights file"):
        load_weights(path)
    with pytest.raises(UserError, match="no weights file"):
        load_weights(tmp_path / "absent.pth")


def test_only_scales_with_weights_are_offered() -> None:
    with pytest.raises(UserError, match=r"no weights for x7 in .*--weights"):
        shipped_weights(7)


def test_the_shipped_weights_are_those_that_are_described() -> None:
    text = (ROOT / "weights/README.md").read_text()
    described = dict(re.findall(r"^\| `(\S+\.pth)` .*`([0-9a-f]{64})` \|$", text, re.MULTILINE))
    files = (ROOT / "weights").glob("*.pth")
    assert described == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
