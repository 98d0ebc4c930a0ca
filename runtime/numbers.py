"""Numbers that people and platforms write: on command lines and in the environment."""

import argparse
import math
import os
from collections.abc import Callable
from typing import TypeVar

from runtime.errors import UserError

Number = TypeVar("Number", int, float)


def number(
    kind: Callable[[str], Number],
    at_least: float = -math.inf,
    *,
    above: float = -math.inf,
    at_most: float = math.inf,
) -> Callable[[str], Number]:
    """Return an argparse type that reads an int or a float and refuses what is out of range."""
    text = "a whole number" if kind is int else "a number"
    text += f", {at_least:g} or more" if at_least > -math.inf else ""
    text += f" above {above:g}" if above > -math.inf else ""
    text += f", at most {at_most:g}" if at_most < math.inf else ""

    def read(word: str) -> Number:
        try:
            value = kind(word)
        except ValueError:
            value = None
        if value is None or not (above < value < math.inf and at_least <= value <= at_most):
            raise argparse.ArgumentTypeError(f"{word!r} is not {text}")
        return value

    return read


NATURAL = number(int, 0)
COUNT = number(int, 1, at_most=10**9)  # what comes of it stays within 63 bits
SEED = number(int, 0, at_most=10**12)  # an epoch's is a million times as large, in 63 bits
POSITIVE = number(float, above=0, at_most=1e30)  # fp32 ends at 3e38


def from_environment(*variables: str) -> int | None:
    """Return the whole number, 0 or more, in the first of these variables that is set, or None.

    Raises:
        UserError: something else is in it.
    """
    for variable in variables:
        if text := os.environ.get(variable):
            try:
                return NATURAL(text)
            except argparse.ArgumentTypeError as error:
                raise UserError(f"{variable}: {error}") from None
    return None
