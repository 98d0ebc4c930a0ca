"""Files that are either whole or not there, and tensors read without running code."""

import contextlib
import os
import pickle
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from runtime.errors import RunError


@contextlib.contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside `path`; flush it to disk and rename it when all went well.

    No reader, and no interruption, ever sees half a file. The folder is made if need be.

    Raises:
        RunError: it cannot be written; the former file, if any, is untouched.
    """
    path = Path(path)
    if path.is_dir():
        raise RunError(f"cannot write {path}: it is a folder")
    short = zlib.crc32(os.fsencode(path.name))  # the name may be as long as names can be
    temporary = path.with_name(f".{short:08x}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_name(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush_name(folder: Path) -> None:
    """Have a rename on the disk, too; not every file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 file as a whole, or raise RunError."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file as a whole, or raise RunError."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def load_tensors(source: Path | str | BinaryIO) -> object:
    """Return the tensors, numbers, texts and containers in a file of torch.save, on the CPU.

    No code from the file is run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else is wrong; one line says what.
    """
    import torch  # noqa: PLC0415 - loads slowly, and most that write files do without

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd pickle protocols; the error says enough
            return torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError:
        raise ValueError("it holds more than tensors, or is damaged") from None
    except Exception as error:  # damaged bytes make the unpickler raise whatever they lead to
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(reason or type(error).__name__) from None
