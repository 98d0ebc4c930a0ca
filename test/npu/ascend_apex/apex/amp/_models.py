"""Half-precision models (O2, O3): weights, inputs, outputs, state dicts."""

import functools
from typing import Any

import torch
from simnpu.host import map_nested
from torch.nn.modules.batchnorm import _BatchNorm


def convert_model(
    model: torch.nn.Module, dtype: torch.dtype, outputs: torch.dtype, keep_batchnorm: bool
) -> None:
    """Give a model weights of ``dtype``, inputs cast to it and outputs cast to ``outputs``."""
    for module in model.modules():
        if not (keep_batchnorm and isinstance(module, _BatchNorm) and module.affine):
            _convert_own_tensors(module, dtype)
        module._register_state_dict_hook(_state_dict_in_fp32)
    cast_outputs(model, outputs, dtype)


def cast_outputs(
    model: torch.nn.Module, outputs: torch.dtype, inputs: torch.dtype | None = None
) -> None:
    """Cast what a model returns, and before that what it is given where ``inputs`` is a type."""
    forward = model.forward

    @functools.wraps(forward)
    def with_casts(*args: Any, **kwargs: Any) -> Any:
        if inputs is not None:
            args, kwargs = _cast(args, inputs), _cast(kwargs, inputs)
        return _cast(forward(*args, **kwargs), outputs)

    model.forward = with_casts


def _cast(value: Any, dtype: torch.dtype) -> Any:
    def one(leaf: Any) -> Any:
        floating = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        return leaf.to(dtype) if floating else leaf

    return map_nested(one, value)


def _convert_own_tensors(module: torch.nn.Module, dtype: torch.dtype) -> None:
    for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def _state_dict_in_fp32(module: Any, state_dict: dict, prefix: str, metadata: Any) -> None:
    for name, tensor in state_dict.items():
        if tensor.dtype == torch.float16:
            state_dict[name] = tensor.float()
