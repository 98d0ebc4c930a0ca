"""Which cards the simulation has, read from the environment as the platform reads it."""

import os


def soc_name() -> str:
    """Name of the chip, such as ``Ascend910B1``."""
    return os.environ.get("NPU_SIM_SOC", "Ascend910B1")


def has_bfloat16() -> bool:
    """Ascend 910A has no bfloat16; 910B and later have it."""
    return soc_name().startswith("Ascend910B")


def count() -> int:
    """Number of cards that the process sees.

    ``ASCEND_RT_VISIBLE_DEVICES`` is a list of ascending card numbers; it ends at the first entry
    that names no card.
    """
    cards = int(os.environ.get("NPU_SIM_DEVICES", "0"))
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "")
    if not visible:
        return cards
    previous, seen = -1, 0
    for entry in visible.split(","):
        if not entry.strip().isdigit() or not previous < int(entry) < cards:
            break
        previous, seen = int(entry), seen + 1
    return seen
