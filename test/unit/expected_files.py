"""Images to make HDF5 files from, and what the contract says must be in those."""

from pathlib import Path

import numpy as np
from PIL import Image
from samples import noise

import prepare

BICUBIC = Image.Resampling.BICUBIC


def plain_y(image: Image.Image) -> np.ndarray:
    """The contract's luminance, written out."""
    rgb = np.array(image).astype(np.float32)
    return 16.0 + (64.738 * rgb[:, :, 0] + 129.057 * rgb[:, :, 1] + 25.064 * rgb[:, :, 2]) / 256.0


def plain_pair(path: Path, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """The contract's (lr, hr), written out."""
    hr = Image.open(path).convert("RGB")
    width, height = (hr.width // scale) * scale, (hr.height // scale) * scale
    hr = hr.resize((width, height), resample=BICUBIC)
    lr = hr.resize((width // scale, height // scale), resample=BICUBIC)
    lr = lr.resize((width, height), resample=BICUBIC)
    return plain_y(lr), plain_y(hr)


def plain_patches(paths: list[Path], scale: int, size: int = 33, stride: int = 14) -> dict:
    """The contract's training arrays, one patch after the other."""
    patches = {"lr": [], "hr": []}
    for path in paths:
        for name, image in zip(("lr", "hr"), plain_pair(path, scale), strict=True):
            for top in range(0, image.shape[0] - size + 1, stride):
                for left in range(0, image.shape[1] - size + 1, stride):
                    patches[name].append(image[top : top + size, left : left + size])
    return {name: np.array(values) for name, values in patches.items()}


def save_image(path: Path, width: int, height: int, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(width, height).convert(mode).save(path)
    return path


def prepare_file(images: Path, output: Path, *options: str) -> None:
    prepare.main(["--images-dir", str(images), "--output-path", str(output), *options])
