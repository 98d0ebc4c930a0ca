"""Arrays in HDF5 files, as this project and other SRCNN code write them: names, axes, range."""

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import h5py
import numpy as np
import torch

from runtime.errors import UserError, first_line, lack_of_memory, printable

Member = TypeVar("Member", h5py.Dataset, h5py.Group)

# What h5py raises on a file with wrong bytes.
DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError)
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)
AGAIN = "make it again (prepare.py --force)"  # without, prepare.py keeps the files that are there
MOST_COMPRESSED = 1100  # gzip shrinks no data to less than a thousandth
BEYOND = -0.5, 2.0  # of 0–1: bicubic goes beyond it where an edge is sharp
SAMPLE = 1024  # patches that tell the range of values

# Input and target: prepare.py's, and those of SRCNN's own MATLAB code for Caffe and its heirs.
NAMES = (("lr", "hr"), ("LR", "HR"), ("data", "label"))
# Of a luminance plane, with the number of a patch first or, as h5py shows what MATLAB calls
# N×1×W×H, last. An axis "1" has one entry.
PATCHES = ("nhw", "hwn", "n1hw", "nhw1", "hw1n")
IMAGES = ("hw", "1hw", "hw1", "11hw", "1hw1")


class Part(NamedTuple):
    """Which numbers, rows and columns of a dataset; all where it is not said."""

    n: slice | list[int] = slice(None)
    h: slice | None = None
    w: slice | None = None


WHOLE = Part()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what h5py raises on a damaged file into a UserError."""
    try:
        yield
    except DAMAGE as error:
        if lack_of_memory(error):
            raise
        raise UserError(
            f"{path} cannot be read ({first_line(error)}); it is damaged, {AGAIN}"
        ) from None


def open_file(path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises:
        UserError: no such file, it may not be read, another program is writing it, or it is no
            HDF5 file.
    """
    try:
        return _open(path)
    except FileNotFoundError:
        raise UserError(f"no dataset file {path}; prepare.py makes it") from None
    except PermissionError:
        raise UserError(f"cannot read {path}: Permission denied") from None
    except OSError as error:
        if "unable to lock file" in str(error) or "already open for write" in str(error):
            raise UserError(
                f"{path} is open in another program, or one that wrote it was killed; "
                f"close that program, or make the file again (prepare.py --force)"
            ) from None
        raise UserError(f"{path} is no readable HDF5 file ({error}); {AGAIN}") from None


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        # Some file systems over a network cannot lock, and reading does without. What is open
        # without a lock, as in the process that this one was forked from, is opened so again.
        if error.errno not in NO_LOCKS and "locking flag" not in str(error):
            raise
    return h5py.File(path, "r", locking=False)


def members(file: h5py.File, path: Path, kind: type[Member]) -> tuple[Member, Member]:
    """Return input and target of a file, two datasets or two groups of these.

    Raises:
        UserError: they are not there, or lie in another file.
    """
    names = next((pair for pair in NAMES if set(pair) <= set(file)), NAMES[0])
    low, high = (member(file, path, name, kind) for name in names)
    return low, high


def member(parent: h5py.Group, path: Path, name: str, kind: type[Member]) -> Member:
    """Return `parent[name]`, which must lie in this very file: links could lead anywhere."""
    link = parent.get(name, getlink=True)
    found = parent[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(found, kind):
        raise UserError(f"{path} has no {kind.__name__.lower()} {name!r}; see docs/data.md")
    if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual):
        raise UserError(f"{path}: {name!r} keeps its values in another file, which is not followed")
    return found


class StoredArray:
    """Where the planes of a dataset lie, and how its numbers become 0–1. Holds no open file.

    Args:
        path: the file, for messages.
        dataset: numbers in one of the layouts.
        layouts: letters for its axes, `PATCHES` or `IMAGES`, the likeliest first.

    Attributes:
        axes: the layout: the first that has square planes, else the first that fits at all.
        sizes: the length of the axes n, h and w.
        cut: rows and columns left out on each side.

    Raises:
        UserError: other axes, no numbers, or more values than the file can hold.
    """

    def __init__(self, path: Path, dataset: h5py.Dataset, layouts: tuple[str, ...]) -> None:
        self.path, self.name, self.cut = path, _plain(dataset), 0
        shape, what = dataset.shape, f"{path}: {self.name}"
        fits = [axes for axes in layouts if _fits(axes, shape)]
        if not fits:
            known = ", ".join("×".join(axes).upper() for axes in layouts)
            raise UserError(f"{what} has shape {shape}; expected luminance as {known}, no size 0")
        if dataset.dtype.kind not in "fui":
            raise UserError(f"{what} holds {dataset.dtype}, expected numbers")
        if dataset.nbytes > MOST_COMPRESSED * dataset.id.get_storage_size():
            raise UserError(f"{what} claims more values than the file holds; {AGAIN}")
        square = [axes for axes in fits if shape[axes.index("h")] == shape[axes.index("w")]]
        self.axes = (square or fits)[0]
        self.sizes = {axis: n for axis, n in zip(self.axes, shape, strict=True) if axis != "1"}
        self.is_real = dataset.dtype.kind == "f"

    @property
    def plane(self) -> tuple[int, int]:
        """(height, width) of a plane."""
        return self.sizes["h"] - 2 * self.cut, self.sizes["w"] - 2 * self.cut

    def find_unit(self, file: h5py.File) -> float:
        """Return what 1 is in the file by its first values: 1, or 255; flat black tells nothing."""
        greatest = self._values(file, Part(n=slice(0, SAMPLE))).max() if self.is_real else 255.0
        return 1.0 if 0.0 < greatest <= BEYOND[1] else 255.0

    def read(self, file: h5py.File, unit: float, part: Part = WHOLE) -> torch.Tensor:
        """Read n×H×W or H×W float32, 0–1.

        Args:
            file: the file, open.
            unit: what 1 is in the file.
            part: what of it.

        Raises:
            UserError: values that are not finite, or of another range.
        """
        values = torch.from_numpy(self._values(file, part))
        least, greatest = (float(value) for value in values.aminmax())
        if not math.isfinite(least) or not math.isfinite(greatest):
            raise UserError(f"{self.path}: {self.name} holds values that are not finite; {AGAIN}")
        if unit == 1.0 and greatest > BEYOND[1]:
            raise UserError(
                f"{self.path}: {self.name} begins with values of 0–1 and goes on with larger ones; "
                f"write 0–255 throughout"
            )
        if least < BEYOND[0] * unit or greatest > BEYOND[1] * unit:
            raise UserError(
                f"{self.path}: {self.name} holds values from {least:g} to {greatest:g}; "
                f"expected 0–255 or 0–1"
            )
        return values.div_(unit)

    def _values(self, file: h5py.File, part: Part) -> np.ndarray:
        height, width = self.plane
        rows, columns = part.h or slice(0, height), part.w or slice(0, width)
        index = {
            "1": 0,
            "n": part.n,
            "h": slice(rows.start + self.cut, rows.stop + self.cut),
            "w": slice(columns.start + self.cut, columns.stop + self.cut),
        }
        with np.errstate(over="ignore"):  # infinity is told
            values = np.asarray(
                file[self.name][tuple(index[axis] for axis in self.axes)], dtype=np.float32
            )
        return values if self.axes[-1] != "n" else np.ascontiguousarray(np.moveaxis(values, -1, 0))


class StoredPair:
    """Input and target of the same planes.

    The target may be the input's middle, as SRCNN's own code writes it: the input is cut then.

    Args:
        path: the file, for messages.
        low: the input's dataset.
        high: the target's.
        layouts: see `StoredArray`.

    Raises:
        UserError: they are not of one size and number; and as `StoredArray`.
    """

    def __init__(
        self, path: Path, low: h5py.Dataset, high: h5py.Dataset, layouts: tuple[str, ...]
    ) -> None:
        self.sides = tuple(StoredArray(path, dataset, layouts) for dataset in (low, high))
        shapes = [side.sizes for side in self.sides]
        margins = {shapes[0][axis] - shapes[1][axis] for axis in "hw"}
        margin = margins.pop()
        if shapes[0].get("n") != shapes[1].get("n") or margins or margin < 0 or margin % 2:
            text = " and ".join(
                "×".join(str(shape[a]) for a in "nhw" if a in shape) for shape in shapes
            )
            raise UserError(
                f"{path}: shapes of {_plain(low)} and {_plain(high)} differ, {text}; "
                f"expected the input enlarged to the size of the target"
            )
        self.sides[0].cut = margin // 2
        self.units: tuple[float, ...] = (255.0, 255.0)  # what 1 is in the file

    @property
    def plane(self) -> tuple[int, int]:
        """(height, width) of a plane."""
        return self.sides[0].plane

    def find_units(self, file: h5py.File) -> tuple[float, ...]:
        """See from the first values of each side what 1 is in the file; keep and return that."""
        self.units = tuple(side.find_unit(file) for side in self.sides)
        return self.units

    def read(self, file: h5py.File, part: Part = WHOLE) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a part of both, as `StoredArray.read` does."""
        low, high = (
            side.read(file, unit, part) for side, unit in zip(self.sides, self.units, strict=True)
        )
        return low, high

    def print_notes(self) -> None:
        """Name in the log what is unusual."""
        for side, unit in zip(self.sides, self.units, strict=True):
            group = side.name.partition("/")[0]
            for holds, what in (
                (
                    side.axes[-1] == "n",
                    "has its patches along the last axis, as in MATLAB",
                ),
                (unit == 1.0, "holds 0–1 where 0–255 is usual, and is read as that"),
                (side.cut > 0, f"is cut to its middle, {'×'.join(map(str, side.plane))}"),
            ):
                if holds:
                    print(f"note: {printable(side.path)}: {group} {what}")


def _plain(dataset: h5py.Dataset) -> str:
    return str(dataset.name).removeprefix("/")


def _fits(axes: str, shape: tuple[int, ...]) -> bool:
    return len(axes) == len(shape) and all(
        n == 1 if axis == "1" else n > 0 for axis, n in zip(axes, shape, strict=True)
    )
