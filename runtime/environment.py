"""Numbers that launchers and platforms put into the environment."""

import os

from runtime.errors import UserError


def number(variable: str) -> int | None:
    """Return the whole number, 0 or more, in an environment variable; None: not set, or empty.

    Raises:
        UserError: something else is in it.
    """
    value = os.environ.get(variable, "")
    if not value:
        return None
    if not value.isdecimal():
        raise UserError(f"{variable}={value!r}; expected a whole number, 0 or more")
    return int(value)
