"""Batches for training: shuffled patches. crops.py has random crops, streaming.py reads from disk.

Each class yields one epoch at a time. What an epoch holds depends on (seed, epoch) alone, so a
run can stop and go on at any step. With several processes the batch of a step is cut into equal
parts, one a process: together they see what one process with the whole batch would see.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from runtime.errors import RunError


class Batch(NamedTuple):
    """What a step trains on, on the training device.

    Attributes:
        low: bicubic pictures, n×1×H×W, 0–1.
        high: the originals, of the same shape.
        weights: in the loss, of each sample, n×1×1×1, or each pixel, n×1×H×W; None: all the same.
    """

    low: torch.Tensor
    high: torch.Tensor
    weights: torch.Tensor | None = None


@dataclass(frozen=True)
class BatchPlan:
    """How the samples of an epoch become batches.

    Attributes:
        batch_size: samples of a batch on one process.
        rank: number of this process.
        world_size: number of processes.
        seed: seed of the order of samples.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    seed: int = 0

    @property
    def samples_per_step(self) -> int:
        """Samples of a step, over all processes."""
        return self.batch_size * self.world_size

    def mine(self, step: int) -> slice:
        """Return which samples of an epoch make this process's batch of a step."""
        first = step * self.samples_per_step + self.rank * self.batch_size
        return slice(first, first + self.batch_size)

    def generator(self, epoch: int) -> torch.Generator:
        """Return the CPU random generator of one epoch, the same on every process."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)


class Batches(ABC):
    """What training needs of a data source.

    Attributes:
        plan: how samples become batches.
        steps_per_epoch: the steps of an epoch; an incomplete batch at its end is dropped.
    """

    def __init__(self, plan: BatchPlan, steps_per_epoch: int) -> None:
        self.plan, self.steps_per_epoch = plan, steps_per_epoch

    @abstractmethod
    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """Yield the batch of each step from `start` on."""

    @contextmanager
    def reading(self, epoch: int, start: int = 0) -> Iterator[Iterator[Batch]]:
        """Yield what `epoch` does; at the end no process is left that reads.

        Raises:
            RunError: such a process was killed, which is heard of wherever this one is then.
        """
        try:
            with closing(self.epoch(epoch, start)) as batches:
                yield batches
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            raise RunError(
                "a process that reads the training set was killed, most likely for want of memory; "
                "lower --num-workers or --batch-size"
            ) from None


def shuffled(count: int, plan: BatchPlan, epoch: int) -> torch.Tensor:
    """Return the numbers of `count` samples in the order of an epoch."""
    return torch.randperm(count, generator=plan.generator(epoch))


class PatchBatches(Batches):
    """Every patch once an epoch, from tensors in memory.

    Args:
        lr: N×1×H×W, on the device where it is to stay.
        hr: the same shape.
        device: where the batches are wanted.
        plan: how patches become batches.
    """

    def __init__(
        self, lr: torch.Tensor, hr: torch.Tensor, device: torch.device, plan: BatchPlan
    ) -> None:
        super().__init__(plan, len(lr) // plan.samples_per_step)
        self.lr, self.hr, self.device = lr, hr, device

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        order = shuffled(len(self.lr), self.plan, epoch).to(self.lr.device)
        for step in range(start, self.steps_per_epoch):
            index = order[self.plan.mine(step)]
            yield Batch(self.lr[index].to(self.device), self.hr[index].to(self.device))
