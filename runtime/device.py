"""Where a run computes: chooses the device and asks it what all kinds of devices can tell."""

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Generic, TypeVar

import torch

from runtime.errors import RunError, UserError, first_line
from runtime.memory import available_memory
from runtime.numbers import from_environment
from runtime.torch_build import aborts

T = TypeVar("T")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MOST_KEPT = 32 * 2**20  # bytes of a piece; what is larger goes back; older glibc takes no more
COLLECTIVES = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}
VISIBLE_NPUS = "ASCEND_RT_VISIBLE_DEVICES"
# cuBLAS reads its own at the first product of matrices, HCCL its own when processes join.
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "HCCL_DETERMINISTIC": "true"}


@dataclass(frozen=True)
class Choice(Generic[T]):
    """Something chosen (a device, a precision) and the reason, for the log."""

    value: T
    reason: str


def choose_device(name: str, local_rank: int | None = None) -> Choice[torch.device]:
    """Choose the device of this process and make it the current one.

    Args:
        name: "auto" (NPU, then CUDA, then CPU), "npu", "cuda" or "cpu".
        local_rank: number of this process on its machine, where a launcher gave one.

    Returns:
        The torch.device and why it was chosen.

    Raises:
        UserError: the device that was asked for is not there; says what is missing.
    """
    missing = {"npu": why_no_npu, "cuda": why_no_cuda, "cpu": lambda: ""}
    reason = "auto"
    for kind in missing if name == "auto" else (name,):
        why = missing[kind]()
        if not why:
            return Choice(_use(kind, local_rank), reason if name == "auto" else "as asked")
        reason += f"; no {kind}: {why}"
    raise UserError(f"--device {name}: {why}")


def why_no_npu() -> str:
    """Return why no NPU can be used, or nothing when one can. Imports torch_npu if installed."""
    if importlib.util.find_spec("torch_npu") is None:
        return "torch_npu is not installed"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("torch_npu")
        if torch.version.cuda and aborts(version, torch.version.cuda):
            return (
                f"torch_npu {version} aborts beside a torch for CUDA {torch.version.cuda}; "
                f"see train.py --check"
            )
    try:
        importlib.import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:
        why = first_line(error)
        unfit = "undefined symbol" in why  # it is there, and made for another torch or CANN
        remedy = "see train.py --check" if unfit else "source CANN's set_env.sh first"
        return f"torch_npu cannot be loaded ({why}); {remedy}"
    if module(torch.device("npu")).is_available():
        return ""
    visible = os.environ.get(VISIBLE_NPUS)
    shown = "" if visible is None else f" and {VISIBLE_NPUS}={visible}"
    return f"torch_npu finds no card; see npu-smi info{shown}"


def why_no_cuda() -> str:
    """Return why no CUDA device can be used, or nothing when one can."""
    if not torch.backends.cuda.is_built():
        return "this PyTorch was built without CUDA"
    with warnings.catch_warnings(record=True):  # an old driver, an old GPU; the reason says it
        if not torch.cuda.is_available():
            return "PyTorch finds no GPU or no driver"
        made_for = torch.cuda.get_arch_list()
        gpus = range(torch.cuda.device_count())
        capabilities = [torch.cuda.get_device_capability(gpu) for gpu in gpus]
    if torch.version.hip or not made_for:
        return ""
    if any(_has_code(made_for, capability) for capability in capabilities):
        return ""
    return (
        f"PyTorch {torch.__version__} has no code for {torch.cuda.get_device_name(0)} "
        f"(sm_{capabilities[0][0]}{capabilities[0][1]}), only for {' '.join(made_for)}"
    )


def _has_code(made_for: list[str], capability: tuple[int, int]) -> bool:
    """Tell whether a build's code runs on a GPU: on later ones of its kind, as PTX on all later."""
    for architecture in made_for:  # sm_86, sm_90a, compute_120
        kind, _, number = architecture.rstrip("af").partition("_")
        made = divmod(int(number), 10)
        if made <= capability and (kind == "compute" or made[0] == capability[0]):
            return True
    return False


def module(device: torch.device) -> ModuleType:
    """Return torch.npu, torch.cuda or torch.cpu, which share what is needed of them."""
    return getattr(torch, device.type)


def describe(device: torch.device) -> str:
    """Return the name of the chip."""
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    return module(device).get_device_name(device)


def has_bf16() -> bool:
    """Tell whether the CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX)."""
    get = getattr(torch.cpu, "get_capabilities", None)  # recent PyTorch only
    capabilities = get() if get else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def card_has_bf16(device: torch.device) -> bool:
    """Tell whether a GPU or an NPU has units for bfloat16; PyTorch counts GPUs that emulate it."""
    if device.type == "cuda" and not torch.version.hip:
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return module(device).is_bf16_supported()


def optimizer_options(device: torch.device) -> dict[str, bool]:
    """Return what PyTorch's optimizers must be told on a device: no `foreach` on a CPU.

    They would find out by themselves, but torch_npu, once imported, asks a card, there or not.
    """
    return {"foreach": False} if device.type == "cpu" else {}


def matrix_type(device: torch.device) -> torch.dtype:
    """Return the type that a device multiplies small matrices fastest in, half precision or fp32.

    A CPU's is fp32: one without units for bf16 takes 20 times as long for those of Muon in bf16.
    """
    if device.type != "cpu" and card_has_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "npu" else torch.float32


def keep_plain_formats(device: torch.device) -> None:
    """Keep an NPU from storing what comes to it in formats of its own, whose views mislead."""
    if device.type == "npu":
        module(device).config.allow_internal_format = False


def has_fp32(device: torch.device) -> bool:
    """Tell whether a device has convolutions in fp32: an Ascend 910A computes those in fp16."""
    return device.type != "npu" or module(device).is_bf16_supported()


def keep_fp32(device: torch.device) -> None:
    """Let a card compute convolutions in fp32 as that; by default many round their inputs.

    GPUs (TF32) and Ascend's A2 and A3 (HF32) to 11 or 12 significant bits: that changes a picture
    by more than the bfloat16 that upscale.py takes on a CPU, and does not take for 16-bit pictures.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    elif device.type == "npu":
        module(device).conv.allow_hf32 = False


def saturates(device: torch.device) -> bool:
    """Tell whether a device makes the largest number of what overflows, not infinity (910A)."""
    return device.type == "npu" and not module(device).utils.is_support_inf_nan()


def overflowed(device: torch.device) -> bool:
    """Tell whether anything overflowed since the last call, on a device that saturates.

    Waits for the device. Others return False: there, the values tell.
    """
    if not saturates(device) or not module(device).get_npu_overflow_flag():
        return False
    module(device).clear_npu_overflow_flag()
    return True


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        module(device).synchronize(device)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on the device; on the CPU, each local process's part."""
    if device.type == "cpu":
        return available_memory() // (from_environment("LOCAL_WORLD_SIZE") or 1)
    return module(device).mem_get_info()[0]


def set_up_cpu() -> None:
    """Save a CPU two detours in this thread, and in those that it will start.

    What is freed stays with this process, where the C library is glibc. By itself it returns the
    activations of each step to the system, and gets them back page by page, filled with zeros: a
    tenth of the time that a step takes.

    Numbers below 1e-38 become 0. A map that ReLU keeps at 0 leaves such to the optimizer, whose
    averages of its gradients fade; on Intel's cores each operation on one takes 100 cycles or more.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MOST_KEPT)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    torch.set_flush_denormal(True)


def be_deterministic() -> None:
    """Let this process use deterministic algorithms only; call it before processes join."""
    for name, value in DETERMINISTIC.items():
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True)
    if filling := getattr(torch.utils, "deterministic", None):  # torch 2.2 and later
        filling.fill_uninitialized_memory = False  # costs time, finds bugs only


def _use(kind: str, local_rank: int | None) -> torch.device:
    if kind == "cpu":
        set_up_cpu()
        return torch.device("cpu")
    index = _npu_index() if kind == "npu" and local_rank is None else local_rank or 0
    device = torch.device(kind, index)
    count = module(device).device_count()
    if index >= count:
        variable = "ASCEND_DEVICE_ID" if kind == "npu" else "CUDA_VISIBLE_DEVICES"
        raise UserError(
            f"{device} is not there, this machine shows {count}; "
            f"see {variable} and the number of processes"
        )
    try:
        module(device).set_device(device)
    except RuntimeError as error:
        raise RunError(
            f"{device} cannot be used ({first_line(error)}); see train.py --check"
        ) from None
    return device


def _npu_index() -> int:
    """Return the card that the platform's variables name, as an index among visible cards.

    CANN has ASCEND_DEVICE_ID be such an index; who names a card by its own number is understood
    where that is no index.
    """
    card = from_environment("ASCEND_DEVICE_ID", "NPU_CALCULATE_DEVICE") or 0
    visible = os.environ.get(VISIBLE_NPUS, "").split(",")
    if visible == [""] or card < len(visible):
        return card
    if len(visible) == 1:
        return 0
    if str(card) in visible:
        return visible.index(str(card))
    raise UserError(
        f"ASCEND_DEVICE_ID or NPU_CALCULATE_DEVICE names card {card}, which is neither index nor "
        f"number in {VISIBLE_NPUS}={','.join(visible)}"
    )
