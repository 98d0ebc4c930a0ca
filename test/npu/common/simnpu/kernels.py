"""The one kernel behind every operator of a simulated card: the CPU's, on the same memory."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from simnpu import chip, record
from simnpu.host import alias, is_npu, map_nested, on_host

aten = torch.ops.aten
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_UNSCALE = "aten::_amp_foreach_non_finite_check_and_unscale_"
_WAITING = {"aten::nonzero", "aten::masked_select", "aten::_unique2"}  # for the result's size

_new_on_card: Callable[[torch.Tensor, int], torch.Tensor]
_current_card: Callable[[], int]
_format_of: Callable[[torch.Tensor], int]
_format_cast: Callable[[torch.Tensor, int], torch.Tensor]


def use_memory(
    new_on_card: Callable[[torch.Tensor, int], torch.Tensor],
    current_card: Callable[[], int],
    format_of: Callable[[torch.Tensor], int],
    format_cast: Callable[[torch.Tensor, int], torch.Tensor],
) -> None:
    """Say how a result gets onto a card, and how memory is laid out.

    Args:
        new_on_card: makes an NPU tensor with the values of a CPU tensor on the card of that index.
        current_card: the card for operators that name none and have no NPU argument.
        format_of: the number of an NPU tensor's format.
        format_cast: makes an NPU tensor in the format of that number.
    """
    global _new_on_card, _current_card, _format_of, _format_cast
    _new_on_card, _current_card = new_on_card, current_card
    _format_of, _format_cast = format_of, format_cast


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
    written = [*_written(op, args, kwargs), *outputs.values()]
    map_nested(lambda tensor: chip.check_write(op, tensor, _format_of), written)
    args, kwargs = map_nested(call.to_host, args), map_nested(call.to_host, kwargs)
    if op.name() == _UNSCALE and chip.FIRST_GENERATION:
        return _unscale_by_flag(*args)
    # An operator may resize what it writes to: it gets an empty tensor, copied back afterwards.
    stand_ins = {name: torch.empty(0, dtype=tensor.dtype) for name, tensor in outputs.items()}
    result = chip.compute(op, args, {**kwargs, **stand_ins})
    record.kernel_calls["host wait"] += _waits(op, args, result)
    map_nested(chip.saturate, [*_written(op, args, kwargs), *stand_ins.values()])
    for name, tensor in outputs.items():
        if tensor.shape != stand_ins[name].shape:
            tensor.resize_(stand_ins[name].shape)
        alias(tensor).copy_(stand_ins[name])
        call.lent.append((tensor, stand_ins[name]))
    return map_nested(call.to_card, result)


def _waits(op: Any, args: Any, result: Any) -> bool:
    """Whether the host needs the answer: a value, or the size of a result."""
    if op.name() in _WAITING or isinstance(result, (bool, int, float)):
        return True
    by_mask = op.name() in ("aten::index.Tensor", "aten::index_put_", "aten::index_put")
    return by_mask and any(index is not None and index.dtype == torch.bool for index in args[1])


def copy(destination: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """``destination.copy_(source)`` between any two devices."""
    record.kernel_calls["copy_"] += 1
    record.kernel_calls["host wait"] += is_npu(source) and not is_npu(destination)
    chip.check_type("aten::copy_", destination, source)
    if is_npu(destination):
        chip.check_write("aten::copy_", destination, _format_of)
    copied = on_host(destination).copy_(on_host(source))
    if destination.dtype != source.dtype:
        chip.saturate(copied)
    return destination


def clone(tensor: torch.Tensor, memory_format: torch.memory_format | None = None) -> torch.Tensor:
    """A copy, in the format of the original."""
    result = run(aten.clone.default, tensor, memory_format=memory_format)
    return (
        _format_cast(result, _format_of(tensor)) if chip.is_private(tensor, _format_of) else result
    )


def fill(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Put the values of a CPU tensor into a new NPU tensor; not a kernel of the card."""
    alias(tensor).copy_(values)
    return tensor


def item(tensor: torch.Tensor) -> float | int | bool:
    """The value of a tensor of one element."""
    record.kernel_calls["host wait"] += 1
    chip.check_type("aten::_local_scalar_dense", tensor)
    return alias(tensor).item()


def get_float_status(status: torch.Tensor) -> torch.Tensor:
    """The overflow flag of a chip that saturates, as the first of eight numbers."""
    record.kernel_calls["npu_get_float_status"] += 1
    values = torch.zeros(status.shape)
    values[0] = float(chip.overflow)
    return _new_on_card(values, status.device.index)


def clear_float_status(status: torch.Tensor) -> torch.Tensor:
    """Lower the flag."""
    record.kernel_calls["npu_clear_float_status"] += 1
    chip.overflow = False
    return _new_on_card(torch.zeros(status.shape), status.device.index)


def _unscale_by_flag(gradients: list, found_inf: torch.Tensor, factor: torch.Tensor) -> None:
    """Where inf is never seen, torch_npu asks the flag, and waits for the answer."""
    record.kernel_calls["host wait"] += 1
    if chip.overflow:
        found_inf.add_(1)
    for gradient in gradients:
        chip.saturate(gradient.mul_(factor))


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
        chip.check_type(self.op, value)
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
                return _as_strided(tensor, *geometry)
        chip.check_type(self.op, value)
        chip.saturate(value)
        if self.device is None:
            return _new_on_card(value, _current_card() if self.card is None else self.card)
        if self.device.type != "npu":
            return value
        index = self.device.index
        return _new_on_card(value, _current_card() if index is None else index)


def _as_strided(tensor: torch.Tensor, *geometry: Any) -> torch.Tensor:
    op = aten.as_strided.default
    if hasattr(op, "redispatch"):
        return op.redispatch(_CPU, tensor, *geometry)
    return op._op_dk(torch._C.DispatchKey.CPU, tensor, *geometry)  # torch before 2.2


def _same_memory(left: torch.Tensor, right: torch.Tensor) -> bool:
    if not left.numel() or not right.numel() or left.dtype != right.dtype:
        return False
    return left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()


@functools.cache
def _output_names(op: Any) -> tuple[str, ...]:
    return tuple(argument.name for argument in op._schema.arguments if argument.is_out)


def _written(op: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that the operator changes in place."""
    return [
        args[index] if index < len(args) else kwargs.get(name)
        for index, name in _written_arguments(op)
    ]


@functools.cache
def _written_arguments(op: Any) -> tuple[tuple[int, str], ...]:
    return tuple(
        (index, argument.name)
        for index, argument in enumerate(op._schema.arguments)
        if argument.alias_info and argument.alias_info.is_write and not argument.is_out
    )


@functools.cache
def _host_generator(generator: torch.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(generator.initial_seed())
