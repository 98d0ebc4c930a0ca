"""Files that are either whole or not there."""

import contextlib
import os
from pathlib import Path

from runtime.errors import RunError


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 file so that no reader, and no interruption, ever sees half of it.

    Raises:
        RunError: it cannot be written; the former file, if any, is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
