"""The HDF5 files as tensors: patches for training, whole images for evaluation."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import EllipsisType

import h5py
import numpy as np
import torch
from torch.utils.data import Dataset

from runtime.errors import UserError

Pair = tuple[torch.Tensor, torch.Tensor]
Part = slice | list[int] | tuple[slice, slice] | EllipsisType  # of a dataset in a file

# What h5py raises on a file with wrong bytes.
DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError)
BLOCK = 1024  # patches that are read in one go
MOST_COMPRESSED = 1100  # gzip shrinks no data to less than a thousandth


def find_file(data_path: Path | str, split: str, scale: int, suffix: str = "") -> Path:
    """Return the file of a dataset folder that a run uses.

    Looks for T91 (`split` "train") or Set5 ("val"), then for the sample photographs.

    Args:
        data_path: the dataset folder.
        split: "train" or "val".
        scale: enlargement factor, part of the file's name.
        suffix: "_images" for the training images as a whole.

    Raises:
        UserError: there is none; the message names the command that makes it.
    """
    folder = Path(data_path) / split
    public = {"train": "T91", "val": "Set5"}[split]
    for name in (public, "sample"):
        path = folder / f"{name}_x{scale}{suffix}.h5"
        if path.is_file():
            return path
    raise UserError(
        f"no {public}_x{scale}{suffix}.h5 in {folder}; make it: "
        f"python prepare.py --data-path {data_path} --scale {scale} --download"
    )


class _FileDataset(Dataset):
    """Opens its HDF5 file in each process on first use: no handle may cross a fork."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._opened_by = 0

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None, "_opened_by": 0}

    def _opened(self) -> h5py.File:
        if self._opened_by != os.getpid():
            self._file, self._opened_by = _open(self.path), os.getpid()
        return self._file

    def _close(self) -> None:
        self._opened().close()
        self._file, self._opened_by = None, 0


class TrainDataset(_FileDataset):
    """Low and high resolution patches of one HDF5 file: `lr` and `hr`, float, N×H×W, 0–255.

    Raises:
        UserError: not such a file. A value that is not finite is found when it is read.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        with _reading(self.path), _open(self.path) as file:
            lr, hr = (_member(file, self.path, name, h5py.Dataset) for name in ("lr", "hr"))
            _check_shapes(self.path, "lr and hr", lr, hr, dimensions=3)
            self.shape: tuple[int, int, int] = lr.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> Pair:
        """Return patch `index` as (lr, hr), each 1×H×W, 0–1."""
        lr, hr = self.read(index, index + 1)
        return lr[0], hr[0]

    def __iter__(self) -> Iterator[Pair]:
        """Yield all patches as `[]` does, but read many at a time."""
        for start in range(0, len(self), BLOCK):
            yield from zip(*self.read(start, start + BLOCK), strict=True)

    def crop(self, index: int, top: int, left: int, size: int) -> Pair:
        """Return a square piece of patch `index`, each 1×size×size, 0–1."""
        lr, hr = (side[:, top : top + size, left : left + size] for side in self[index])
        return lr, hr

    def read(self, start: int, stop: int) -> Pair:
        """Read patches [start, stop) in one go, as (lr, hr), each n×1×H×W float32, 0–1."""
        return self._read(slice(start, stop))

    def take(self, numbers: torch.Tensor) -> Pair:
        """Read the patches with these numbers, no two alike, as `read` does, in their order."""
        rising, order = numbers.sort()  # as h5py asks for
        lr, hr = self._read(rising.tolist())
        places = order.argsort()
        return lr[places], hr[places]

    def _read(self, part: Part) -> Pair:
        with _reading(self.path):
            members = [self._opened()[name] for name in ("lr", "hr")]
            lr, hr = (_tensor(self.path, member, part) for member in members)
        return lr.unsqueeze(1), hr.unsqueeze(1)

    @property
    def images(self) -> int:
        """Number of different images: each patch counts as one."""
        return len(self)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(height, width) of each patch."""
        return [self.shape[1:]] * len(self)

    @property
    def nbytes(self) -> int:
        """Bytes that the whole set takes in memory as float32."""
        return 2 * 4 * int(np.prod(self.shape))


class ImageDataset(_FileDataset):
    """Whole images, read when asked for: groups `lr` and `hr` with datasets "0", "1", …, H×W.

    Floats, 0–255. `shapes` are the images' (height, width). `names` are those that prepare.py
    stored; the numbers where they are not different, plain names of files. `images` is the number
    of different images, which come first; what follows are the same in other sizes, in this order.

    Raises:
        UserError: not such a file. A value that is not finite is found when it is read.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        with _reading(self.path), _open(self.path) as file:
            lr, hr = (_member(file, self.path, name, h5py.Group) for name in ("lr", "hr"))
            if not len(lr) or set(lr) != set(hr) or set(lr) != set(map(str, range(len(lr)))):
                raise UserError(
                    f"{self.path}: groups lr and hr hold {len(lr)} and {len(hr)} entries; "
                    f'expected the same datasets "0", "1", … in both'
                )
            self.shapes = [_image_shape(self.path, lr, hr, str(i)) for i in range(len(lr))]
            names = [str(name) for name in file.attrs.get("names", ())]
            self.images = int(file.attrs.get("images", len(self)))
        if self.images < 1 or len(self) % self.images:
            raise UserError(
                f"{self.path} says that its {len(self)} images are {self.images} in several sizes; "
                f"make it again"
            )
        usable = len(set(names)) == len(self) == len(names) and all(map(_is_plain, names))
        self.names = names if usable else [str(i) for i in range(len(self))]

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Pair:
        """Return image `index` as (lr, hr), each 1×H×W float32, 0–1."""
        return self._read(index, ...)

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))

    def crop(self, index: int, top: int, left: int, size: int) -> Pair:
        """Return a square piece of image `index`, each 1×size×size float32, 0–1."""
        return self._read(index, (slice(top, top + size), slice(left, left + size)))

    @property
    def nbytes(self) -> int:
        """Bytes that all images take in memory as float32."""
        return 2 * 4 * sum(height * width for height, width in self.shapes)

    def _read(self, index: int, part: Part) -> Pair:
        with _reading(self.path):
            members = [self._opened()[f"{name}/{index}"] for name in ("lr", "hr")]
            low, high = (_tensor(self.path, member, part).unsqueeze(0) for member in members)
        return low, high


class EvalDataset(ImageDataset):
    """Whole images that are all read at once, so that a bad file is an error at start."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self.pairs = [self._read(index, ...) for index in range(len(self))]
        self._close()

    def __getitem__(self, index: int) -> Pair:
        """Return image `index` as (lr, hr), each 1×H×W float32, 0–1."""
        return self.pairs[index]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what h5py raises on a damaged file into a UserError."""
    try:
        yield
    except DAMAGE as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} cannot be read ({reason}); it is damaged, make it again") from None


def _is_plain(name: str) -> bool:
    """Whether a name from a file may become part of a file's name, and be printed."""
    return name.isprintable() and not {"/", "\\"} & set(name) and 0 < len(name.encode()) <= 200


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise UserError(f"no dataset file {path}; prepare.py makes it") from None
    except OSError as error:
        raise UserError(f"{path} is no readable HDF5 file ({error}); make it again") from None


def _member(parent: h5py.Group, path: Path, name: str, kind: type) -> h5py.Dataset | h5py.Group:
    """Return `parent[name]`, which must lie in this very file: links could lead anywhere."""
    link = parent.get(name, getlink=True)
    member = parent[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(member, kind):
        raise UserError(f"{path} has no {kind.__name__.lower()} {name!r}; see docs/data.md")
    external = isinstance(member, h5py.Dataset) and (member.external or member.is_virtual)
    if external:
        raise UserError(f"{path}: {name!r} keeps its values in another file, which is not followed")
    return member


def _check_shapes(
    path: Path, what: str, lr: h5py.Dataset, hr: h5py.Dataset, dimensions: int
) -> None:
    if lr.shape != hr.shape:
        raise UserError(f"{path}: shapes of {what} differ, {lr.shape} and {hr.shape}")
    if len(lr.shape) != dimensions or 0 in lr.shape:
        raise UserError(f"{path}: {what} have shape {lr.shape}, expected {dimensions} sizes, no 0")
    if any(member.dtype.kind not in "fui" for member in (lr, hr)):
        raise UserError(f"{path}: {what} hold {lr.dtype} and {hr.dtype}, expected numbers")
    if any(member.nbytes > MOST_COMPRESSED * member.id.get_storage_size() for member in (lr, hr)):
        raise UserError(f"{path}: {what} claim more values than the file holds; make it again")


def _tensor(path: Path, member: h5py.Dataset, part: Part) -> torch.Tensor:
    """Read a part of a dataset as float32, scaled from 0–255 to 0–1."""
    values = torch.from_numpy(np.asarray(member[part], dtype=np.float32))
    if not torch.isfinite(values).all():
        raise UserError(f"{path}: {member.name} holds values that are not finite; make it again")
    return values.div_(255.0)


def _image_shape(path: Path, lr: h5py.Group, hr: h5py.Group, name: str) -> tuple[int, int]:
    low, high = (_member(group, path, name, h5py.Dataset) for group in (lr, hr))
    _check_shapes(path, f"lr/{name} and hr/{name}", low, high, dimensions=2)
    return low.shape
