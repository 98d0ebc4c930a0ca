"""Trained weights, as many kinds of code save them, read without ever running code of the file."""

import zipfile
from itertools import islice, permutations
from pathlib import Path
from typing import Any, TypeGuard

import torch

from model import SRCNN
from runtime.errors import UserError
from runtime.files import load_tensors

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# What training code puts a state dict into; an average of the weights comes before the weights.
RUN_PARTS = ("options", "training", "recorder")  # of a checkpoint, which holds no plain weights
WRAPPERS = (
    "params_ema", "params", "state_dict", "model_state_dict", "model", "net", "network", "weights",
)  # fmt: skip
KINDS = ("weight", "bias")
CHANNELS = (1, 3)
SHOWN = 8  # keys that a message lists
SHIPPED = Path(__file__).resolve().parent.parent / "weights"


def shipped_weights(scale: int) -> Path:
    """Return the path of the weights that come with the repository for `scale`.

    Raises:
        UserError: there are none for this scale.
    """
    path = SHIPPED / f"srcnn_x{scale}.pth"
    if not path.is_file():
        have = ", ".join(sorted(p.stem.removeprefix("srcnn_") for p in SHIPPED.glob("*.pth")))
        raise UserError(
            f"no weights for x{scale} in weights/ (there are: {have or 'none'}); "
            f"name a file with --weights"
        )
    return path


def load_weights(path: Path | str) -> SRCNN:
    """Build the SRCNN whose weights lie at `path`, in fp32 on the CPU, in evaluation mode.

    A state dict of torch.save or a safetensors file, alone or in one of the `WRAPPERS`. Names do
    not matter: any three convolutions whose shapes chain are taken, as other repositories, parallel
    and compiled networks name them otherwise. Widths and kernel sizes are read off the weights.

    Raises:
        UserError: no such file, one that cannot be read, or no such three layers, or NaN within.
    """
    found = _read(Path(path))
    state = _layers(path, found)
    for key in state:
        _check_tensor(path, key, state)
    weights = [state[f"conv{i}.weight"] for i in (1, 2, 3)]
    model = SRCNN(
        channels=[w.shape[0] for w in weights[:2]],
        kernel_sizes=[w.shape[2] for w in weights],
        num_channels=weights[0].shape[1],
    )
    model.load_state_dict(state)
    return model.eval()


def load_luminance_weights(path: Path | str) -> SRCNN:
    """Load weights as `load_weights` does, of a network on luminance only.

    Raises:
        UserError: the network takes another number of channels; and as `load_weights`.
    """
    model = load_weights(path)
    if model.conv1.in_channels != 1:
        channels = model.conv1.in_channels
        raise UserError(f"{path} takes {channels} channels; expected luminance alone")
    return model


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.is_fifo():
            raise UserError(f"{path} is a pipe; save it to a file first")
        path.open("rb").close()  # what is told here is no fault of the file's bytes
        state = load_tensors(path)
    except FileNotFoundError:
        raise UserError(f"no weights file {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        if "EOF" in str(error) or _is_cut_archive(path):
            raise UserError(
                f"{path} is no whole weights file: it is damaged or cut short; copy it again"
            ) from None
        raise UserError(
            f"{path} is no weights file that can be read safely ({error}); "
            f"expected a state dict saved by torch.save, or safetensors"
        ) from None
    for _ in WRAPPERS:  # one lies in another at most so often; a dict may hold itself
        inner = [state[n] for n in WRAPPERS if _is_dict(state) and _is_dict(state.get(n))]
        state = inner[0] if inner else state
    if _is_dict(state) and set(state) == set(RUN_PARTS):
        raise UserError(f"{path} is the state of a run; its weights are in best.pth beside it")
    if not _is_dict(state):
        raise UserError(f"{path} holds a {type(state).__name__}; expected a state dict")
    return state


def _is_cut_archive(path: Path) -> bool:
    """Tell whether a file begins as one of torch.save does, a zip archive, but does not end so."""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"PK" and not zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def _is_dict(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _layers(path: Path | str, found: dict[str, Any]) -> dict[str, Any]:
    """Return the three layers under this project's names.

    Their order is that in which their shapes chain, from 1 or 3 channels back to these.
    """
    names = list(dict.fromkeys(key.rpartition(".")[0] for key in found))
    if len(names) == 3 and set(found) == {f"{name}.{kind}" for name in names for kind in KINDS}:
        for order in permutations(names):
            if _chain([getattr(found[f"{name}.weight"], "shape", ()) for name in order]):
                return {
                    f"conv{i}.{kind}": found[f"{name}.{kind}"]
                    for i, name in enumerate(order, start=1) for kind in KINDS
                }  # fmt: skip
    listed = [f"{key} {_shape(value)}" for key, value in islice(found.items(), SHOWN)]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise UserError(
        f"{path} is no SRCNN; expected weight and bias of three convolutions, n1×c×k×k, n2×n1×k×k, "
        f"c×n2×k×k, where c is 1 or 3; found {', '.join(listed) or 'nothing'}{more}"
    )


def _chain(shapes: list[tuple[int, ...]]) -> bool:
    if any(len(shape) != 4 for shape in shapes):
        return False
    inputs, outputs = [shape[1] for shape in shapes], [shape[0] for shape in shapes]
    return inputs[0] in CHANNELS and inputs == [outputs[-1], *outputs[:-1]]


def _shape(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return "×".join(map(str, value.shape)) or "1 number"
    return f"({type(value).__name__})"


def _check_tensor(path: Path | str, key: str, state: dict[str, Any]) -> None:
    """See that a tensor whose layer has a fitting weight can be taken."""
    tensor, weight = state[key], state[key.partition(".")[0] + ".weight"]
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in FLOATS or tensor.is_meta:
        raise UserError(f"{path}: {key} is no floating-point tensor of 16, 32 or 64 bits")
    if tensor is weight and (
        0 in tensor.shape or len({*tensor.shape[2:]}) > 1 or tensor.shape[2] % 2 == 0
    ):
        raise UserError(f"{path}: {key} has shape {tuple(tensor.shape)}; kernels are square, odd")
    if tensor is not weight and tensor.shape != weight.shape[:1]:
        raise UserError(
            f"{path}: {key} has shape {tuple(tensor.shape)}, expected ({weight.shape[0]},)"
        )
    if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise UserError(f"{path}: {key} claims to be larger than what the file holds")
    if not torch.isfinite(tensor.float()).all():
        raise UserError(f"{path}: {key} holds values that are not finite")
