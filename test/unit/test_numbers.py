"""Numbers on command lines: what is taken, and what is said of what is not."""

import argparse
import re

import pytest

from runtime.numbers import number


@pytest.mark.parametrize(
    ("kind", "limits", "good", "bad", "text"),
    [
        (float, {}, ["-1e300", "7"], ["inf", "-inf", "nan", "x", ""], "a number"),
        (int, {"at_least": 0}, ["0", "7"], ["-1", "1.5", "x"], "a whole number, 0 or more"),
        (float, {"above": 0, "at_most": 0.5}, ["0.5"], ["0", "0.6"],
         "a number above 0, at most 0.5"),
        (int, {"at_least": 1, "at_most": 9}, ["1", "9"], ["0", "10"],
         "a whole number, 1 or more, at most 9"),
    ],
)  # fmt: skip
def test_numbers_within_limits(
    kind: type, limits: dict, good: list[str], bad: list[str], text: str
) -> None:
    read = number(kind, **limits)
    for word in good:
        assert read(word) == kind(word)
    for word in bad:
        with pytest.raises(
            argparse.ArgumentTypeError, match=f"^'{word}' is not {re.escape(text)}$"
        ):
            read(word)
