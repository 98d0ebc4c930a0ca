"""Dataset folders as prepare.py leaves them, of small made-up pictures."""

from pathlib import Path

import h5py
import numpy as np


def blocks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return luminance in squares of one level each, which have edges to restore."""
    coarse = rng.uniform(16, 235, (height // 8 + 1, width // 8 + 1))
    return np.kron(coarse, np.ones((8, 8)))[:height, :width].astype(np.float32)


def blurred(hr: np.ndarray) -> np.ndarray:
    """Return the mean of each pixel and its neighbours."""
    return sum(np.roll(hr, shift, axis) for shift in (-1, 0, 1) for axis in (-1, -2)) / 6


def save_dataset(
    folder: Path, patch: tuple[int, int] = (33, 33), image: tuple[int, int] = (96, 100)
) -> Path:
    """Write 44 patches, 6 images to crop from and 3 to evaluate; each image is a row higher."""
    rng = np.random.default_rng(7)
    for name in ("train", "val"):
        (folder / name).mkdir()
    with h5py.File(folder / "train/T91_x3.h5", "w") as file:
        file["hr"] = np.stack([blocks(rng, *patch) for _ in range(44)])
        file["lr"] = blurred(file["hr"][:])
    for path, count in (("train/T91_x3_images.h5", 6), ("val/Set5_x3.h5", 3)):
        save_images(folder / path, [blocks(rng, image[0] + i, image[1]) for i in range(count)])
    return folder


def save_images(path: Path, images: list[np.ndarray]) -> None:
    """Write whole images, with names."""
    with h5py.File(path, "w") as file:
        for i, hr in enumerate(images):
            file[f"hr/{i}"] = hr
            file[f"lr/{i}"] = blurred(hr)
        file.attrs["names"] = [f"picture{i}" for i in range(len(images))]
