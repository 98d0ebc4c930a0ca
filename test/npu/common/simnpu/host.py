"""The host's view of NPU tensors: in both simulations device memory is host memory."""

from collections.abc import Callable
from typing import Any

import torch


def is_npu(value: Any) -> bool:
    """Whether ``value`` is a tensor on the simulated card."""
    return isinstance(value, torch.Tensor) and value.device.type == "npu"


def alias(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor over the memory of an NPU tensor; valid only while that tensor lives."""
    device_storage = tensor.untyped_storage()
    size = device_storage.nbytes()
    if size == 0:
        storage = torch.UntypedStorage(0)
    else:
        storage = torch._C._construct_storage_from_data_pointer(
            device_storage.data_ptr(), torch.device("cpu"), size
        )
    view = torch.empty(0, dtype=tensor.dtype)
    return view.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself when it is on the CPU, else its alias."""
    return alias(tensor) if is_npu(tensor) else tensor


def map_nested(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply ``function`` to the leaves of nested lists, tuples and dicts."""
    if isinstance(value, (list, tuple)):
        return type(value)(map_nested(function, item) for item in value)
    if isinstance(value, dict):
        return {key: map_nested(function, item) for key, item in value.items()}
    return function(value)
