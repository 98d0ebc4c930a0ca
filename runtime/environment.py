"""Numbers that launchers and platforms put into the environment."""

import os

from runtime.errors import UserError


def number(variable: str, default: int | None = None) -> int | None:
    """Return the whole number, 0 or more, in an environment variable; not set or empty: `default`.

    Raises:
        UserError: something else is in it.
    """
    value = os.environ.get(variable, "")
    if not value:
        return default
    if not value.isdecimal():
        raise UserError(f"{variable}={value!r}; expected a whole number, 0 or more")
    return int(value)
