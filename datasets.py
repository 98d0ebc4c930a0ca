"""The HDF5 files as tensors: patches for training, whole images for evaluation."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import h5py
import numpy as np
import torch
from torch.utils.data import Dataset

from arrays import (
    AGAIN,
    IMAGES,
    PATCHES,
    WHOLE,
    Part,
    StoredPair,
    member,
    members,
    open_file,
    reading,
)
from runtime.errors import UserError
from runtime.files import is_file

Pair = tuple[torch.Tensor, torch.Tensor]
BLOCK = 1024  # patches that are read in one go


def find_file(data_path: Path | str, split: str, scale: int, *suffixes: str) -> Path:
    """Return the file of a dataset folder that a run uses.

    Looks for T91 (`split` "train") or Set5 ("val"), then for the sample photographs.

    Args:
        data_path: the dataset folder.
        split: "train" or "val".
        scale: enlargement factor, part of the file's name.
        suffixes: what may end the name, the first that is there; "_images" is for the training
            images as a whole. None: nothing.

    Raises:
        UserError: there is none; the message names the command that makes it. Or its folder may not
            be entered.
    """
    folder = Path(data_path) / split
    public = {"train": "T91", "val": "Set5"}[split]
    suffixes = suffixes or ("",)
    for path in (
        folder / f"{name}_x{scale}{suffix}.h5" for name in (public, "sample") for suffix in suffixes
    ):
        try:
            if is_file(path):
                return path
        except PermissionError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
    data = Path(data_path)
    if data.is_file():
        raise UserError(f"{data_path} is a file; name the folder that prepare.py filled")
    command = f"python prepare.py --data-path {quote(str(data_path))} --scale {scale}"
    if not data.exists():
        raise UserError(f"no folder {data_path}; is its name right? {command} --download fills it")
    images = "--download"
    if any(folder.glob("sample_x*.h5")):
        images = "--sample"
    elif any(data.glob("*/*.h5")) and not (data / "images").exists():  # which --download makes
        images = "--train-images FOLDER --eval-images FOLDER"
    raise UserError(
        f"no {public}_x{scale}{suffixes[-1]}.h5 in {folder}; make it: {command} {images}"
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
            self._file, self._opened_by = open_file(self.path), os.getpid()
        return self._file

    def _close(self) -> None:
        self._opened().close()
        self._file, self._opened_by = None, 0


class TrainDataset(_FileDataset):
    """Low and high resolution patches of one HDF5 file: `lr` and `hr`, N×H×W, 0–255.

    Other names, axes and ranges that are known are read as what they are, and named in the log.

    Raises:
        UserError: not such a file. A value that is not finite is found when it is read.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        with reading(self.path), open_file(self.path) as file:
            self.pair = StoredPair(self.path, *members(file, self.path, h5py.Dataset), PATCHES)
            self.pair.find_units(file)
        self.pair.print_notes()
        self.shape = (self.pair.sides[1].sizes["n"], *self.pair.plane)

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
        return self._read(Part(n=slice(start, stop)))

    def take(self, numbers: torch.Tensor) -> Pair:
        """Read the patches with these numbers, no two alike, as `read` does, in their order."""
        rising, order = numbers.sort()  # as h5py asks for
        lr, hr = self._read(Part(n=rising.tolist()))
        places = order.argsort()
        return lr[places], hr[places]

    def _read(self, part: Part) -> Pair:
        with reading(self.path):
            lr, hr = self.pair.read(self._opened(), part)
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

    Values are 0–255, or 0–1 if those of the first image are. `shapes` are the images' (height,
    width). `names` are those that prepare.py stored; the numbers where they are not different,
    plain names of files. `images` is the number of different images, which come first; what follows
    are the same in other sizes, in this order.

    Raises:
        UserError: not such a file. A value that is not finite is found when it is read.
    """

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        with reading(self.path), open_file(self.path) as file:
            lr, hr = members(file, self.path, h5py.Group)
            if not len(lr) or set(lr) != set(hr) or set(lr) != set(map(str, range(len(lr)))):
                raise UserError(
                    f"{self.path}: groups lr and hr hold {len(lr)} and {len(hr)} entries; "
                    f'expected the same datasets "0", "1", … in both'
                )
            sides = [[member(side, self.path, str(i), h5py.Dataset) for side in (lr, hr)]
                     for i in range(len(lr))]  # fmt: skip
            self.stored = [StoredPair(self.path, low, high, IMAGES) for low, high in sides]
            units = self.stored[0].find_units(file)
            stored = np.atleast_1d(file.attrs.get("names", ()))
            names = [os.fsdecode(name) if isinstance(name, bytes) else str(name) for name in stored]
            self.images = int(file.attrs.get("images", len(self)))
        if self.images < 1 or len(self) % self.images:
            raise UserError(
                f"{self.path} says that its {len(self)} images are {self.images} in several sizes; "
                f"{AGAIN}"
            )
        for pair in self.stored:
            pair.units = units
        self.stored[0].print_notes()
        self.shapes = [pair.plane for pair in self.stored]
        usable = len(set(names)) == len(self) == len(names) and all(map(_is_plain, names))
        self.names = names if usable else [str(i) for i in range(len(self))]

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> Pair:
        """Return image `index` as (lr, hr), each 1×H×W float32, 0–1."""
        return self._read(index)

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))

    def crop(self, index: int, top: int, left: int, size: int) -> Pair:
        """Return a square piece of image `index`, each 1×size×size float32, 0–1."""
        return self._read(index, Part(h=slice(top, top + size), w=slice(left, left + size)))

    @property
    def nbytes(self) -> int:
        """Bytes that all images take in memory as float32."""
        return 2 * 4 * sum(height * width for height, width in self.shapes)

    def _read(self, index: int, part: Part = WHOLE) -> Pair:
        with reading(self.path):
            lr, hr = self.stored[index].read(self._opened(), part)
        return lr.unsqueeze(0), hr.unsqueeze(0)


class EvalDataset(ImageDataset):
    """Whole images that are all read at once, so that a bad file is an error at start."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self.pairs = [self._read(index) for index in range(len(self))]
        self._close()

    def __getitem__(self, index: int) -> Pair:
        """Return image `index` as (lr, hr), each 1×H×W float32, 0–1."""
        return self.pairs[index]


def identity(dataset: TrainDataset | ImageDataset) -> str:
    """Return what tells a set from others, wherever its folder lies; three samples tell values."""
    crc = 0
    for index in (0, len(dataset) // 2, len(dataset) - 1):
        for side in dataset[index]:
            crc = zlib.crc32(side.numpy().tobytes(), crc)
    size = f"{len(dataset):,} samples, {dataset.nbytes:,} bytes"
    return f"{dataset.path.name} ({size}, CRC-32 {crc:08x})"


def _is_plain(name: str) -> bool:
    """Whether a name from a file may become part of a file's name, and be printed."""
    return name.isprintable() and not {"/", "\\"} & set(name) and 0 < len(name.encode()) <= 200
