"""``torch_npu.npu.utils``: the questions about the platform, and the overflow flag."""

import torch
from simnpu import chip

import torch_npu


def get_cann_version(module: str = "CANN") -> str:
    """Return the version of CANN; there is none here."""
    return ""


def is_support_inf_nan() -> bool:
    """Whether the chip keeps inf and nan, or saturates."""
    return not chip.FIRST_GENERATION


def get_npu_overflow_flag() -> bool:
    """Read the flag of a chip that saturates; waits for the card.

    Raises:
        RuntimeError: the chip keeps inf and nan.
    """
    if is_support_inf_nan():
        raise RuntimeError("Unsupported api when soc_version >= Ascend910B1")
    status = torch_npu.npu_get_float_status(torch.zeros(8, device="npu"))
    return bool(status.cpu()[0] != 0)


def clear_npu_overflow_flag() -> None:
    """Lower the flag of a chip that saturates."""
    if not is_support_inf_nan():
        torch_npu.npu_clear_float_status(torch.zeros(8, device="npu"))
