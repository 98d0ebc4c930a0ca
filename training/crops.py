"""Random crops of whole images, flipped and rotated, drawn by what there is to learn from them.

Most of a photograph is smooth: bicubic interpolation is right there, and a crop has next to no
gradient. So half of the crops are drawn in proportion to bicubic's squared error, and each weighs
in the loss the less, the more often it is drawn. The loss expects what it would of crops that are
drawn evenly, and is less noisy: importance sampling. The half that is drawn evenly keeps all
weights at 2 or below (Hesterberg, 1995, doi:10.1080/00401706.1995.10484303).

At the border of a crop the network sees zeros where the picture goes on. In small crops that is
half of all pixels, in pictures few. Where a recipe names a border, its pixels weigh what makes
their share that of the pictures' own borders.
"""

from collections.abc import Generator, Iterable, Iterator
from itertools import compress
from typing import NamedTuple

import torch
from torch.nn import functional

from datasets import Pair
from training.batches import Batch, Batches, BatchPlan

CELL = 16  # crops that begin in a square of so many pixels a side are equally likely


class Crops(NamedTuple):
    """Where crops lie, how they are turned and what they weigh: one value each, on the CPU."""

    image: torch.Tensor
    top: torch.Tensor
    left: torch.Tensor
    weight: torch.Tensor
    flip_rows: torch.Tensor
    flip_columns: torch.Tensor
    transpose: torch.Tensor


class Cells(NamedTuple):
    """Squares of places where crops can begin: one value each, on the CPU.

    Places are the points of a grid. `density` is how likely a crop that begins in a square is, over
    what it were if all were equally likely.
    """

    image: torch.Tensor
    top: torch.Tensor
    left: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    density: torch.Tensor


class RandomCrops:
    """Draws the crops of an epoch, each in one of its 8 views.

    Until `watch` has seen the images, every possible crop is equally likely.

    Args:
        shapes: (height, width) of each image.
        size: side of a crop in pixels. Where every image is smaller, it is what half of them hold.
        steps_per_epoch: an epoch is this long, as crops never run out.
        plan: how crops become batches.
        grid: crops begin at multiples of so many pixels.
        by_error: the share of crops that is drawn by bicubic's error.
        border: pixels of a crop's border that weigh as often as they are border in an image.

    Attributes:
        size: side of a crop.
        pixel_weights: of a crop's pixels in the loss, 1×1×size×size with a mean of 1; one for all
            without a border.
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
        by_error: float = 0.0,
        border: int = 0,
    ) -> None:
        sides = sorted(map(min, shapes))
        self.size = size if sides[-1] >= size else sides[len(sides) // 2]
        self.steps_per_epoch, self.plan = steps_per_epoch, plan
        self.grid, self.by_error = grid, by_error
        self.large = [min(shape) >= self.size for shape in shapes]
        self.heights, self.widths = torch.tensor(list(compress(shapes, self.large))).unbind(1)
        self.rows, self.columns = (
            (sides - self.size) // grid + 1 for sides in (self.heights, self.widths)
        )
        self.pixel_weights = self._pixel_weights(border)
        first, even = torch.zeros_like(self.rows), torch.ones(len(self), dtype=torch.float64)
        self.cells = Cells(torch.arange(len(self)), first, first, self.rows, self.columns, even)

    def __len__(self) -> int:
        """Return the number of images that crops are taken from."""
        return len(self.heights)

    def _pixel_weights(self, border: int) -> torch.Tensor:
        inner = self.size - 2 * border
        if border == 0 or inner <= 0:
            return torch.ones(1, 1, 1, 1)
        pixels = (self.heights * self.widths).sum()
        inside = ((self.heights - 2 * border) * (self.widths - 2 * border)).sum() / pixels
        share = inner**2 / self.size**2
        weights = ((1 - inside) / (1 - share)).repeat(1, 1, self.size, self.size)
        weights[..., border:-border, border:-border] = inside / share
        return weights

    def watch(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Yield the large images, (lr, hr), each 1×H×W; after the last, draw by their errors."""
        squares = []
        for number, pair in enumerate(pairs):
            if self.by_error:
                squares.append(self._squares(number, *pair))
            yield pair
        if squares:
            image, top, left, rows, columns, error = map(torch.cat, zip(*squares, strict=True))
            mean = (rows * columns * error).sum() / (rows * columns).sum()
            relative = error / mean if mean else torch.ones_like(error)
            density = 1 - self.by_error + self.by_error * relative
            self.cells = Cells(image, top, left, rows, columns, density)

    def _squares(self, number: int, lr: torch.Tensor, hr: torch.Tensor) -> list[torch.Tensor]:
        """Return an image's squares as `Cells` has them, but with bicubic's mean squared error."""
        counts = [int(places[number]) for places in (self.rows, self.columns)]
        side = max(1, CELL // self.grid)  # of a square, in places
        window, stride = self.size + (side - 1) * self.grid, side * self.grid
        height, width = (self.size + (count - 1) * self.grid for count in counts)
        squared = (lr - hr)[:, :height, :width].double().square()
        error = functional.avg_pool2d(squared, window, stride, ceil_mode=True)
        top, left = torch.meshgrid(*(torch.arange(0, n, side) for n in counts), indexing="ij")
        rows, columns = (counts[0] - top).clamp(max=side), (counts[1] - left).clamp(max=side)
        image = torch.full_like(top, number)
        return [values.flatten() for values in (image, top, left, rows, columns, error)]

    def draw(self, epoch: int) -> Crops:
        """Return the crops of an epoch's batches, over all processes."""
        generator = self.plan.generator(epoch)
        count = self.steps_per_epoch * self.plan.samples_per_step
        likely = self.cells.rows * self.cells.columns * self.cells.density
        ends = torch.cumsum(likely, 0)  # not multinomial, which takes 2²⁴ at most
        random, row, column = torch.rand(3, count, generator=generator, dtype=torch.float64)
        cell = torch.searchsorted(ends, random * ends[-1], right=True).clamp(max=len(ends) - 1)
        chosen = Cells(*(values[cell] for values in self.cells))
        top = (chosen.top + (row * chosen.rows).long()) * self.grid
        left = (chosen.left + (column * chosen.columns).long()) * self.grid
        weight = (1 / chosen.density).float()
        views = torch.randint(2, (3, count), generator=generator).bool()
        return Crops(chosen.image, top, left, weight, *views)


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
        large = crops.watch(compress(pairs, crops.large))
        for pair, (first, end) in zip(large, places, strict=True):
            for whole, image in zip((self.lr, self.hr), pair, strict=True):
                whole[first:end] = image.flatten()

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        origins, row_steps, column_steps, weights = self._on_device(self.crops.draw(epoch))
        pixel_weights = self.crops.pixel_weights.to(self.device)
        inside = torch.arange(self.crops.size, device=self.device)
        for step in range(start, self.steps_per_epoch):
            mine = self.plan.mine(step)
            index = (
                origins[mine, None, None]
                + row_steps[mine, None, None] * inside[:, None]
                + column_steps[mine, None, None] * inside
            ).unsqueeze(1)
            weight = weights[mine, None, None, None] * pixel_weights
            yield Batch(self.lr[index], self.hr[index], weight)

    def _on_device(self, crops: Crops) -> list[torch.Tensor]:
        """Return each crop's first pixel, a flat index, the steps down and right, and its weight.

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
        return [tensor.to(self.device) for tensor in (origin, *steps, crops.weight)]
