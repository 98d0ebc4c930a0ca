"""What the chip makes of numbers: types, saturation and its flag, the Cube unit, formats.

Sources: CANN's reference of INF_NAN_MODE_ENABLE (saturation: inf becomes the largest number, NaN
becomes 0; the only mode of the first generation), torch_npu's ``Module.to`` (weights become
FRACTAL_Z where kernels are compiled just in time).
"""

from collections.abc import Callable
from typing import Any

import torch

from simnpu import cards
from simnpu.host import is_npu, map_nested

FIRST_GENERATION = cards.is_first_generation()
FRACTAL_Z = 4

overflow = False
"""The flag of a chip that saturates: up from the first overflow until it is cleared."""

_CUBE = {
    *("aten::convolution", "aten::convolution_backward"),
    *("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::matmul"),
}
_HALF = {torch.float16, torch.bfloat16}


def check_type(what: object, *values: Any) -> None:
    """Refuse bfloat16 where the chip has none.

    Raises:
        RuntimeError: a tensor is bfloat16.
    """
    if FIRST_GENERATION and any(
        getattr(value, "dtype", None) == torch.bfloat16 for value in values
    ):
        raise RuntimeError(f"{what}: {cards.soc_name()} has no kernel for bfloat16 (DT_BFLOAT16)")


def saturate(value: Any) -> Any:
    """Make inf the largest number and NaN 0 in a result, in place, and raise the flag."""
    global overflow  # noqa: PLW0603 - the chip has one
    if not FIRST_GENERATION or not isinstance(value, torch.Tensor):
        return value
    if value.is_floating_point() and not torch.isfinite(value).all():
        overflow = True
        value.nan_to_num_()
    return value


def compute(op: Any, args: Any, kwargs: Any) -> Any:
    """Run the CPU kernel; what the Cube unit does, from fp16 (or bf16) in fp32, then rounded.

    The Cube unit of the first generation has no other type than fp16. (In half precision, CPU
    kernels would also be more than ten times slower.)
    """
    name = op.name().partition(".")[0]
    dtype = args[0].dtype if args and isinstance(args[0], torch.Tensor) else None
    narrow = torch.float16 if FIRST_GENERATION and dtype == torch.float32 else dtype
    if name not in _CUBE or narrow not in _HALF:
        return op(*args, **kwargs)
    out = kwargs.get("out")  # the empty one that is copied back afterwards
    if out is not None:
        kwargs = {**kwargs, "out": torch.empty(0)}
    args = map_nested(_cast(narrow), args) if narrow != dtype else args
    wide = op(*map_nested(_cast(torch.float32), args), **kwargs)
    result = map_nested(_cast(dtype), map_nested(_cast(narrow), wide))
    return result if out is None else out.resize_(result.shape).copy_(result)


def _cast(dtype: torch.dtype) -> Callable[[Any], Any]:
    def cast(value: Any) -> Any:
        return saturate(value.to(dtype)) if isinstance(value, torch.Tensor) else value

    return cast


def is_private(tensor: Any, format_of: Callable) -> bool:
    """Whether an argument is a tensor in the format of convolutions' weights."""
    return FIRST_GENERATION and is_npu(tensor) and format_of(tensor) == FRACTAL_Z


def check_write(what: object, tensor: Any, format_of: Callable) -> None:
    """Refuse to write into FRACTAL_Z memory through a view: no plain kernel can.

    Raises:
        RuntimeError: the tensor is not the whole of its memory as it was cast.
    """
    if not is_private(tensor, format_of):
        return
    whole = tensor.dim() == 4 and tensor.is_contiguous() and not tensor.storage_offset()
    if not whole:
        raise RuntimeError(
            f"{what}: a write through a view of a tensor in FRACTAL_Z; keep weights in a plain "
            "format (torch.npu.config.allow_internal_format = False)"
        )
