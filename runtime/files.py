"""Files that are either whole or not there, and tensors read without running code."""

import contextlib
import os
import pickle
import re
import secrets
import stat
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from runtime.errors import RunError, UserError, first_line, lack_of_memory

SHOWN = 54  # characters of a name in that of its temporary file: at most 216 of 255 bytes


@contextlib.contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside `path`; flush it to disk and rename it when all went well.

    No reader, and no interruption, ever sees half a file; threads may write side by side. The
    folder is made if need be.

    Raises:
        RunError: it cannot be written; the former file, if any, is untouched.
    """
    place = Path(os.path.realpath(path))  # of what a link leads to; the link stays
    temporary = place.with_name(f".{place.name[:SHOWN]}.{secrets.token_hex(8)}.tmp")
    try:
        _refuse_others(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(place)
        _flush_name(place.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Tell whether a file is what `whole_file` leaves where a process is killed."""
    return bool(re.fullmatch(r"\..+\.[0-9a-f]{16}\.tmp", path.name)) and path.is_file()


def file_name(text: str) -> str:
    """Return `text` as the name of a file: UTF-8 on the disk, whatever the locale is."""
    return os.fsdecode(text.encode())


def check_writable(path: Path | str) -> None:
    """Fail now where `whole_file(path)` would fail after hours; leaves nothing behind.

    Raises:
        RunError: no file can be made there.
    """
    place = Path(os.path.realpath(path))
    try:
        _refuse_others(place)
        folder = next(folder for folder in place.parents if folder.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None


def refuse_inputs(option: str, path: Path, inputs: Iterable[Path]) -> None:
    """Raise UserError where the file that an option names is one of those that are read."""
    place = os.path.realpath(path)
    if any(os.path.realpath(each) == place for each in inputs):
        raise UserError(f"{option} {path} is read here; name another file")


def is_file(path: Path) -> bool:
    """Tell whether a file is there, other than a folder, a device and the like.

    Raises:
        PermissionError: a folder on the way may not be entered; Path.is_file, since 3.14, says no.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except PermissionError:
        raise
    except (OSError, ValueError):
        return False


def _refuse_others(path: Path) -> None:
    """Raise OSError for what is there and no file, and for an impossible name."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise OSError("it is a folder")
        if not stat.S_ISREG(mode):
            raise OSError("it is no regular file")


def _flush_name(folder: Path) -> None:
    """Have a rename on the disk, too; not every file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 file as a whole, or raise RunError; names that are not UTF-8 are escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file as a whole, or raise RunError."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def load_tensors(source: Path | str | BinaryIO) -> object:
    """Return the tensors, numbers, texts and containers in a file of torch.save, on the CPU.

    No code from the file is run. A file named `.safetensors` is read as that.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else is wrong; one line says what.
    """
    import torch  # noqa: PLC0415 - loads slowly, and most that write files do without

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd pickle protocols; the error says enough
            if isinstance(source, str | Path) and str(source).lower().endswith(".safetensors"):
                from safetensors.torch import load_file  # noqa: PLC0415 - optional

                return load_file(source)
            return torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except ImportError:
        raise ValueError("safetensors is not installed; pip install safetensors") from None
    except (pickle.UnpicklingError, LookupError):
        raise ValueError("it holds more than tensors, or is damaged") from None
    except Exception as error:  # damaged bytes make the unpickler raise whatever they lead to
        if lack_of_memory(error):
            raise
        raise ValueError(first_line(error)[:200]) from None
