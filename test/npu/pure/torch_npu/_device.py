"""The device "npu" in pure Python: PrivateUse1 tensors over memory of the host.

A tensor starts as a DLPack capsule of an "extension device": torch turns it into a PrivateUse1
tensor without a C++ allocator. One boxed fallback, the CPU's kernel on the same memory, answers
every operator; only those that allocate or change metadata are registered one by one.
"""

import ctypes
import functools
import math
import warnings
from types import ModuleType
from typing import Any

import torch
from simnpu import cards, kernels
from simnpu.host import is_npu, map_nested
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from torch_npu import _formats

aten = torch.ops.aten
_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_libraries: list[torch.library.Library] = []
_pinned: set[int] = set()

# ---- Memory -------------------------------------------------------------------------------------

_EXTENSION_DEVICE = 12  # kDLExtDev
_libc = ctypes.CDLL(None)
_libc.aligned_alloc.restype = ctypes.c_void_p
_libc.aligned_alloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
_free = ctypes.cast(_libc.free, ctypes.c_void_p).value
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

_DLPACK_TYPES = {  # kind (0 int, 1 unsigned, 2 float, 4 bfloat, 6 bool) and bits
    torch.float64: (2, 64),
    torch.float32: (2, 32),
    torch.float16: (2, 16),
    torch.bfloat16: (4, 16),
    torch.int64: (0, 64),
    torch.int32: (0, 32),
    torch.int16: (0, 16),
    torch.int8: (0, 8),
    torch.uint8: (1, 8),
    torch.bool: (6, 8),
}


class _ManagedTensor(ctypes.Structure):
    """DLManagedTensor, flattened."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("kind", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


def _allocate(size: Any, stride: Any, dtype: torch.dtype, card: int) -> torch.Tensor:
    """Make an NPU tensor; one block of memory holds header, shape, strides and data."""
    if not 0 <= card < cards.count():
        raise RuntimeError(f"Invalid NPU device npu:{card}: there are {cards.count()}")
    kind, bits = _DLPACK_TYPES[dtype]
    elements = 0 if 0 in size else 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    ndim, shape_at = len(size), 128
    data_at = _round_up(shape_at + 16 * ndim)
    block = _libc.aligned_alloc(64, data_at + _round_up(elements * bits // 8) + 64)
    header = _ManagedTensor.from_address(block)
    header.data, header.byte_offset = block + data_at, 0
    header.device_type, header.device_id = _EXTENSION_DEVICE, _visible_index(card)
    header.ndim, header.kind, header.bits, header.lanes = ndim, kind, bits, 1
    header.shape, header.strides = block + shape_at, block + shape_at + 8 * ndim
    header.context, header.deleter = 0, _free
    (ctypes.c_int64 * (2 * ndim)).from_address(block + shape_at)[:] = [*size, *stride]
    return torch._C._from_dlpack(_new_capsule(block, b"dltensor", None))


def _visible_index(card: int) -> int:
    """Index that a tensor carries: the current card's are on "npu:0", whichever it is.

    torch's autograd has one queue for a device made in Python, so that only tensors with index 0
    can take part in a backward pass. A process computes on its current card.
    """
    return 0 if card == torch.npu.current_device() else card


def _round_up(size: int) -> int:
    return (size + 63) // 64 * 64


def _new_on_card(values: torch.Tensor, card: int) -> torch.Tensor:
    stride = torch.empty_like(values, device="meta").stride()
    return kernels.fill(_allocate(values.shape, stride, values.dtype, card), values)


# ---- Operators that allocate or change metadata -------------------------------------------------


def _card(device: torch.device | None) -> int:
    index = None if device is None else device.index
    return torch.npu.current_device() if index is None else index


def _empty(
    size: Any,
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    memory_format = memory_format or torch.contiguous_format
    stride = torch.empty(size, device="meta", memory_format=memory_format).stride()
    return _allocate(size, stride, dtype or torch.get_default_dtype(), _card(device))


def _empty_strided(
    size: Any,
    stride: Any,
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> torch.Tensor:
    return _allocate(size, stride, dtype or torch.get_default_dtype(), _card(device))


def _resize(tensor: torch.Tensor, size: Any, memory_format: Any = None) -> torch.Tensor:
    stride = torch.empty(size, device="meta").stride()
    storage = tensor.untyped_storage()
    if math.prod(size) * tensor.element_size() > storage.nbytes():
        storage = _allocate(size, stride, tensor.dtype, tensor.device.index).untyped_storage()
    set_storage = aten.set_.source_Storage_storage_offset
    return set_storage.redispatch(_CPU, tensor, storage, 0, list(size), stride)


_METADATA_ONLY = (
    *("_reshape_alias", "as_strided", "unfold", "view"),
    *("set_.source_Storage", "set_.source_Storage_storage_offset", "set_.source_Tensor"),
)


def _register_operators(library: torch.library.Library) -> None:
    kernels_of_their_own = {
        "empty.memory_format": _empty,
        "empty_strided": _empty_strided,
        "resize_": _resize,
        "record_stream": lambda tensor, stream: None,
        "_copy_from": lambda source, destination, non_blocking=False: kernels.copy(
            destination, source
        ),
        "_local_scalar_dense": kernels.item,
        "clone": kernels.clone,
        "convolution_overrideable": kernels.convolution,
        "convolution_backward_overrideable": kernels.convolution_backward,
    }
    for name in _METADATA_ONLY:  # the CPU's kernels for these look at no data
        packet, _, overload = name.partition(".")
        op = getattr(getattr(aten, packet), overload or "default")
        kernels_of_their_own[name] = functools.partial(op.redispatch, _CPU)
    for name, kernel in kernels_of_their_own.items():
        library.impl(name, kernel, "PrivateUse1")


# ---- Autocast -----------------------------------------------------------------------------------

_IN_HALF = ("conv1d", "conv2d", "conv3d", "linear", "matmul", "mm", "addmm", "bmm", "baddbmm")
_IN_FLOAT = (
    *("exp", "log", "log10", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "reciprocal", "rsqrt"),
    *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "sum", "sum.dim_IntList", "prod"),
    *("softmax.int", "log_softmax.int"),
)


def _register_autocast(library: torch.library.Library) -> None:
    for names, dtype in ((_IN_HALF, None), (_IN_FLOAT, torch.float32)):
        for name in names:
            packet, _, overload = name.partition(".")
            op = getattr(getattr(aten, packet), overload or "default")
            library.impl(name, functools.partial(_cast_and_call, op, dtype), "AutocastPrivateUse1")


def _cast_and_call(op: Any, dtype: torch.dtype | None, *args: Any, **kwargs: Any) -> Any:
    target = dtype or torch.get_autocast_dtype("npu")

    def cast(value: Any) -> Any:
        half_or_float = is_npu(value) and value.is_floating_point() and value.itemsize < 8
        return value.to(target) if half_or_float else value

    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    with torch._C._ExcludeDispatchKeyGuard(autocast):
        return op(*map_nested(cast, args), **map_nested(cast, kwargs))


# ---- Installation -------------------------------------------------------------------------------


def install(module: ModuleType) -> None:
    """Give torch the device "npu", with ``module`` as ``torch.npu``."""
    _setup_privateuseone_for_python_backend("npu", backend_module=module)
    formats = _formats.get_npu_format, _formats.npu_format_cast
    kernels.use_memory(_new_on_card, module.current_device, *formats)
    torch.nn.Module.to = _formats.module_to
    every, library = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend([every, library])
    every.fallback(kernels.run, "PrivateUse1")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _register_operators(library)
    _register_autocast(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "overriding a kernel": that is the purpose
        _let_parameters_move(library)
        _pin_memory_by_copying(library)
    _make_storages_loadable()


def _let_parameters_move(library: torch.library.Library) -> None:
    """Let ``parameter.data = npu_tensor`` keep the parameter's identity, as torch_npu does."""

    def compatible(left: torch.Tensor, right: torch.Tensor) -> bool:
        return {left.device.type, right.device.type} <= {"cpu", "npu"}

    name, key = "_has_compatible_shallow_copy_type", "CompositeImplicitAutograd"
    library.impl(name, compatible, key, allow_override=True)


def _pin_memory_by_copying(library: torch.library.Library) -> None:
    def pin(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
        copy = tensor.clone()
        _pinned.add(copy.untyped_storage()._cdata)
        return copy

    library.impl("_pin_memory", pin, "CPU", allow_override=True)
    is_pinned = lambda tensor, device=None: tensor.untyped_storage()._cdata in _pinned  # noqa: E731
    library.impl("is_pinned", is_pinned, "CPU", allow_override=True)


def _make_storages_loadable() -> None:
    """Teach torch.load to put storages onto the card; torch would need a C++ allocator."""
    new = torch.UntypedStorage.__new__

    def storage_on_card(cls: type, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        if device is None:
            return new(cls, *args, **kwargs)
        if torch.device(device).type != "npu":
            return new(cls, *args, device=device, **kwargs)
        size = args[0] if args else 0
        return _empty([size], torch.uint8, device=torch.device(device)).untyped_storage()

    def tag(storage: torch.UntypedStorage) -> str | None:
        return f"npu:{storage.device.index}" if storage.device.type == "npu" else None

    def restore(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
        if not location.startswith("npu"):
            return None
        values = torch.empty(0, dtype=torch.uint8).set_(storage)
        return _new_on_card(values, _card(torch.device(location))).untyped_storage()

    torch.UntypedStorage.__new__ = storage_on_card
    torch.serialization.register_package(5, tag, restore)
