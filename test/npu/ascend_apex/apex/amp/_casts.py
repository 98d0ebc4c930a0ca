"""The casts of O1: around torch's functions and tensor methods, in the whole process.

apex's lists are longer (other losses, recurrent layers); these are the functions that training,
evaluating and plotting a convolutional network meets.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.nn import functional

from apex.amp._state import state

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose2d")
_MATRICES = ("addmm", "addmv", "matmul", "mm", "mv")  # bmm only where torch is built for CUDA
_SENSITIVE = (
    *("exp", "expm1", "log", "log10", "log2", "pow", "reciprocal", "rsqrt"),
    *("cumsum", "dist", "norm", "prod", "std", "sum", "var"),
)
_LOSSES = ("cross_entropy", "kl_div", "l1_loss", "mse_loss", "nll_loss", "smooth_l1_loss")
_OTHER = ("interpolate", "layer_norm", "group_norm", "normalize", "softmax", "log_softmax")
_PROMOTED = (
    *("add", "addcdiv", "addcmul", "div", "dot", "mul"),
    *("eq", "equal", "ge", "gt", "le", "lt", "ne"),
)
_OPERATORS = ("add", "sub", "mul", "truediv")
_COMPARISONS = tuple(f"__{name}__" for name in ("eq", "ge", "gt", "le", "lt", "ne"))

_TO_HALF = {
    functional: (*_CONVOLUTIONS, "linear"),
    torch: (*_CONVOLUTIONS, *_MATRICES),
    torch.Tensor: (*_MATRICES, "__matmul__"),
}
_TO_FLOAT = {
    functional: (*_LOSSES, *_OTHER),
    torch: _SENSITIVE,
    torch.Tensor: (*_SENSITIVE, "__pow__", "__rpow__", "cpu"),
}
_TO_WIDEST = {
    torch: _PROMOTED,
    torch.Tensor: (
        *_PROMOTED,
        *(f"__{prefix}{name}__" for name in _OPERATORS for prefix in ("", "r", "i")),
        *_COMPARISONS,
    ),
}


class Handle:
    """O1's casts and what they remember; apex makes one in every ``initialize`` with O1.

    The fp16 copy of an fp32 parameter is kept until the next ``scale_loss`` ends. A parameter on
    the CPU is its own copy, as only NPU tensors are cast: its second use fails, in apex too.
    """

    def __init__(self) -> None:
        """Put casts around the functions as they are now."""
        self._is_active = True
        self._cache: dict[torch.Tensor, torch.Tensor] = {}
        self._replaced: list[tuple[Any, str, Callable]] = []
        for table, wrap in (
            (_TO_HALF, self._casting_to_half),
            (_TO_FLOAT, self._casting_to_float),
            (_TO_WIDEST, self._promoting),
        ):
            for owner, names in table.items():
                self._replace(owner, names, wrap)
        self._replace(torch, ("cat", "stack"), self._promoting_a_sequence)
        for owner in (torch, torch.Tensor):
            in_place = [f"{name}_" for name in _SENSITIVE if hasattr(owner, f"{name}_")]
            self._replace(owner, in_place, self._refusing_half)

    def _replace(self, owner: Any, names: Iterable[str], wrap: Callable) -> None:
        for name in names:
            function = getattr(owner, name)
            self._replaced.append((owner, name, function))
            setattr(owner, name, functools.wraps(function)(wrap(function)))

    def _deactivate(self) -> None:
        """Put torch's own functions back."""
        for owner, name, function in reversed(self._replaced):
            setattr(owner, name, function)
        self._replaced = []

    def _clear_cache(self) -> None:
        self._cache.clear()

    def _casting_to_half(self, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._is_active:
                return function(*args, **kwargs)
            args, kwargs = _mapped(self._remembered_half, args, kwargs)
            args, kwargs = _mapped(_half, args, kwargs)
            return function(*args, **kwargs)

        return call

    def _remembered_half(self, value: torch.Tensor) -> torch.Tensor:
        if not isinstance(value, torch.nn.Parameter) or value.dtype != torch.float32:
            return value
        if value in self._cache:
            copy = self._cache[value]
            # apex looks at the copy's origin without asking whether it is a copy.
            both = value.requires_grad and copy.requires_grad
            if both and copy.grad_fn.next_functions[0][0].variable is not value:
                raise RuntimeError("x and cache[x] both require grad, but x is not its parent")
            if not torch.is_grad_enabled() or value.requires_grad == copy.requires_grad:
                return copy
        self._cache[value] = _half(value)
        return self._cache[value]

    def _casting_to_float(self, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._is_active:
                args, kwargs = _mapped(_float, args, kwargs)
            return function(*args, **kwargs)

        return call

    def _promoting(self, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            types = _floating_types([*args, *kwargs.values()])
            if not state.handle._is_active or len(types) < 2:
                return function(*args, **kwargs)
            if types != {torch.float16, torch.float32}:
                raise NotImplementedError(
                    f"Do not know how to handle these types to promote: {types}"
                )
            args, kwargs = _mapped(_float, args, kwargs)
            return function(*args, **kwargs)

        return call

    def _promoting_a_sequence(self, function: Callable) -> Callable:
        def call(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            mixed = {t.dtype for t in tensors} == {torch.float16, torch.float32}
            if self._is_active and mixed:
                tensors = [_float(tensor) for tensor in tensors]
            return function(tensors, *args, **kwargs)

        return call

    def _refusing_half(self, function: Callable) -> Callable:
        def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if tensor.dtype == torch.float16:
                raise NotImplementedError(
                    f"Cannot call in-place method {function.__name__} on fp16 Tensors."
                )
            return function(tensor, *args, **kwargs)

        return call


@contextlib.contextmanager
def disable_casts() -> Iterator[None]:
    """Let functions keep the types of their arguments; O1 only, and not to be nested.

    Casts are on again at the end, whatever they were before, and stay off after an exception.
    """
    state.handle._is_active = False
    yield
    state.handle._is_active = True


def _mapped(cast: Callable, args: Any, kwargs: dict) -> tuple[list, dict]:
    """Cast the tensors among arguments, also those in a list or a tuple."""

    def one(value: Any) -> Any:
        if isinstance(value, (list, tuple)) and value and all(_is_floating(v) for v in value):
            return type(value)([cast(v) for v in value])
        return cast(value) if _is_floating(value) else value

    return [one(value) for value in args], {name: one(value) for name, value in kwargs.items()}


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _floating_types(values: Iterable[Any]) -> set[torch.dtype]:
    return {value.dtype for value in values if _is_floating(value)}


def _half(value: torch.Tensor) -> torch.Tensor:
    return value.half() if value.device.type == "npu" else value


def _float(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.device.type == "npu" else value
