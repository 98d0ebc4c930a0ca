"""Trained weights: plain state dicts, read without ever running code from the file."""

from pathlib import Path

import torch

from model import SRCNN
from runtime.errors import UserError
from runtime.files import load_tensors

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
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
    """Build the SRCNN whose state dict lies at `path`, in fp32 on the CPU, in evaluation mode.

    Layer widths and kernel sizes are read off the weights, so every shape of the paper loads;
    so do files saved from DistributedDataParallel (`module.` before each key).

    Raises:
        UserError: no such file, not a state dict, keys missing or of wrong shape, NaN within.
    """
    state = _read(Path(path))
    expected = [f"conv{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")]
    if set(state) != set(expected):
        missing = ", ".join(k for k in expected if k not in state) or "none"
        extra = ", ".join(sorted(map(str, set(state) - set(expected)))[:6]) or "none"
        raise UserError(f"{path} is no SRCNN state dict; missing: {missing}; not known: {extra}")
    for key in expected:
        _check_tensor(path, key, state)
    weights = [state[f"conv{i}.weight"] for i in (1, 2, 3)]
    model = SRCNN(
        channels=[w.shape[0] for w in weights[:2]],
        kernel_sizes=[w.shape[2] for w in weights],
        num_channels=weights[0].shape[1],
    )
    for key, parameter in model.state_dict().items():
        if state[key].shape != parameter.shape:
            raise UserError(
                f"{path}: {key} has shape {tuple(state[key].shape)}, "
                f"expected {tuple(parameter.shape)} beside the other layers"
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


def _read(path: Path) -> dict:
    try:
        state = load_tensors(path)
    except FileNotFoundError:
        raise UserError(f"no weights file {path}") from None
    except ValueError as error:
        raise UserError(
            f"{path} is no weights file that can be read safely ({error}); "
            f"expected a state dict saved by torch.save"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UserError(f"{path} holds a {type(state).__name__}; expected a state dict")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _check_tensor(path: Path | str, key: str, state: dict) -> None:
    tensor, dimensions = state[key], 4 if key.endswith("weight") else 1
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in FLOATS or tensor.is_meta:
        raise UserError(f"{path}: {key} is no floating-point tensor of 16, 32 or 64 bits")
    if tensor.dim() != dimensions or 0 in tensor.shape:
        raise UserError(f"{path}: {key} has shape {tuple(tensor.shape)}, not {dimensions} sizes")
    if dimensions == 4 and (tensor.shape[2] != tensor.shape[3] or tensor.shape[2] % 2 == 0):
        raise UserError(f"{path}: {key} has shape {tuple(tensor.shape)}; kernels are square, odd")
    if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise UserError(f"{path}: {key} claims to be larger than what the file holds")
    if not torch.isfinite(tensor.float()).all():
        raise UserError(f"{path}: {key} holds values that are not finite")
