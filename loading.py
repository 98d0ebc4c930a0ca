"""Which samples a run trains on: patches or crops, from memory or from disk."""

from collections.abc import Callable
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import torch

from batches import Batches, PatchBatches, StreamedBatches
from crops import CropBatches, StreamedCropBatches
from datasets import BLOCK, ImageDataset, Pair, TrainDataset, find_file
from runtime.errors import UserError
from runtime.recipes import Recipe
from runtime.text import printable

Room = Callable[[torch.device], float]
HELD_OUT = 20  # with --select held-out, one of so many images or patches is kept out of training


class TrainingData(NamedTuple):
    """Batches to train on, the pairs held out (n×1×H×W each), and a line for the log."""

    batches: Batches
    held_out: list[Pair]
    description: str


def load_training_data(
    data_path: Path,
    scale: int,
    recipe: Recipe,
    device: torch.device,
    *,
    hold_out: bool,
    room: Room,
    num_workers: int,
    **cut: int,
) -> TrainingData:
    """Open the training set of a dataset folder in the way that recipe and memory ask for.

    A recipe with a crop size takes `T91_x3_images.h5`, else the patches as they are.

    Args:
        data_path: the dataset folder.
        scale: enlargement factor.
        recipe: what is trained.
        device: where batches are wanted.
        hold_out: keep a twentieth out of training: images, or the last patches of the file.
        room: tells the bytes that the set may take on a device; the same on all processes, which
            must read in the same way.
        num_workers: processes that read a set from disk.
        **cut: batch_size, rank, world_size and seed.

    Raises:
        UserError: files missing or wrong, or too few samples for one batch.
    """
    common = (device, hold_out, room, num_workers, cut)
    if recipe.crop_size and has_whole_images(data_path, scale):
        images = ImageDataset(find_file(data_path, "train", scale, suffix="_images"))
        data = _crops(images, "whole images", recipe.crop_size, recipe.steps_per_epoch, *common)
    else:
        patches = TrainDataset(find_file(data_path, "train", scale))
        if recipe.crop_size:
            what, size = "patches, as there are no whole images", min(patches.shape[1:])
            data = _crops(patches, what, size, recipe.steps_per_epoch, *common)
        else:
            data = _patches(patches, *common)
    if not data.batches.steps_per_epoch:
        raise UserError(f"{data.description}: too few for one batch; lower --batch-size")
    return data


def has_whole_images(data_path: Path, scale: int) -> bool:
    """Whether a dataset folder has the training images as a whole, for crops of any size."""
    try:
        find_file(data_path, "train", scale, suffix="_images")
    except UserError:
        return False
    return True


def _crops(
    dataset: ImageDataset | TrainDataset,
    what: str,
    size: int,
    steps: int,
    device: torch.device,
    hold_out: bool,
    room: Room,
    num_workers: int,
    cut: dict,
) -> TrainingData:
    kept = [not hold_out or i % dataset.images % HELD_OUT > 0 for i in range(len(dataset))]
    shapes = list(compress(dataset.shapes, kept))
    if dataset.nbytes <= room(device):
        pairs = compress(dataset, kept)
        batches: Batches = CropBatches(pairs, shapes, size, steps, device, **cut)
        place = f"held on {device}"
    else:
        numbers = list(compress(range(len(dataset)), kept))
        batches = StreamedCropBatches(
            dataset, numbers, shapes, size, steps, device, num_workers, **cut
        )
        place = _streamed(num_workers)
    small = len(shapes) - batches.images
    left_out = f" ({small} smaller left out)" if small else ""
    text = (f"random crops of {size}×{size} from {batches.images:,} {what}{left_out} of "
            f"{printable(dataset.path)}, {place}")  # fmt: skip
    held_out = [dataset[i] for i in range(0, dataset.images, HELD_OUT)] if hold_out else []
    held_out = [(lr.unsqueeze(0), hr.unsqueeze(0)) for lr, hr in held_out]
    return TrainingData(batches, held_out, text + _held_out_text(held_out, "images"))


def _patches(
    dataset: TrainDataset,
    device: torch.device,
    hold_out: bool,
    room: Room,
    num_workers: int,
    cut: dict,
) -> TrainingData:
    count = len(dataset)
    kept = count - (max(1, count // HELD_OUT) if hold_out else 0)
    held_out = [dataset.read(kept, count)] if hold_out else []
    height, width = dataset.shape[1:]
    text = f"{kept:,} patches of {height}×{width} from {printable(dataset.path)}"
    places = [place for place in dict.fromkeys((device, torch.device("cpu")))
              if dataset.nbytes <= room(place)]  # fmt: skip
    if places:
        lr, hr = (torch.empty(kept, 1, height, width, device=places[0]) for _ in range(2))
        for start in range(0, kept, BLOCK):  # in blocks: no second copy of all at any moment
            stop = min(start + BLOCK, kept)
            lr[start:stop], hr[start:stop] = dataset.read(start, stop)
        batches: Batches = PatchBatches(lr, hr, device, **cut)
        text += f", held on {places[0]}"
    else:
        batches = StreamedBatches(dataset, device, num_workers, kept, **cut)
        text += f", {_streamed(num_workers)}"
    return TrainingData(batches, held_out, text + _held_out_text(held_out, "patches"))


def _held_out_text(held_out: list[Pair], what: str) -> str:
    count = sum(len(lr) for lr, _ in held_out)
    return f"; {count} more {what} held out" if count else ""


def _streamed(num_workers: int) -> str:
    return f"read from disk by {num_workers} workers"
