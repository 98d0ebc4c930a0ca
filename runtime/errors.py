"""How a command ends: one line for the user's mistakes, never a traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Wrong input: the message says what is wrong, where, and what to do about it."""

    exit_status = 2


class RunError(UserError):
    """The input was fine, the run failed: a loss that overflowed, a full disk."""

    exit_status = 1


def run_main(main: Callable[[], int | None]) -> int:
    """Call `main` and return the exit status of the process.

    A UserError becomes one line `error: …` on standard error; Ctrl-C becomes status 130. Other
    exceptions are bugs and keep their traceback.
    """
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def printable(value: object) -> str:
    """Return `value` as text on one line: line breaks and other control characters are escaped.

    Logs are read by programs, and a file's name may hold anything.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)
    )
