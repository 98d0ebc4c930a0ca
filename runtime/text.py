"""Texts from outside, fit for a line of a log."""


def printable(value: object) -> str:
    """Return `value` as text on one line: line breaks and other control characters are escaped.

    Logs are read by programs, and a file's name may hold anything.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)
    )
