"""Which cards the simulation has, read from the environment as the platform reads it."""

import os
import re

_FIRST_GENERATION = {f"Ascend910{name}" for name in ("A", "B", "PremiumA", "ProA", "ProB")}
_LATER = re.compile(r"Ascend910(B[1-4]|_93)")  # A2 and A3


def soc_name() -> str:
    """Name of the chip, such as ``Ascend910B1``."""
    return os.environ.get("NPU_SIM_SOC", "Ascend910B1")


def is_first_generation() -> bool:
    """Whether the chip is an Ascend 910 of 2019 (910A), not an A2 (910B1…) or A3 (910_93…).

    The first generation has no bfloat16, saturates where others give inf and nan, multiplies
    matrices in fp16 only, and keeps convolutions' weights in a format of its own.

    Raises:
        RuntimeError: torch_npu does not know the chip.
    """
    if soc_name() in _FIRST_GENERATION:
        return True
    if not _LATER.match(soc_name()):
        raise RuntimeError(f"Unsupported soc version: {soc_name()}")
    return False


def count() -> int:
    """Number of cards that the process sees.

    ``ASCEND_RT_VISIBLE_DEVICES`` is a list of card numbers, read up to the first character that is
    neither digit nor comma, and up to the first card that is not there. No card is seen where the
    numbers do not ascend.
    """
    cards = int(os.environ.get("NPU_SIM_DEVICES", "0"))
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    if visible is None:
        return cards
    listed = re.match(r"(\d+(,\d+)*)?", visible)[0]
    previous, seen = -1, 0
    for card in map(int, filter(None, listed.split(","))):
        if card <= previous:
            return 0
        if card >= cards:
            break
        previous, seen = card, seen + 1
    return seen
