"""Batches of random crops of whole images, flipped and rotated, from memory or from disk.

Every possible crop in each of its 8 views is equally likely, and what an epoch holds depends on
(seed, epoch) alone: both classes yield the same.
"""

from collections.abc import Iterable, Iterator
from itertools import compress
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from batches import Batches, as_user_error, epoch_generator
from datasets import ImageDataset, Pair, TrainDataset
from runtime.errors import UserError


class Crops(NamedTuple):
    """Where crops lie and how they are turned: one value each, on the CPU."""

    image: torch.Tensor
    top: torch.Tensor
    left: torch.Tensor
    flip_rows: torch.Tensor
    flip_columns: torch.Tensor
    transpose: torch.Tensor


class _RandomCrops(Batches):
    """Draws an epoch's crops.

    Args:
        shapes: (height, width) of each image; those smaller than a crop are left out.
        crop_size: side of a crop in pixels.
        steps_per_epoch: an epoch is this long, as crops never run out.
        **cut: batch_size, rank, world_size, seed.

    Raises:
        UserError: no image is as large as a crop.
    """

    def __init__(
        self, shapes: list[tuple[int, int]], crop_size: int, steps_per_epoch: int, **cut: int
    ) -> None:
        super().__init__(steps_per_epoch * cut["batch_size"] * cut.get("world_size", 1), **cut)
        self.crop_size = crop_size
        self.large = [min(shape) >= crop_size for shape in shapes]
        self.images = sum(self.large)
        if not self.images:
            raise UserError(f"no training image is as large as a crop, {crop_size}×{crop_size}")
        self.heights, self.widths = torch.tensor(list(compress(shapes, self.large))).unbind(1)

    def draw(self, epoch: int) -> Crops:
        """Return the crops of an epoch's batches, over all processes."""
        generator = epoch_generator(self.seed, epoch)
        count = self.steps_per_epoch * self.batch_size * self.world_size
        rows, columns = self.heights - self.crop_size + 1, self.widths - self.crop_size + 1
        image = torch.multinomial((rows * columns).float(), count, True, generator=generator)
        places = (
            (torch.rand(count, generator=generator, dtype=torch.float64) * sizes[image]).long()
            for sizes in (rows, columns)
        )
        return Crops(image, *places, *torch.randint(2, (3, count), generator=generator).bool())


class CropBatches(_RandomCrops):
    """Crops of images that are all on the device.

    The images lie one after the other in a flat tensor; a batch is one gather from it.

    Args:
        pairs: (lr, hr) of each image, each 1×H×W, 0–1.
        shapes: their (height, width).
        crop_size: side of a crop in pixels.
        steps_per_epoch: an epoch is this long.
        device: where images and batches are.
        **cut: batch_size, rank, world_size, seed.
    """

    def __init__(
        self,
        pairs: Iterable[Pair],
        shapes: list[tuple[int, int]],
        crop_size: int,
        steps_per_epoch: int,
        device: torch.device,
        **cut: int,
    ) -> None:
        super().__init__(shapes, crop_size, steps_per_epoch, **cut)
        self.device = device
        ends = torch.cumsum(self.heights * self.widths, 0)
        self.offsets = ends - self.heights * self.widths
        self.lr, self.hr = (torch.empty(int(ends[-1]), device=device) for _ in range(2))
        places = zip(self.offsets.tolist(), ends.tolist(), strict=True)
        for pair, (first, end) in zip(compress(pairs, self.large), places, strict=True):
            for whole, image in zip((self.lr, self.hr), pair, strict=True):
                whole[first:end] = image.flatten()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        origins, row_steps, column_steps = self._indices(self.draw(epoch))
        inside = torch.arange(self.crop_size, device=self.device)
        for step in range(start, self.steps_per_epoch):
            mine = self.mine(step)
            index = (
                origins[mine, None, None]
                + row_steps[mine, None, None] * inside[:, None]
                + column_steps[mine, None, None] * inside
            ).unsqueeze(1)
            yield self.lr[index], self.hr[index]

    def _indices(self, crops: Crops) -> list[torch.Tensor]:
        """Return the flat index of each crop's first pixel, and of the steps to the next.

        Flips negate a step and start from the other end; a transposition swaps the two steps.
        """
        last, width = self.crop_size - 1, self.widths[crops.image]
        top = crops.top + last * crops.flip_rows
        left = crops.left + last * crops.flip_columns
        origin = self.offsets[crops.image] + top * width + left
        down = torch.where(crops.flip_rows, -width, width)
        right = torch.where(crops.flip_columns, -1, 1)
        steps = (
            torch.where(crops.transpose, right, down),
            torch.where(crops.transpose, down, right),
        )
        return [tensor.to(self.device) for tensor in (origin, *steps)]


class StreamedCropBatches(_RandomCrops):
    """Crops of images that take more memory than they may: worker processes read each from disk.

    Args:
        dataset: the images.
        numbers: those of them to train on.
        shapes: the (height, width) of those.
        crop_size: side of a crop in pixels.
        steps_per_epoch: an epoch is this long.
        device: where batches are wanted.
        num_workers: processes that read.
        **cut: batch_size, rank, world_size, seed.
    """

    def __init__(
        self,
        dataset: ImageDataset | TrainDataset,
        numbers: list[int],
        shapes: list[tuple[int, int]],
        crop_size: int,
        steps_per_epoch: int,
        device: torch.device,
        num_workers: int,
        **cut: int,
    ) -> None:
        super().__init__(shapes, crop_size, steps_per_epoch, **cut)
        self.dataset, self.device, self.num_workers = dataset, device, num_workers
        self.numbers = list(compress(numbers, self.large))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        batches = _ReadCrops(self, self.draw(epoch))
        steps = range(start, self.steps_per_epoch)
        loader = DataLoader(batches, None, sampler=steps, num_workers=self.num_workers)
        with as_user_error():
            for pair in loader:
                yield pair[0].to(self.device), pair[1].to(self.device)

    def read(self, crops: Crops, index: int) -> Pair:
        """Read one crop, each 1×size×size."""
        number = self.numbers[crops.image[index]]
        top, left = int(crops.top[index]), int(crops.left[index])
        pair = self.dataset.crop(number, top, left, self.crop_size)
        flips = [d for d, flip in ((1, crops.flip_rows), (2, crops.flip_columns)) if flip[index]]
        pair = [side.flip(flips) for side in pair]
        return tuple(side.transpose(1, 2) if crops.transpose[index] else side for side in pair)


class _ReadCrops(Dataset):
    """Item `step` is that step's batch of this process."""

    def __init__(self, batches: StreamedCropBatches, crops: Crops) -> None:
        self.batches, self.crops = batches, crops

    def __getitem__(self, step: int) -> Pair:
        mine = self.batches.mine(step)
        pairs = [self.batches.read(self.crops, i) for i in range(mine.start, mine.stop)]
        return tuple(torch.stack(side) for side in zip(*pairs, strict=True))
