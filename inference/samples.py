"""Test images, from a folder or a dataset file, as what evaluate.py measures and people see."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ImageOps

from imaging.metrics import SSIM_WINDOW, Protocol
from imaging.pictures import with_luminance
from imaging.sources import folder_images, image_name, open_image
from runtime.errors import UserError


class Sample(NamedTuple):
    """One test image.

    Attributes:
        name: file name without its ending, or the number in a dataset file without names.
        bicubic: luminance H×W, 0–255, real; the network's input.
        original: the same of the original.
        visible_bicubic: what people see, uint8, H×W×3 or H×W.
        visible_original: the same of the original.
    """

    name: str
    bicubic: np.ndarray
    original: np.ndarray
    visible_bicubic: np.ndarray
    visible_original: np.ndarray

    def visible(self, output: np.ndarray) -> np.ndarray:
        """Return what people see of an output, H×W and 0–255: its Y, bicubic's Cb and Cr."""
        if self.visible_bicubic.ndim == 2:
            return _grey(output)
        return with_luminance(self.visible_bicubic, self.bicubic, output)


def read_folder(folder: Path, scale: int, protocol: Protocol) -> Iterator[Sample]:
    """Yield a sample of each image in a folder, in the order of their names.

    Raises:
        UserError: no images, or one that is unreadable, too small or not 8 bits deep.
    """
    for path in folder_images(folder):
        yield _sample(path, scale, protocol)


def _sample(path: Path, scale: int, protocol: Protocol) -> Sample:
    image = open_image(path)
    with suppress(Exception):  # Pillow's, at broken EXIF
        image = ImageOps.exif_transpose(image)  # upright, as people see it
    least = -(-(SSIM_WINDOW + 2 * protocol.border(scale)) // scale) * scale
    if min(image.size) < least:
        raise UserError(
            f"{path} is {image.width}×{image.height}, too small to measure: the protocol "
            f"{protocol.name} at x{scale} needs {least} pixels on each side; remove it"
        )
    return Sample(
        image_name(path), *protocol.pair(image, scale), *protocol.visible_pair(image, scale)
    )


def read_dataset(data_path: Path, scale: int) -> Iterator[Sample]:
    """Yield the samples of a dataset folder's evaluation file, which hold luminance only.

    Raises:
        UserError: no such file, a bad one, or an image too small for SSIM.
    """
    from datasets import EvalDataset, find_file  # noqa: PLC0415 - h5py and torch load slowly

    path = find_file(data_path, "val", scale)
    dataset = EvalDataset(path)
    for name, pair in zip(dataset.names, dataset.pairs, strict=True):
        lr, hr = (tensor[0].double().numpy() * 255.0 for tensor in pair)
        if min(hr.shape) < SSIM_WINDOW:
            raise UserError(
                f"{path}: image {name} has shape {hr.shape}, SSIM needs {SSIM_WINDOW} pixels on "
                f"each side; make the file without it"
            )
        yield Sample(name, lr, hr, _grey(lr), _grey(hr))


def _grey(luminance: np.ndarray) -> np.ndarray:
    return (luminance + 0.5).clip(0, 255).astype(np.uint8)
