"""Formats of memory, as a mark on the storage: values lie in plain order whatever it says."""

from typing import Any

import torch
from simnpu import chip, kernels

ND = 2
_MODULE_TO = torch.nn.Module.to

allowed = True
compile_just_in_time = chip.FIRST_GENERATION


def get_npu_format(tensor: torch.Tensor) -> int:
    """Return the number of a tensor's format."""
    return getattr(tensor.untyped_storage(), "npu_format", ND)


def npu_format_cast(tensor: torch.Tensor, wanted: int) -> torch.Tensor:
    """Return the tensor in another format."""
    if not allowed or get_npu_format(tensor) == wanted:
        return tensor
    result = kernels.copy(
        torch.empty_strided(
            tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device
        ),
        tensor,
    )
    result.untyped_storage().npu_format = int(wanted)
    return result


def module_to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
    """``Module.to``, which gives convolutions the format that they are computed in."""
    moved = _MODULE_TO(self, *args, **kwargs)
    if compile_just_in_time:
        for module in moved.modules():
            if isinstance(module, torch.nn.Conv2d) and module.weight.device.type == "npu":
                module.weight.data = npu_format_cast(module.weight.data, chip.FRACTAL_Z)
    return moved


class Config:
    """``torch.npu.config``."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Allow or forbid formats other than plain ones."""
        global allowed  # noqa: PLW0603 - it is one setting of the process
        if name == "allow_internal_format":
            allowed = bool(value)
