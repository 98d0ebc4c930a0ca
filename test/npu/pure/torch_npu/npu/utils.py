"""``torch_npu.npu.utils``: the questions about the platform."""

from simnpu import cards


def get_cann_version(module: str = "CANN") -> str:
    """Return the version of CANN; there is none here."""
    return ""


def is_support_inf_nan() -> bool:
    """Whether the chip keeps inf and nan, or saturates."""
    return cards.has_bfloat16()
