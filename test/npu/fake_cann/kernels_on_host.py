"""Gives the real torch_npu something to compute with: the CPU's kernels.

torch_npu registers more than a thousand aten kernels for its cards; each would ask CANN for an
operator that is not there. Here they are replaced one by one, so that the rest of torch_npu —
devices, memory, streams, autocast, GradScaler, fused optimizers — stays the real thing.
"""

import functools
import inspect
from typing import Any

import scaling_on_cpu
import torch
import torch_npu
from simnpu import hccl, kernels

aten = torch.ops.aten
# Said where torch knows it; before 2.6 it overrides without a word.
_OVERRIDE = {"allow_override": True}
if "allow_override" not in inspect.signature(torch.library.Library.impl).parameters:
    _OVERRIDE = {}
_libraries: list[torch.library.Library] = []

# Already right on host memory: allocation and what only changes sizes, strides or storage.
_KEPT = {
    *("_has_compatible_shallow_copy_type", "_pin_memory", "_reshape_alias", "alias", "as_strided"),
    *("detach", "empty.memory_format", "empty_like", "empty_strided", "is_pinned", "is_set_to"),
    *("new_empty", "new_empty_strided", "pin_memory", "record_stream", "resize_", "set_"),
    *("result_type.Tensor", "set_.source_Storage", "set_.source_Storage_storage_offset"),
    *("set_.source_Tensor", "unfold", "view", "view_as_complex", "view_as_real"),
}


def install() -> None:
    """Replace the kernels of the imported torch_npu, and its HCCL by gloo."""
    formats = torch_npu.get_npu_format, _format_cast
    kernels.use_memory(_new_on_card, torch.npu.current_device, *formats)
    library = torch.library.Library("aten", "IMPL")
    npu_library = torch.library.Library("npu", "IMPL")
    _libraries.extend([library, npu_library])
    scaling_on_cpu.install(library)
    _replace_aten_kernels(library)
    _refuse_what_would_fall_back(library)
    _drop_autograd_shortcuts(library)
    _replace_npu_kernels(npu_library)
    hccl.register()


def _new_on_card(values: torch.Tensor, card: int) -> torch.Tensor:
    tensor = torch.empty_like(values, device=torch.device("npu", card))
    return kernels.fill(tensor, values)


def _registered(namespace: str, key: str) -> list[str]:
    names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return [name.removeprefix(f"{namespace}::") for name in names if name.startswith(namespace)]


def _overload(name: str) -> Any | None:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet, None), overload or "default", None)


def _refuse_what_would_fall_back(library: torch.library.Library) -> None:
    """Let an operator that torch_npu has no kernel for fail: a card would go to the CPU for it."""
    keys = ("PrivateUse1", "CompositeImplicitAutograd", "CompositeExplicitAutograd")
    keys += ("CompositeExplicitAutogradNonFunctional",)
    for name in _registered("aten", "CPU"):
        has = functools.partial(torch._C._dispatch_has_kernel_for_dispatch_key, f"aten::{name}")
        if not any(map(has, keys)):
            library.impl(name, functools.partial(_refuse, name), "PrivateUse1")


def _refuse(name: str, *_: Any, **__: Any) -> None:
    raise RuntimeError(
        f"aten::{name}: torch_npu has no kernel for it, a card falls back to the CPU"
    )


def _replace_aten_kernels(library: torch.library.Library) -> None:
    special = {
        "_to_copy": _to_copy,
        "copy_": lambda destination, source, non_blocking=False: kernels.copy(destination, source),
        "_copy_from": lambda source, destination, non_blocking=False: kernels.copy(
            destination, source
        ),
        "_copy_from_and_resize": lambda source, destination: kernels.copy(destination, source),
        "_local_scalar_dense": kernels.item,
        "clone": kernels.clone,
        # Where torch_npu has a kernel for it (2.1), that keeps the format.
        "zeros_like": lambda tensor, **options: torch.empty_like(tensor, **options).zero_(),
        "convolution_overrideable": kernels.convolution,
        "convolution_backward_overrideable": kernels.convolution_backward,
    }
    for name in _registered("aten", "PrivateUse1"):
        op = _overload(name)
        if name not in _KEPT and op is not None:
            kernel = special.get(name) or functools.partial(kernels.run, op)
            library.impl(name, kernel, "PrivateUse1", **_OVERRIDE)


def _to_copy(
    tensor: torch.Tensor,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    """``tensor.to(…)`` that makes a new tensor."""
    kind, device = dtype or tensor.dtype, device or tensor.device
    memory_format = memory_format or torch.preserve_format
    form = torch.empty_like(tensor, device="meta", memory_format=memory_format)
    result = torch.empty_strided(form.size(), form.stride(), dtype=kind, device=device)
    return kernels.copy(result, tensor)


def _drop_autograd_shortcuts(library: torch.library.Library) -> None:
    """Composite operators for which torch_npu has a kernel of its own go back to torch's parts."""
    for name in _registered("aten", "AutogradPrivateUse1"):
        op = _overload(name)
        composite = "CompositeImplicitAutograd"
        if op is not None and torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), composite):
            library.impl(name, op.decompose, "AutogradPrivateUse1", **_OVERRIDE)


def _replace_npu_kernels(library: torch.library.Library) -> None:
    """torch_npu's own operators, as far as training meets them."""
    replaced = {
        "npu_format_cast": _format_cast,
        "_npu_format_cast": _format_cast,
        "_npu_dtype_cast": _to_copy,
        "npu_dtype_cast": _to_copy,
        "npu_get_float_status": kernels.get_float_status,
        "npu_clear_float_status": kernels.clear_float_status,
    }
    for name in _registered("npu", "PrivateUse1"):
        if name.partition(".")[0] in replaced:
            kernel = replaced[name.partition(".")[0]]
            library.impl(name, kernel, "PrivateUse1", **_OVERRIDE)


def _format_cast(tensor: torch.Tensor, wanted: int | torch.Tensor, *_: Any) -> torch.Tensor:
    """A tensor that torch_npu takes to be in that format; its values lie in plain order."""
    if isinstance(wanted, torch.Tensor):
        wanted = torch_npu.get_npu_format(wanted)
    plain = torch_npu._C._npu_getOption("ALLOW_INTERNAL_FORMAT") == b"disable"
    if plain or torch_npu.get_npu_format(tensor) == wanted:
        return tensor
    form = {"dtype": tensor.dtype, "device": tensor.device, "acl_format": int(wanted)}
    return kernels.copy(torch_npu.empty_with_format(tensor.size(), **form), tensor)
