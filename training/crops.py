"""Random crops of whole images, flipped and rotated.

Every possible crop in each of its 8 views is equally likely.
"""

from collections.abc import Iterable, Iterator
from itertools import compress
from typing import NamedTuple

import torch

from datasets import Pair
from training.batches import Batches, BatchPlan


class Crops(NamedTuple):
    """Where crops lie and how they are turned: one value each, on the CPU."""

    image: torch.Tensor
    top: torch.Tensor
    left: torch.Tensor
    flip_rows: torch.Tensor
    flip_columns: torch.Tensor
    transpose: torch.Tensor


class RandomCrops:
    """Draws the crops of an epoch.

    Args:
        shapes: (height, width) of each image.
        size: side of a crop in pixels. Where every image is smaller, it is what half of them hold.
        steps_per_epoch: an epoch is this long, as crops never run out.
        plan: how crops become batches.
        grid: crops begin at multiples of so many pixels.

    Attributes:
        size: side of a crop.
        large: of each image, whether a crop fits in; the others are left out. Crops number the
            large ones.
    """

    def __init__(
        self,
        shapes: list[tuple[int, int]],
        size: int,
        steps_per_epoch: int,
        plan: BatchPlan,
        grid: int = 1,
    ) -> None:
        sides = sorted(map(min, shapes))
        self.size = size if sides[-1] >= size else sides[len(sides) // 2]
        self.steps_per_epoch, self.plan, self.grid = steps_per_epoch, plan, grid
        self.large = [min(shape) >= self.size for shape in shapes]
        self.heights, self.widths = torch.tensor(list(compress(shapes, self.large))).unbind(1)

    def __len__(self) -> int:
        """Return the number of images that crops are taken from."""
        return len(self.heights)

    def draw(self, epoch: int) -> Crops:
        """Return the crops of an epoch's batches, over all processes."""
        generator = self.plan.generator(epoch)
        count = self.steps_per_epoch * self.plan.samples_per_step
        rows, columns = (
            (sides - self.size) // self.grid + 1 for sides in (self.heights, self.widths)
        )
        image = torch.multinomial((rows * columns).float(), count, True, generator=generator)
        top, left = (
            (torch.rand(count, generator=generator, dtype=torch.float64) * places[image]).long()
            * self.grid
            for places in (rows, columns)
        )
        return Crops(image, top, left, *torch.randint(2, (3, count), generator=generator).bool())


class CropBatches(Batches):
    """Crops of images that are all on the device.

    The images lie one after the other in a flat tensor; a batch is one gather from it.

    Args:
        pairs: (lr, hr) of each image, each 1×H×W, 0–1.
        crops: draws from these images.
        device: where images and batches are.
    """

    def __init__(self, pairs: Iterable[Pair], crops: RandomCrops, device: torch.device) -> None:
        super().__init__(crops.plan, crops.steps_per_epoch)
        self.crops, self.device = crops, device
        ends = torch.cumsum(crops.heights * crops.widths, 0)
        self.offsets = ends - crops.heights * crops.widths
        self.lr, self.hr = (torch.empty(int(ends[-1]), device=device) for _ in range(2))
        places = zip(self.offsets.tolist(), ends.tolist(), strict=True)
        for pair, (first, end) in zip(compress(pairs, crops.large), places, strict=True):
            for whole, image in zip((self.lr, self.hr), pair, strict=True):
                whole[first:end] = image.flatten()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        origins, row_steps, column_steps = self._indices(self.crops.draw(epoch))
        inside = torch.arange(self.crops.size, device=self.device)
        for step in range(start, self.steps_per_epoch):
            mine = self.plan.mine(step)
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
        last, width = self.crops.size - 1, self.crops.widths[crops.image]
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
