"""From image files to training data: (low, high resolution) pairs and the patches of each."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from imaging.resize import BICUBIC, modelzoo_pair
from imaging.sources import ImageError, open_header, open_image

BLOCK_VALUES = 2**20  # patches are copied and written 4 MB at a time; h5py takes 0.1 ms a call


def pair_size(path: Path, scale: int) -> tuple[int, int]:
    """Return (height, width) of the pair that an image gives, from the file's header alone.

    Raises:
        ImageError: not an image.
    """
    with open_header(path) as image:
        return image.height // scale * scale, image.width // scale * scale


def modelzoo_pairs(
    paths: Sequence[Path], scale: int, jobs: int, sizes: Sequence[float] = (1.0,)
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the (lr, hr) pairs of each image by the `modelzoo` protocol, in order.

    There is one for each size, to which part of its sides the image is resized beforehand, with
    Pillow's bicubic. It is decoded once.

    Threads suffice, as Pillow works without Python's lock, and save copying pairs between
    processes; no more than `jobs` images are made ahead of the one in use.

    Raises:
        ImageError: an image that is unreadable, truncated, smaller than the scale or not 8 bits
            deep.
    """
    with ThreadPoolExecutor(jobs) as pool:
        ahead: deque[Future] = deque()
        for path in paths:
            ahead.append(pool.submit(_read_pairs, path, scale, sizes))
            if len(ahead) > jobs:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def patch_grid(shape: tuple[int, int], size: int, stride: int) -> tuple[int, int]:
    """Return (rows, columns) of the patches that an image of at least size×size pixels gives."""
    height, width = shape
    return (height - size) // stride + 1, (width - size) // stride + 1


def patch_blocks(image: np.ndarray, size: int, stride: int) -> Iterator[np.ndarray]:
    """Cut an H×W image into patches, rows first, then columns; yield n×size×size blocks."""
    image = np.ascontiguousarray(image)
    rows, columns = patch_grid(image.shape, size, stride)
    down, right = image.strides
    # A patch's row as one item: NumPy copies that in one go instead of value by value.
    item = np.dtype((np.void, size * right))
    strides = (stride * down, stride * right, down)
    grid = np.ndarray((rows, columns, size), item, buffer=image, strides=strides)
    step = max(1, BLOCK_VALUES // (columns * size * size))
    for top in range(0, rows, step):
        yield grid[top : top + step].copy().view(image.dtype).reshape(-1, size, size)


def _read_pairs(
    path: Path, scale: int, sizes: Sequence[float]
) -> list[tuple[np.ndarray, np.ndarray]]:
    image = open_image(path).convert("RGB")
    if min(image.size) < scale:
        raise ImageError(f"{path} is {image.width}×{image.height}, less than the scale; remove it")
    shapes = ([max(scale, round(side * size)) for side in image.size] for size in sizes)
    return [modelzoo_pair(image.resize((w, h), BICUBIC), scale) for w, h in shapes]
