"""Which samples a run trains on: patches or crops, from memory or from disk."""

from collections.abc import Callable, Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import torch

from datasets import BLOCK, ImageDataset, Pair, TrainDataset, find_file, identity
from runtime.distributed import World
from runtime.errors import UserError, printable
from training.batches import Batches, BatchPlan, PatchBatches
from training.crops import CropBatches, RandomCrops
from training.recipes import Recipe
from training.streaming import StreamedBatches, crop_reader, patch_reader

HELD_OUT = 20  # with --select held-out, one of so many images or patches is kept out of training


class TrainingData(NamedTuple):
    """Batches to train on, the pairs held out (n×1×H×W each), a line for the log, which set."""

    batches: Batches
    held_out: list[Pair]
    description: str
    identity: str


class Place(NamedTuple):
    """Where a training set may lie.

    Attributes:
        device: where batches are wanted.
        memory_budget: tells the bytes that the set may take on a device; the same on all
            processes, which must read in the same way.
        num_workers: processes that read a set from disk.
    """

    device: torch.device
    memory_budget: Callable[[torch.device], float]
    num_workers: int

    def holds(self, nbytes: int, device: torch.device) -> bool:
        """Whether so many bytes may be taken on a device."""
        return nbytes <= self.memory_budget(device)

    @property
    def on_disk(self) -> str:
        """A clause for the log."""
        return f"read from disk by {self.num_workers} workers"


def load_training_data(
    data_path: Path, scale: int, recipe: Recipe, plan: BatchPlan, place: Place, *, hold_out: bool
) -> TrainingData:
    """Open the training set of a dataset folder in the way that recipe and memory ask for.

    A recipe with a crop size takes `T91_x3_images.h5`, else the patches as they are.

    Args:
        data_path: the dataset folder.
        scale: enlargement factor.
        recipe: what is trained.
        plan: how samples become batches.
        place: where the set may lie.
        hold_out: keep a twentieth out of training: images, or the last patches of the file.

    Raises:
        UserError: files missing or wrong, or too few samples for one batch.
    """
    path = training_file(data_path, scale, recipe)
    if recipe.crop_size is None:
        data = _patches(TrainDataset(path), plan, place, hold_out)
    else:
        images: ImageDataset | TrainDataset
        if holds_whole_images(path):
            images, what, size = ImageDataset(path), "whole images", recipe.crop_size
        else:
            images, what = TrainDataset(path), "patches, as there are no whole images"
            size = min(images.shape[1:])
        kept = [not hold_out or not is_held_out(i, images) for i in range(len(images))]
        if not any(kept):
            raise UserError(
                f"{images.path} has one image; --select held-out needs two, take --select eval"
            )
        shapes = list(compress(images.shapes, kept))
        crops = RandomCrops(
            shapes, size, recipe.steps_per_epoch, plan,
            recipe.crop_grid, recipe.by_error, recipe.border,
        )  # fmt: skip
        if crops.size < size:
            what += f" (smaller than {size}×{size}, as all images are)"
        data = _crops(images, what, kept, crops, place)
    if not data.batches.steps_per_epoch:
        raise UserError(f"{data.description}: too few for one batch; lower --batch-size")
    return data


def training_file(data_path: Path, scale: int, recipe: Recipe) -> Path:
    """Return the file of a dataset folder that a recipe trains on: whole images for crops, if any.

    Raises:
        UserError: as `find_file`.
    """
    suffixes = () if recipe.crop_size is None else ("_images", "")
    return find_file(data_path, "train", scale, *suffixes)


def holds_whole_images(path: Path) -> bool:
    """Tell a file of whole images from one of patches, by its name."""
    return path.stem.endswith("_images")


def check_same_files(paths: Sequence[Path], world: World) -> None:
    """Fail on all processes whose machines have different files: they would train on a mix.

    Before they are opened: how often processes agree on something there depends on them.
    """
    here = " and ".join(f"{path.name} ({path.stat().st_size:,} bytes)" for path in paths)
    if not world.same(here):
        raise UserError(
            f"--data_url: the processes have different files, here {here}; all machines need the "
            f"same"
        )


def is_held_out(number: int, images: ImageDataset | TrainDataset) -> bool:
    """Tell whether --select held-out keeps an image out of training, with all its sizes.

    Of patches the last ones: their neighbours, which overlap, would have shown most of any other.
    """
    if isinstance(images, TrainDataset):
        return number >= len(images) - _held_out_patches(len(images))
    return number % images.images % HELD_OUT == 0


def _held_out_patches(count: int) -> int:
    return max(1, count // HELD_OUT)


def _crops(
    images: ImageDataset | TrainDataset,
    what: str,
    kept: list[bool],
    crops: RandomCrops,
    place: Place,
) -> TrainingData:
    batches: Batches
    if place.holds(images.nbytes, place.device):
        batches = CropBatches(compress(images, kept), crops, place.device)
        where = f"held on {place.device}"
    else:
        large = list(compress(compress(range(len(images)), kept), crops.large))
        if crops.by_error:
            for _ in crops.watch(compress(compress(images, kept), crops.large)):
                pass
        batches = StreamedBatches(
            crop_reader(images, large, crops),
            crops.plan, crops.steps_per_epoch, place.device, place.num_workers,
        )  # fmt: skip
        where = place.on_disk
    small = len(crops.large) - len(crops)
    left_out = f" ({small} smaller left out)" if small else ""
    text = (f"random crops of {crops.size}×{crops.size} from {len(crops):,} {what}{left_out} of "
            f"{printable(images.path)}, {where}")  # fmt: skip
    held_out = [images[i] for i in range(images.images) if not kept[i]]
    pairs = [(lr.unsqueeze(0), hr.unsqueeze(0)) for lr, hr in held_out]
    text += _held_out_text(pairs, "images")
    return TrainingData(batches, pairs, text, identity(images))


def _patches(dataset: TrainDataset, plan: BatchPlan, place: Place, hold_out: bool) -> TrainingData:
    count = len(dataset)
    kept = count - (_held_out_patches(count) if hold_out else 0)
    held_out = [dataset.read(kept, count)] if hold_out else []
    height, width = dataset.shape[1:]
    text = f"{kept:,} patches of {height}×{width} from {printable(dataset.path)}"
    batches: Batches
    for device in dict.fromkeys((place.device, torch.device("cpu"))):
        if place.holds(dataset.nbytes, device):
            batches = PatchBatches(*_read_all(dataset, kept, device), place.device, plan)
            text += f", held on {device}"
            break
    else:
        batches = StreamedBatches(
            patch_reader(dataset, kept, plan),
            plan, kept // plan.samples_per_step, place.device, place.num_workers,
        )  # fmt: skip
        text += f", {place.on_disk}"
    text += _held_out_text(held_out, "patches")
    return TrainingData(batches, held_out, text, identity(dataset))


def _read_all(dataset: TrainDataset, count: int, device: torch.device) -> Pair:
    """Read the first `count` patches, n×1×H×W, in blocks: no second copy of all at any moment."""
    lr, hr = (torch.empty(count, 1, *dataset.shape[1:], device=device) for _ in range(2))
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        lr[start:stop], hr[start:stop] = dataset.read(start, stop)
    return lr, hr


def _held_out_text(held_out: list[Pair], what: str) -> str:
    count = sum(len(lr) for lr, _ in held_out)
    return f"; {count} more {what} held out" if count else ""
