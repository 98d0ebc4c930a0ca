"""``torch.npu`` of the pure-Python device: what a training program asks of it."""

from types import SimpleNamespace
from typing import Any

import torch
from simnpu import cards

from torch_npu import _formats
from torch_npu.npu import amp, utils
from torch_npu.npu.utils import clear_npu_overflow_flag, get_npu_overflow_flag

__all__ = ["amp", "clear_npu_overflow_flag", "config", "conv", "get_npu_overflow_flag", "utils"]

config = _formats.Config()
conv = SimpleNamespace(allow_hf32=True)  # a mark only: convolutions are in fp32 either way
_current = 0


def is_available() -> bool:
    """Whether there is a card."""
    return cards.count() > 0


def device_count() -> int:
    """Number of cards that the process sees."""
    return cards.count()


def current_device() -> int:
    """Index of the card for tensors on plain "npu"."""
    return _current


def set_device(device: Any) -> None:
    """Make a card ("npu:0", a torch.device or an index) the current one."""
    global _current  # noqa: PLW0603 - the state that torch.npu is about
    index = _index(device)
    if not 0 <= index < cards.count():
        raise RuntimeError(f"Invalid NPU device {device}: there are {cards.count()}")
    _current = index


class device:
    """Context in which a card is the current one."""

    def __init__(self, device: Any) -> None:
        """Remember the card; None changes nothing."""
        self._index = device

    def __enter__(self) -> None:
        """Switch to the card."""
        self._before = _current
        if self._index is not None:
            set_device(self._index)

    def __exit__(self, *_: object) -> None:
        """Switch back."""
        if self._before < cards.count():
            set_device(self._before)


def _index(device: Any) -> int:
    if device is None:
        return _current
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return _current if index is None else index


def get_device_name(device: Any = None) -> str:
    """Name of the chip."""
    if not 0 <= _index(device) < cards.count():
        raise AssertionError("Invalid device id")
    return cards.soc_name()


def is_bf16_supported(including_emulation: bool = False) -> bool:
    """Whether the chip computes in bfloat16."""
    return not cards.is_first_generation()


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Return the types that ``torch.autocast("npu")`` takes."""
    return [torch.float16] + [torch.bfloat16] * is_bf16_supported()


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Return free and total memory in bytes."""
    return 8 << 30, 8 << 30


def memory_allocated(device: Any = None) -> int:
    """Return bytes in use; the simulation does not count them."""
    return 0


max_memory_allocated = memory_allocated


def synchronize(device: Any = None) -> None:
    """Wait for the card: its kernels have finished when they return."""


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """Accept a setting that changes nothing here."""


empty_cache = reset_peak_memory_stats = set_option = _do_nothing
manual_seed = manual_seed_all = _do_nothing  # random numbers come from the CPU's generator


def set_compile_mode(jit_compile: bool = False) -> None:
    """Compile kernels just in time, which goes with formats of their own, or not."""
    _formats.compile_just_in_time = jit_compile


def is_initialized() -> bool:
    """Whether the device is ready: always."""
    return True


def _is_in_bad_fork() -> bool:
    return False


def _lazy_init() -> None:
    pass


def get_rng_state(device: Any = None) -> torch.Tensor:
    """Return the state of the generator, which is the CPU's."""
    return torch.get_rng_state()


def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
    """Restore the state of the generator, which is the CPU's."""
    torch.set_rng_state(state)
