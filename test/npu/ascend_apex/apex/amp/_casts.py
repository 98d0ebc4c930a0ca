"""What amp does to types: casts around functions (O1) and half-precision models (O2, O3)."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from simnpu.host import map_nested
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

_IN_HALF: dict[ModuleType, tuple[str, ...]] = {
    functional: ("conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear"),
    torch: ("conv1d", "conv2d", "conv3d", "matmul", "mm", "bmm", "addmm", "baddbmm"),
}
_IN_FLOAT: dict[ModuleType, tuple[str, ...]] = {
    functional: ("mse_loss", "l1_loss", "smooth_l1_loss", "softmax", "log_softmax"),
    torch: ("exp", "log", "log10", "pow", "norm", "prod", "std", "sum", "var"),
}

_active = False
_patched = False


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast the floating-point tensors in nested lists, tuples and dicts."""

    def one(leaf: Any) -> Any:
        floating = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        return leaf.to(dtype) if floating else leaf

    return map_nested(one, value)


def patch_torch_functions() -> None:
    """Let convolutions and matrix products run in fp16, sensitive functions in fp32 (O1)."""
    global _active, _patched  # noqa: PLW0603 - torch's functions are global too
    _active = True
    if _patched:
        return
    _patched = True
    for table, dtype in ((_IN_HALF, torch.float16), (_IN_FLOAT, torch.float32)):
        for module, names in table.items():
            for name in names:
                setattr(module, name, _casting(getattr(module, name), dtype))


def _casting(function: Callable, dtype: torch.dtype) -> Callable:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not _active:
            return function(*args, **kwargs)
        return function(*cast(args, dtype), **cast(kwargs, dtype))

    return call


@contextlib.contextmanager
def disable_casts() -> Iterator[None]:
    """Let functions keep the types of their arguments inside this context."""
    global _active  # noqa: PLW0603
    before, _active = _active, False
    try:
        yield
    finally:
        _active = before


def convert_model(model: torch.nn.Module, dtype: torch.dtype, keep_batchnorm: bool) -> None:
    """Give a model weights of ``dtype``, inputs cast to it and outputs in fp32 (O0, O2, O3)."""
    for module in model.modules():
        if not (keep_batchnorm and isinstance(module, _BatchNorm)):
            _convert_own_tensors(module, dtype)
        module._register_state_dict_hook(_state_dict_in_fp32)
    forward = model.forward

    @functools.wraps(forward)
    def with_casts(*args: Any, **kwargs: Any) -> Any:
        return cast(forward(*cast(args, dtype), **cast(kwargs, dtype)), torch.float32)

    model.forward = with_casts


def _convert_own_tensors(module: torch.nn.Module, dtype: torch.dtype) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(dtype)
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point():
            setattr(module, name, buffer.to(dtype))


def _state_dict_in_fp32(module: Any, state_dict: dict, prefix: str, metadata: Any) -> None:
    for name, tensor in state_dict.items():
        if tensor.dtype == torch.float16:
            state_dict[name] = tensor.float()
