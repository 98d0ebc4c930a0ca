"""Writing the HDF5 files that training and evaluation read, whole or not at all."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imaging.sources import image_name
from preparing.pairs import modelzoo_pairs, patch_blocks, patch_grid
from runtime.errors import printable, signals_wait
from runtime.files import whole_file

Shapes = dict[Path, tuple[int, int]]


@contextmanager
def hdf5_file(path: Path, libver: str | tuple[str, str] = "earliest") -> Iterator:
    """Open an HDF5 file that gets its name when all is written and on the disk.

    An exception, Ctrl-C included, leaves nothing, no new folder either, and a former file of that
    name as it was. Write it where `signals_wait`: HDF5 calls Python to write, and h5py makes
    another exception of what a signal's handler raises there.

    Raises:
        RunError: the place cannot be written, or the disk is full.
    """
    import h5py  # noqa: PLC0415 - `prepare.py --help` does without

    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        # When the disk is full, HDF5's own driver crashes the interpreter; a Python file does not.
        with whole_file(path) as temporary, temporary.open("w+b") as raw:
            file = None
            try:
                with signals_wait():
                    file = h5py.File(raw, "w", libver=libver)
                yield file
            except BaseException:
                with signals_wait(), suppress(Exception):  # h5py of Python 3.14 fails here, too
                    if file:
                        file.close()
                raise
            with signals_wait():
                file.close()
            raw.flush()
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # something else lies in it by now
                folder.rmdir()
        raise


def write_patches(
    path: Path, shapes: Shapes, patch_size: int, stride: int, *, scale: int, jobs: int
) -> None:
    """Write a training file: `lr` and `hr`, float32 N×patch_size×patch_size, luminance 0–255.

    The shapes give N beforehand, so the arrays lie in one piece, which reads fastest in any order,
    and only a few images are in memory at a time.

    Args:
        path: the file; its folder is made.
        shapes: (height, width) of each image's pair, in the order wanted, `patch_size` at least.
        patch_size: side of a patch, pixels.
        stride: pixels between patches, in both directions.
        scale: the pairs' scale.
        jobs: images made at the same time.
    """
    begin = time.perf_counter()
    count = sum(math.prod(patch_grid(shape, patch_size, stride)) for shape in shapes.values())
    shape = (count, patch_size, patch_size)
    with hdf5_file(path) as file:
        with signals_wait():
            datasets = [file.create_dataset(name, shape, "float32") for name in ("lr", "hr")]
        start = 0
        for pair in _pairs(path, list(shapes), scale, jobs):
            for dataset, image in zip(datasets, pair, strict=True):
                stop = start
                for block in patch_blocks(image, patch_size, stride):
                    with signals_wait():
                        dataset[stop : stop + len(block)] = block
                    stop += len(block)
            start = stop
    _report(path, f"{count:,} patches of {len(shapes)} images, x{scale}", begin)


def write_images(
    path: Path, paths: list[Path], *, scale: int, jobs: int, sizes: tuple[float, ...] = (1.0,)
) -> None:
    """Write an evaluation file: groups `lr` and `hr` with an H×W dataset per image, "0", "1", ….

    Whole training images have the same layout, and may be there in several sizes, all images in
    the first size, then all in the second, and so on; the attribute `images` is then their number.
    The attribute `names` lists the stems of their files.
    """
    begin = time.perf_counter()
    # From format 1.8 on an attribute may exceed 64 KB, as the names of 4,000 images do.
    with hdf5_file(path, libver=("v108", "latest")) as file:
        with signals_wait():
            file.attrs["names"] = [image_name(image) for image in paths]
            if len(sizes) > 1:
                file.attrs["images"] = len(paths)
        for number, pair in enumerate(_pairs(path, paths, scale, jobs, sizes)):
            image, size = divmod(number, len(sizes))
            index = size * len(paths) + image
            with signals_wait():
                file[f"lr/{index}"], file[f"hr/{index}"] = pair
    what = f" in {len(sizes)} sizes" if len(sizes) > 1 else ""
    _report(path, f"{len(paths)} whole images{what}, x{scale}", begin)


def _pairs(
    path: Path, paths: list[Path], scale: int, jobs: int, sizes: tuple[float, ...] = (1.0,)
) -> Iterator:
    from tqdm import tqdm  # noqa: PLC0415 - `prepare.py --help` does without

    pairs, count = modelzoo_pairs(paths, scale, jobs, sizes), len(paths) * len(sizes)
    return iter(tqdm(pairs, path.name, count, disable=None, leave=False, unit="image"))


def _report(path: Path, what: str, begin: float) -> None:
    size, seconds = path.stat().st_size / 1e6, time.perf_counter() - begin
    print(f"{printable(path)}: {what}, {size:.2f} MB in {seconds:.1f} s")
