"""Which samples a run trains on: patches or crops, from memory or from disk."""

from pathlib import Path
from typing import NamedTuple

import torch

from batches import Batches, CropBatches, PatchBatches, StreamedBatches
from datasets import EvalDataset, Pair, TrainDataset, find_file
from runtime.device import free_memory
from runtime.errors import UserError
from runtime.recipes import Recipe

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
    memory_share: float,
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
        memory_share: share of the free memory that the set may take, on the device or here.
        num_workers: processes that read a set from disk.
        **cut: batch_size, rank, world_size and seed.

    Raises:
        UserError: files missing or wrong, or too few samples for one batch.
    """
    if recipe.crop_size:
        data = _crops(data_path, scale, recipe, device, hold_out, cut)
    else:
        dataset = TrainDataset(find_file(data_path, "train", scale))
        data = _patches(dataset, device, hold_out, memory_share, num_workers, cut)
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
    data_path: Path, scale: int, recipe: Recipe, device: torch.device, hold_out: bool, cut: dict
) -> TrainingData:
    if has_whole_images(data_path, scale):
        path, side = find_file(data_path, "train", scale, suffix="_images"), recipe.crop_size
        pairs = list(EvalDataset(path))
        what = "whole images"
    else:
        patches = TrainDataset(find_file(data_path, "train", scale))
        path, side = patches.path, min(patches.shape[1:])
        pairs = list(zip(*patches.read(0, len(patches)), strict=True))
        what = "patches, as there are no whole images"
    held_out = pairs[::HELD_OUT] if hold_out else []
    if held_out:
        pairs = [pair for i, pair in enumerate(pairs) if i % HELD_OUT]
    batches = CropBatches(pairs, side, recipe.steps_per_epoch, device, **cut)
    small = len(pairs) - batches.images
    what += f" ({small} smaller left out)" if small else ""
    held_out = [(lr.unsqueeze(0), hr.unsqueeze(0)) for lr, hr in held_out]
    source = f"{batches.images:,} {what} of {path}"
    text = f"random crops of {side}×{side} from {source}, held on {device}"
    return TrainingData(batches, held_out, text + _held_out_text(held_out, "images"))


def _patches(
    dataset: TrainDataset,
    device: torch.device,
    hold_out: bool,
    memory_share: float,
    num_workers: int,
    cut: dict,
) -> TrainingData:
    count = len(dataset)
    kept = count - (max(1, count // HELD_OUT) if hold_out else 0)
    held_out = [dataset.read(kept, count)] if hold_out else []
    height, width = dataset.shape[1:]
    text = f"{kept:,} patches of {height}×{width} from {dataset.path}"
    places = [place for place in dict.fromkeys((device, torch.device("cpu")))
              if dataset.nbytes <= memory_share * free_memory(place)]  # fmt: skip
    if places:
        lr, hr = (tensor.to(places[0]) for tensor in dataset.read(0, kept))
        batches: Batches = PatchBatches(lr, hr, device, **cut)
        text += f", held on {places[0]}"
    else:
        batches = StreamedBatches(dataset, device, num_workers, kept, **cut)
        text += f", read from disk by {num_workers} workers"
    return TrainingData(batches, held_out, text + _held_out_text(held_out, "patches"))


def _held_out_text(held_out: list[Pair], what: str) -> str:
    count = sum(len(lr) for lr, _ in held_out)
    return f"; {count} more {what} held out" if count else ""
