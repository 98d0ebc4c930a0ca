"""Weights, runs and pictures to test with."""

import io
import os
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import ExifTags, Image
from skimage import data
from torch import nn

from imaging.enlarge import bicubic_only, enlarge
from imaging.photo import open_photo
from inference.upscaler import Upscaler
from model import SRCNN, identity_init
from runtime.distributed import World
from training.optimizers import build_optimizer
from training.precision import Precision
from training.recipes import Recipe
from training.state import TrainingState, new_model


def network(**options) -> SRCNN:
    """Return a network that changes a picture visibly, and whose biases are not zero.

    Without biases, a border that a network pads with zeros looks like any other.
    """
    torch.manual_seed(7)
    model = SRCNN(**options)
    identity_init(model, std=0.02)
    with torch.no_grad():
        for conv in (model.conv1, model.conv2, model.conv3):
            conv.bias.uniform_(-0.02, 0.02)
    return model.eval()


def save_weights(path: Path, model: SRCNN | None = None) -> Path:
    """Save the state dict of a network, `network()` when there is none."""
    torch.save((model or network()).state_dict(), path)
    return path


def new_state(
    recipe: Recipe, steps: int, precision: Precision | None = None, model: SRCNN | None = None
) -> TrainingState:
    """Return the state of a new run on the CPU, by seed 1, of the recipe's model or of another."""
    torch.manual_seed(1)
    precision, device = precision or Precision(), torch.device("cpu")
    model = model or new_model(recipe, precision)
    optimizer = build_optimizer(recipe, model, device, apex=False)
    return TrainingState(model, optimizer, recipe, World(device), precision, steps)


class OneOfSeveral(World):
    """One of several processes, the others of which are not there: its sums are its own."""

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def _agree(self, value: int, operation: object) -> int:
        return value


class Mischief:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def noise(width: int, height: int) -> Image.Image:
    """Return a colour picture of noise, the same for each size."""
    rng = np.random.default_rng(width * height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def coffee(width: int, height: int) -> Image.Image:
    """Return a piece of a colour photograph."""
    left, top = 180, 60
    return Image.fromarray(data.coffee()).crop((left, top, left + width, top + height))


def pixels(image: Image.Image) -> np.ndarray:
    """Return the pixels as integers that can be subtracted."""
    return np.asarray(image).astype(int)


def png(image: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    return encoded(image, "PNG")


def encoded(image: Image.Image, kind: str) -> bytes:
    """Return a picture as a file of a kind that Pillow knows."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def tiff_file(levels: np.ndarray, **options: object) -> bytes:
    """Return pixels as a TIFF file; `options` are those of tifffile."""
    file = io.BytesIO()
    tifffile.imwrite(file, levels, **options)
    return file.getvalue()


def opened(data: bytes) -> np.ndarray:
    """Return the pixels of a picture file, as integers."""
    with Image.open(io.BytesIO(data)) as image:
        return pixels(image)


def through(
    image: Image.Image, name: str, upscaler: Upscaler | None = None, **options
) -> Image.Image:
    """Save, open, enlarge by 3 and save a picture, then open the result."""
    file, result = io.BytesIO(), io.BytesIO()
    image.save(file, Image.registered_extensions()[Path(name).suffix], **options)
    photo = open_photo(file, name, 3)
    done = upscaler.enlarge(photo) if upscaler else enlarge(photo.image, 3, bicubic_only, 8)
    photo.save(done, result)
    with Image.open(result) as saved:
        saved.getexif().get_ifd(ExifTags.IFD.Exif)
        saved.load()
        return saved
