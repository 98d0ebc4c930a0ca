"""The one kernel behind every operator of a simulated card: the CPU's, on the same memory."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from simnpu import cards, record
from simnpu.host import alias, is_npu, map_nested, on_host

aten = torch.ops.aten
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_CONVOLUTIONS = {aten.convolution.default, aten.convolution_backward.default}
_HALF = {torch.float16, torch.bfloat16}

_new_on_card: Callable[[torch.Tensor, int], torch.Tensor]
_current_card: Callable[[], int]


def use_allocator(
    new_on_card: Callable[[torch.Tensor, int], torch.Tensor], current_card: Callable[[], int]
) -> None:
    """Say how a result gets onto a card.

    Args:
        new_on_card: makes an NPU tensor with the values of a CPU tensor on the card of that index.
        current_card: the card for operators that name none and have no NPU argument.
    """
    global _new_on_card, _current_card
    _new_on_card, _current_card = new_on_card, current_card


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Execute ``op`` (an aten overload) on the card.

    Raises:
        RuntimeError: as on a card, when the tensors are not all on one device (CPU scalars may
            be), or when the chip has no kernel for their type.
    """
    record.kernel_calls[op.__name__] += 1
    call = _Call(op, kwargs.get("device"))
    outputs = {name: kwargs.pop(name) for name in _output_names(op) if name in kwargs}
    map_nested(call.check, outputs)
    args, kwargs = map_nested(call.to_host, args), map_nested(call.to_host, kwargs)
    # An operator may resize what it writes to: it gets an empty tensor, copied back afterwards.
    stand_ins = {name: torch.empty(0, dtype=tensor.dtype) for name, tensor in outputs.items()}
    result = _compute(op, args, {**kwargs, **stand_ins})
    for name, tensor in outputs.items():
        if tensor.shape != stand_ins[name].shape:
            tensor.resize_(stand_ins[name].shape)
        alias(tensor).copy_(stand_ins[name])
        call.lent.append((tensor, stand_ins[name]))
    return map_nested(call.to_card, result)


def copy(destination: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """``destination.copy_(source)`` between any two devices."""
    record.kernel_calls["copy_"] += 1
    record.kernel_calls["copy_ to host"] += is_npu(source) and not is_npu(destination)
    on_host(destination).copy_(on_host(source))
    return destination


def fill(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Put the values of a CPU tensor into a new NPU tensor; not a kernel of the card."""
    alias(tensor).copy_(values)
    return tensor


def item(tensor: torch.Tensor) -> float | int | bool:
    """The value of a tensor of one element."""
    record.kernel_calls["_local_scalar_dense"] += 1
    return alias(tensor).item()


def convolution(*args: Any) -> torch.Tensor:
    """``aten::convolution_overrideable``: where autograd sends an accelerator's convolution."""
    return run(aten.convolution.default, *args)


def convolution_backward(
    gradient: torch.Tensor, inputs: torch.Tensor, weight: torch.Tensor, *geometry: Any
) -> Any:
    """``aten::convolution_backward_overrideable``; ``geometry`` ends in groups and output mask."""
    transposed, groups = geometry[3], geometry[5]
    bias_size = [weight.shape[1] * groups if transposed else weight.shape[0]]
    op = aten.convolution_backward.default
    return run(op, gradient, inputs, weight, bias_size, *geometry)


class _Call:
    """One operator's journey: arguments to the host, results back to the card."""

    def __init__(self, op: Any, device: torch.device | None) -> None:
        self.op = op
        self.device = device  # where the caller wants the result, if it said so
        self.card: int | None = None
        self.on_cpu = False
        self.lent: list[tuple[torch.Tensor, torch.Tensor]] = []

    def check(self, value: Any) -> None:
        """Refuse a second device and types that the chip lacks."""
        if not isinstance(value, torch.Tensor):
            return
        if value.dtype == torch.bfloat16 and not cards.has_bfloat16():
            raise RuntimeError(f"{self.op}: {cards.soc_name()} has no kernel for bfloat16")
        if is_npu(value):
            if self.card not in (None, value.device.index):
                self._refuse(f"npu:{self.card}", value.device)
            self.card = value.device.index
        elif value.dim():
            self.on_cpu = True
        if self.on_cpu and self.card is not None:
            self._refuse(f"npu:{self.card}", "cpu")

    def _refuse(self, first: object, second: object) -> None:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{first} and {second}! (in {self.op})"
        )

    def to_host(self, value: Any) -> Any:
        """The argument as the CPU kernel takes it."""
        self.check(value)
        if is_npu(value):
            self.lent.append((value, alias(value)))
            return self.lent[-1][1]
        if isinstance(value, torch.Generator) and value.device.type == "npu":
            return _host_generator(value)
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return value

    def to_card(self, value: Any) -> Any:
        """A result: the argument it is, a view of an argument, or a new tensor."""
        if not isinstance(value, torch.Tensor):
            return value
        for tensor, lent in self.lent:
            if value is lent:
                return tensor
            if _same_memory(value, lent):
                geometry = value.size(), value.stride(), value.storage_offset()
                return aten.as_strided.default.redispatch(_CPU, tensor, *geometry)
        if self.device is None:
            return _new_on_card(value, _current_card() if self.card is None else self.card)
        if self.device.type != "npu":
            return value
        index = self.device.index
        return _new_on_card(value, _current_card() if index is None else index)


def _same_memory(left: torch.Tensor, right: torch.Tensor) -> bool:
    if not left.numel() or not right.numel() or left.dtype != right.dtype:
        return False
    return left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()


def _compute(op: Any, args: Any, kwargs: Any) -> Any:
    """Run the CPU kernel; half-precision convolutions in fp32, rounded, as the Cube unit does.

    (They would also be more than ten times slower on the CPU.)
    """
    if op not in _CONVOLUTIONS or args[0].dtype not in _HALF:
        return op(*args, **kwargs)

    def cast(dtype: torch.dtype) -> Callable[[Any], Any]:
        return lambda value: value.to(dtype) if isinstance(value, torch.Tensor) else value

    wide = op(*map_nested(cast(torch.float32), args), **kwargs)
    return map_nested(cast(args[0].dtype), wide)


@functools.cache
def _output_names(op: Any) -> tuple[str, ...]:
    return tuple(argument.name for argument in op._schema.arguments if argument.is_out)


@functools.cache
def _host_generator(generator: torch.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(generator.initial_seed())
