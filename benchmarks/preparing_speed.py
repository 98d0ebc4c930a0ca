"""prepare.py beside a plain per-patch loop: seconds, processor seconds and memory, in one run.

    python benchmarks/preparing_speed.py --images-dir T91 [--scale 3] [--repeats 5]

The plain loop makes the same pairs, appends each patch to a list, turns the lists into arrays and
writes those. `cutting` is where the two differ: from the pairs to patches in memory. `whole` is
from image files to an HDF5 file on the disk. `resizing` with Pillow, which the file format fixes
bit by bit, and `writing` that many bytes are parts of both. Each figure is the median of fresh
processes.
"""

import contextlib
import io
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import tqdm  # noqa: F401 - loaded before the clock starts, as the other libraries are
from PIL import Image

import prepare
from imaging.resize import modelzoo_rgb_pair
from imaging.sources import folder_images
from preparing.pairs import modelzoo_pairs, pair_size, patch_blocks, patch_grid
from runtime.errors import run_main
from runtime.numbers import COUNT
from runtime.options import Parser

SIZE, STRIDE = 33, 14
CORES = sorted(os.sched_getaffinity(0))


def plain_patches(image: np.ndarray) -> list[np.ndarray]:
    """Cut one image patch by patch."""
    patches = []
    for top in range(0, image.shape[0] - SIZE + 1, STRIDE):
        for left in range(0, image.shape[1] - SIZE + 1, STRIDE):
            patches.append(image[top : top + SIZE, left : left + SIZE])
    return patches


def plain_luminance(rgb: np.ndarray) -> np.ndarray:
    """Apply the formula as it is written (imaging/luminance.py)."""
    r, g, b = np.moveaxis(rgb.astype(np.float32), -1, 0)
    return 16.0 + (64.738 * r + 129.057 * g + 25.064 * b) / 256.0


def cutting_plain(folder: Path, scale: int) -> float:
    """Return the seconds that the plain loop takes to cut all pairs."""
    pairs = list(modelzoo_pairs(folder_images(folder), scale, 1))
    begin = time.perf_counter()
    for images in zip(*pairs, strict=True):
        np.array([patch for image in images for patch in plain_patches(image)])
    return time.perf_counter() - begin


def cutting_ours(folder: Path, scale: int) -> float:
    """Return the seconds that prepare.py's way takes for the same."""
    pairs = list(modelzoo_pairs(folder_images(folder), scale, 1))
    begin = time.perf_counter()
    for images in zip(*pairs, strict=True):
        for image in images:
            for _ in patch_blocks(image, SIZE, STRIDE):
                pass
    return time.perf_counter() - begin


def resizing(folder: Path, scale: int) -> float:
    """Return the seconds that reading and resizing the images takes."""
    begin = time.perf_counter()
    for path in folder_images(folder):
        modelzoo_rgb_pair(Image.open(path), scale)
    return time.perf_counter() - begin


def writing(folder: Path, scale: int) -> float:
    """Return the seconds that writing as many bytes as all patches have takes."""
    sizes = [pair_size(path, scale) for path in folder_images(folder)]
    count = sum(math.prod(patch_grid(size, SIZE, STRIDE)) for size in sizes)
    values = np.zeros((count, SIZE, SIZE), np.float32)
    with tempfile.NamedTemporaryFile() as output:
        begin = time.perf_counter()
        for _ in ("lr", "hr"):
            output.write(values.data)
        output.flush()
        os.fsync(output.fileno())
        return time.perf_counter() - begin


def whole_plain(folder: Path, scale: int) -> float:
    """Return the seconds from images to file with the plain loop."""
    lr, hr = [], []
    begin = time.perf_counter()
    for path in folder_images(folder):
        low, high = modelzoo_rgb_pair(Image.open(path), scale)
        lr += plain_patches(plain_luminance(low))
        hr += plain_patches(plain_luminance(high))
    with tempfile.NamedTemporaryFile(suffix=".h5") as output:
        with h5py.File(output.name, "w") as file:
            file.create_dataset("lr", data=np.array(lr))
            file.create_dataset("hr", data=np.array(hr))
        os.fsync(output.fileno())
        return time.perf_counter() - begin


def whole_ours(folder: Path, scale: int) -> float:
    """Return the seconds from images to file with prepare.py."""
    with tempfile.TemporaryDirectory() as target, contextlib.redirect_stdout(io.StringIO()):
        command = f"--output-path {target}/train.h5 --scale {scale} --jobs {len(CORES)}".split()
        begin = time.perf_counter()
        prepare.main(["--images-dir", str(folder), *command])
        return time.perf_counter() - begin


def measure(function: Callable, cores: int, folder: Path, scale: int) -> tuple[float, ...]:
    """Run in this process, on so many cores; return seconds, processor seconds, peak MB."""
    os.sched_setaffinity(0, CORES[:cores])
    begin = time.process_time()
    seconds = function(folder, scale)
    processor = time.process_time() - begin
    return seconds, processor, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    parser = Parser(__doc__)
    parser.add_argument("--images-dir", type=Path, required=True)
    parser.add_argument("--scale", type=COUNT, default=3)
    parser.add_argument("--repeats", type=COUNT, default=5)
    args = parser.parse_args()
    folder_images(args.images_dir)  # what is wrong with it is told here, not by each process
    order = resizing, writing, cutting_plain, cutting_ours, whole_plain, whole_ours
    rows = [(function, 1) for function in order]
    if len(CORES) > 1:
        rows.append((whole_ours, len(CORES)))
    results: dict = {row: [] for row in rows}
    spawn = multiprocessing.get_context("spawn")
    for _ in range(args.repeats):
        for row in rows:
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                result = pool.submit(measure, *row, args.images_dir, args.scale).result()
            results[row].append(result)
    print(f"{'':16}{'cores':>6}{'seconds':>9}{'speed':>7}{'processor s':>13}{'peak MB':>9}")
    for (function, cores), values in results.items():
        seconds, processor, memory = map(statistics.median, zip(*values, strict=True))
        if function.__name__.endswith("plain"):
            plain = seconds
        name = function.__name__.replace("_", ", ")
        speed = f"{plain / seconds:6.1f}×" if "ours" in name else ""
        print(f"{name:16}{cores:6}{seconds:9.3f}{speed:7}{processor:13.3f}{memory:9.0f}")


if __name__ == "__main__":
    sys.exit(run_main(main))
