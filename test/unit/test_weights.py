"""Weights files: every shape of the paper, other people's, and what is no weights file."""

import hashlib
import os
import re
import sys
from itertools import permutations
from pathlib import Path

import pytest
import torch
from commands import ROOT
from safetensors.torch import save_file
from samples import Mischief

from inference.weights import load_weights, shipped_weights
from model import SRCNN
from runtime.errors import UserError
from runtime.files import load_tensors


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


PLAIN = SRCNN(kernel_sizes=(9, 1, 5)).state_dict()


def renamed(*names: str) -> dict:
    """Return the state dict with other names for the three layers."""
    return {
        f"{name}.{kind}": PLAIN[f"conv{i}.{kind}"]
        for i, name in enumerate(names, start=1) for kind in ("weight", "bias")
    }  # fmt: skip


OTHERS = {
    "parallel": {f"module.{name}": w for name, w in PLAIN.items()},
    "compiled": {f"_orig_mod.{name}": w for name, w in PLAIN.items()},
    "compiled, parallel": {f"_orig_mod.module.{name}": w for name, w in PLAIN.items()},
    "sequential": renamed("0", "2", "4"),
    "layers": renamed("layers.0", "layers.2", "layers.4"),
    "other names": renamed("features.0", "map.0", "reconstruction"),
    "sorted by name": dict(sorted(renamed("head", "body", "end").items())),
    "parameters": {name: torch.nn.Parameter(w) for name, w in PLAIN.items()},
    "state_dict": {"epoch": 5, "best_psnr": 30.0, "state_dict": PLAIN},
    "model": {"model": PLAIN},
    "model_state_dict": {"model_state_dict": PLAIN, "optimizer_state_dict": {"state": {}}},
    "params": {"params": PLAIN},
    "average": {"params": renamed("no"), "params_ema": PLAIN},
    "lightning": {"state_dict": {f"model.{name}": w for name, w in PLAIN.items()}},
    "twice": {"model": {"state_dict": PLAIN}},
}


@pytest.mark.parametrize("case", OTHERS)
def test_files_of_other_code_are_the_same_network(tmp_path: Path, case: str) -> None:
    loaded = load_weights(save(tmp_path / "w.pth", OTHERS[case])).state_dict()
    assert list(loaded) == list(PLAIN)
    assert all(torch.equal(loaded[name], weight) for name, weight in PLAIN.items())


def test_layers_in_any_order_are_put_in_that_of_their_shapes(tmp_path: Path) -> None:
    for names in permutations(("conv1", "conv2", "conv3")):
        shuffled = {key: w for name in names for key, w in PLAIN.items() if key.startswith(name)}
        loaded = load_weights(save(tmp_path / "w.pth", shuffled)).state_dict()
        assert all(torch.equal(loaded[name], weight) for name, weight in PLAIN.items())


def test_safetensors(tmp_path: Path) -> None:
    for path in (tmp_path / "W.SAFETENSORS", tmp_path / "w.safetensors"):
        save_file(PLAIN, path)
        loaded = load_weights(path).state_dict()
        assert all(torch.equal(loaded[name], weight) for name, weight in PLAIN.items())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"w\.safetensors is no weights file that can be read"):
        load_weights(path)


def test_weights_for_which_memory_is_short_are_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 3.1 GiB")

    path = save(tmp_path / "w.pth", PLAIN)
    monkeypatch.setattr("torch.load", load)
    with pytest.raises(MemoryError):
        load_weights(path)


def test_a_dict_that_holds_itself_is_no_state_dict(tmp_path: Path) -> None:
    endless: dict = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth is no SRCNN"):
        load_weights(tmp_path / "w.pth")


def test_a_pipe_is_told_as_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth is a pipe; save it to a file first"):
        load_weights(tmp_path / "w.pth")


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "w.safetensors").touch()
    with pytest.raises(UserError, match="not installed; pip install safetensors"):
        load_weights(tmp_path / "w.safetensors")


def changed(**tensors: torch.Tensor | None) -> dict:
    state = SRCNN().state_dict() | {name.replace("_", "."): t for name, t in tensors.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


FLOAT8 = getattr(torch, "float8_e8m0fnu", torch.complex64)  # before torch 2.7, none can be saved
NO_WEIGHTS = {
    "missing": (
        changed(conv2_bias=None),
        r"found conv1\.weight 64×1×9×9, .*, conv2\.weight 32×64×5×5, conv3\.w",
    ),
    "extra": (changed(extra=torch.zeros(1)), r"conv3\.bias 1, extra 1$"),
    "shape": (changed(conv2_weight=torch.zeros(32, 60, 5, 5)), r"conv2\.weight 32×60×5×5"),
    "bias": (changed(conv1_bias=torch.zeros(63)), r"conv1\.bias has shape \(63,\), expected"),
    "even": (changed(conv3_weight=torch.zeros(1, 32, 4, 4)), "kernels are square, odd"),
    "oblong": (changed(conv2_weight=torch.zeros(32, 64, 5, 3)), "kernels are square, odd"),
    "no maps": (
        changed(
            conv1_weight=torch.zeros(0, 1, 9, 9),
            conv1_bias=torch.zeros(0),
            conv2_weight=torch.zeros(32, 0, 5, 5),
        ),
        r"conv1\.weight has shape \(0, 1, 9, 9\)",
    ),
    "flat": (changed(conv3_weight=torch.zeros(800)), r"no SRCNN; .*conv3\.weight 800"),
    "nested": ({"state_dict": {"a": 1, "b": [2]}}, r"no SRCNN; .* found a \(int\), b \(list\)"),
    "empty": ({}, "found nothing"),
    "many": ({f"a{i}": torch.zeros(i) for i in range(20)}, "a7 7 and 12 more"),
    "whole": (changed(conv3_bias=torch.zeros(1, dtype=torch.long)), "no floating-point"),
    "nan": (changed(conv3_bias=torch.tensor([float("nan")])), "not finite"),
    "huge": (changed(conv3_bias=torch.tensor([1e300], dtype=torch.float64)), "not finite"),
    "float8": (changed(conv3_bias=torch.zeros(1).to(FLOAT8)), "no floating-point"),
    "meta": (changed(conv3_bias=torch.zeros(1, device="meta")), "no floating-point"),
    "list": ([1, 2], "holds a list; expected a state dict"),
    "code": (
        {"conv1.weight": Mischief(Path("executed"))},
        "cannot be read safely|can be read safely",
    ),
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


@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_that_is_cut_short_is_called_that(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save(SRCNN().state_dict(), path, _use_new_zipfile_serialization=new_format)
    whole = path.read_bytes()
    # Of the old format, some releases of torch say no more than that the bytes are wrong.
    for length in (0, 4, 100, 10_000, len(whole) // 2, len(whole) - 1) if new_format else (0, 100):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError) as error:
            load_weights(path)
        assert str(error.value) == (
            f"{path} is no whole weights file: it is damaged or cut short; copy it again"
        )


@pytest.mark.parametrize("content", [b"hello", bytes(1000)])
def test_files_of_other_kinds(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="no weights file"):
        load_weights(path)
    with pytest.raises(UserError, match="no weights file"):
        load_weights(tmp_path / "absent.pth")


def test_no_code_is_run_whatever_pytorch_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(ValueError, match="it holds more than tensors"):
        load_tensors(save(tmp_path / "w.pth", Mischief(tmp_path / "executed")))
    assert not (tmp_path / "executed").exists()


def test_weights_that_were_saved_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.serialization.location_tag", lambda _: "cuda:0")
    path = save(tmp_path / "w.pth", torch.ones(3))
    assert load_tensors(path).device.type == "cpu"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("\nwhy\nand more"), "why"),
        (OSError("x" * 999), "x" * 200),
        (EOFError(), "EOFError"),
    ],
)
def test_one_line_says_why_a_file_is_none(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(ValueError, match=f"^{reason}$"):
        load_tensors("w.pth")


def test_only_scales_with_weights_are_offered() -> None:
    with pytest.raises(UserError, match=r"no weights for x7 in .* are: x2, x3, x4\).*--weights"):
        shipped_weights(7)


def test_the_shipped_weights_are_those_that_are_described() -> None:
    text = (ROOT / "weights/README.md").read_text()
    described = dict(re.findall(r"^\| `(\S+\.pth)` .*`([0-9a-f]{64})` \|$", text, re.MULTILINE))
    files = (ROOT / "weights").glob("*.pth")
    assert described == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_checkpoint_is_told_as_such(tmp_path: Path) -> None:
    state = {"options": {}, "training": {"step": 5}, "recorder": {}}
    torch.save(state, tmp_path / "checkpoint_5.pt")
    with pytest.raises(UserError) as error:
        load_weights(tmp_path / "checkpoint_5.pt")
    assert str(error.value) == (
        f"{tmp_path}/checkpoint_5.pt is the state of a run; its weights are in best.pth beside it"
    )
