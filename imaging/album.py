"""Which pictures are to be enlarged, where each result goes, and what is left aside, and why."""

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from imaging.kinds import FORMATS, HEAD, PictureError, saved_suffix
from runtime.errors import first_line
from runtime.files import is_file

STREAM = "-"  # standard input, standard output
PathOrStream = Path | str  # text is STREAM
LONGEST_NAME = 255  # bytes, on every common file system
SHOWN = 5  # names in a note


@dataclass
class Plan:
    """What is to be done, and what is not."""

    work: dict[PathOrStream, PathOrStream] = field(default_factory=dict)  # source of each result
    refused: dict[PathOrStream, str] = field(default_factory=dict)  # why, by source
    folders: dict[Path, str] = field(default_factory=dict)  # those without a picture, and why
    notes: list[str] = field(default_factory=list)


def plan(
    sources: list[PathOrStream],
    output: PathOrStream,
    ending: str,
    *,
    force: bool = False,
    recursive: bool = False,
    piped: bytes = b"",
) -> Plan:
    """Find pictures, and name their results: those of a folder as they lie in it.

    Args:
        sources: files, folders, STREAM.
        output: the folder of the results, or STREAM.
        ending: of a result's name, before its suffix.
        force: overwrite results that are there.
        recursive: enter folders in folders.
        piped: what came through STREAM.

    Raises:
        PictureError: nothing can be done at all.
    """
    made = Plan()
    wanted = _wanted(sources, output, ending, recursive, piped, made)
    if output == STREAM:
        if len(wanted) != 1:
            raise PictureError(f"standard output takes one picture, not {len(wanted)}")
        made.work = {STREAM: next(iter(wanted))}
        return made
    originals = {_real(source) for source in wanted if isinstance(source, Path)}
    takers: dict[Path, list[PathOrStream]] = {}
    for source, target in wanted.items():
        if not any(_same(source, other) for other in takers.setdefault(target, [])):
            takers[target].append(source)
    writable: dict[Path, str] = {}
    present = 0
    for target, several in takers.items():
        trouble = _trouble(target, several, originals, writable)
        if trouble:
            made.refused |= dict.fromkeys(several, trouble)
        elif os.path.lexists(target) and not force:
            present += 1
        else:
            made.work[target] = several[0]
    if present:
        made.notes.append(f"{present} skipped, as the result is there; --force overwrites it")
    return made


def _wanted(
    sources: list[PathOrStream],
    output: PathOrStream,
    ending: str,
    recursive: bool,
    piped: bytes,
    made: Plan,
) -> dict[PathOrStream, Path]:
    """Return the result of each picture; of those to STREAM it does not matter."""
    wanted: dict[PathOrStream, Path] = {}
    folder = output if isinstance(output, Path) else Path()
    for source in sources:
        if isinstance(source, str):
            wanted[source] = folder / f"stdin{ending}{saved_suffix('', piped)}"
        elif _is_folder(source):
            for path, below in _pictures_in(source, output, recursive, made).items():
                wanted.setdefault(path, folder / below / _result(path, ending))
        else:
            wanted.setdefault(source, folder / _result(source, ending))
    return wanted


def _result(path: Path, ending: str) -> str:
    head = b""
    try:
        if is_file(path):
            with path.open("rb") as file:
                head = file.read(HEAD)
    except OSError:
        pass  # told when it is opened
    return f"{path.stem}{ending}{saved_suffix(path.name, head)}"


def _real(path: Path) -> Path:
    """Return where links lead to; Path.resolve raises at a loop of them, until Python 3.13."""
    return Path(os.path.realpath(path))


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir may raise PermissionError, until 3.14


def _may_be_file(path: Path) -> bool:
    try:
        return is_file(path)
    except PermissionError:
        return True  # told when it is opened


def _same(one: PathOrStream, other: PathOrStream) -> bool:
    if isinstance(one, Path) and isinstance(other, Path):
        return one == other or _real(one) == _real(other)
    return one == other


def _trouble(target: Path, sources: list, originals: set[Path], writable: dict) -> str:
    """Return why a result cannot be written, or nothing."""
    if len(sources) > 1:
        names = " and ".join(map(str, sources))
        return f"{names} would all become {target}; rename them"
    if len(os.fsencode(target.name)) > LONGEST_NAME:
        return f"the name {target.name} is longer than {LONGEST_NAME} bytes; --suffix shortens it"
    try:
        if _real(target) in originals:
            return f"would become {target}, which is to be enlarged, too"
        if target.is_dir():
            return f"would become {target}, which is a folder"
        target.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:
        return f"would become {target.name} ({first_line(error)}); name another --output"
    folder = target.parent
    if folder not in writable:
        writable[folder] = unwritable(folder)
    return writable[folder]


def unwritable(folder: Path) -> str:
    """Return why no file can be written into a folder, which may be still to be made."""
    if folder.suffix.lower() in FORMATS and not _is_folder(folder):
        return "expected a folder, and this is the name of a picture"
    there = next((f for f in (folder, *folder.parents) if os.path.lexists(f)), Path())
    try:
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return f"{there} cannot be written to ({error.strerror})"


def _pictures_in(
    folder: Path, output: PathOrStream, recursive: bool, made: Plan
) -> dict[Path, Path]:
    """Return the pictures of a folder, sorted, and where in it they lie."""
    found, others, unentered = {}, [], 0

    def unreadable(error: OSError) -> None:
        made.folders[Path(error.filename)] = f"cannot be read ({error.strerror})"

    avoided = _real(output) if isinstance(output, Path) else None
    if avoided == _real(folder):
        raise PictureError(f"--output {output} is the folder of the pictures; name another one")
    for place, folders, files in os.walk(folder, onerror=unreadable):
        here = Path(place)
        folders[:] = sorted(
            name
            for name in folders
            if not (name.startswith(".") or (here / name).is_symlink())
            and _real(here / name) != avoided
        )
        for name in sorted(files):
            path = here / name
            hidden = name.startswith(".")  # as what macOS leaves beside each picture, ._photo.jpg
            if path.suffix.lower() in FORMATS and not hidden and _may_be_file(path):
                found[path] = here.relative_to(folder)
            else:
                others.append(name)
        if not recursive:
            unentered = len(folders)
            break
    if others:
        names = ", ".join(others[:SHOWN]) + (", …" if len(others) > SHOWN else "")
        made.notes.append(f"{folder}: skipped {len(others)} (no pictures, or hidden): {names}")
    if unentered:
        made.notes.append(f"{folder}: {unentered} subfolders not entered; --recursive does")
    if not found and folder not in made.folders:
        made.folders[folder] = f"no pictures in it; expected {', '.join(FORMATS)}"
    return found
