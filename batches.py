"""Batches for training: shuffled patches. crops.py has those of random crops.

Each class yields one epoch at a time. What an epoch holds depends on (seed, epoch) alone, so a
run can stop and go on at any step. With several processes the batch of a step is cut into equal
parts, one a process: together they see what one process with the whole batch would see.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader, Dataset

from datasets import BLOCK, Pair, TrainDataset
from runtime.errors import UserError

POOL = 16  # blocks that are shuffled together: 16 × 1024 patches of 33×33 take 143 MB


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the CPU random generator of one epoch, the same on every process."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


@contextmanager
def as_user_error() -> Iterator[None]:
    """Turn a UserError of a reading worker, which comes with its traceback as text, into one."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).strip().rsplit("UserError: ", maxsplit=1)[-1]) from None


class Batches(ABC):
    """What training needs of a data source; `batch_size` is that of one process.

    Args:
        length: samples of an epoch, over all processes.
        batch_size: samples of a batch on one process.
        rank: number of this process.
        world_size: number of processes.
        seed: seed of the order.
    """

    def __init__(
        self, length: int, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0
    ) -> None:
        self.batch_size, self.rank, self.world_size, self.seed = batch_size, rank, world_size, seed
        self.steps_per_epoch = length // (batch_size * world_size)

    @abstractmethod
    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """Yield (lr, hr) of each step from `start` on: n×1×H×W, 0–1, on the training device."""

    def mine(self, step: int) -> slice:
        """Return which samples of an epoch make this process's batch of a step."""
        first = (step * self.world_size + self.rank) * self.batch_size
        return slice(first, first + self.batch_size)


class PatchBatches(Batches):
    """Every patch once an epoch, from tensors in memory; the last incomplete batch is dropped.

    Args:
        lr: N×1×H×W, on the device where it is to stay.
        hr: the same shape.
        device: where the batches are wanted.
        **cut: batch_size, rank, world_size, seed.
    """

    def __init__(self, lr: torch.Tensor, hr: torch.Tensor, device: torch.device, **cut) -> None:
        super().__init__(len(lr), **cut)
        self.lr, self.hr, self.device = lr, hr, device

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        order = torch.randperm(len(self.lr), generator=epoch_generator(self.seed, epoch))
        order = order.to(self.lr.device)
        for step in range(start, self.steps_per_epoch):
            index = order[self.mine(step)]
            yield self.lr[index].to(self.device), self.hr[index].to(self.device)


class StreamedBatches(Batches):
    """Patches of a file that is larger than the memory it may take.

    Worker processes read blocks of consecutive patches in random order; 16 blocks at a time are
    shuffled together. Memory stays bounded by these blocks and two more a worker. Each process
    reads its own blocks; those at the end that do not go round are left out, others each epoch.
    """

    def __init__(
        self, dataset: TrainDataset, device: torch.device, num_workers: int, last: int, **cut
    ) -> None:
        processes = cut.get("world_size", 1)
        self.block = max(1, min(BLOCK, last // processes))
        self.blocks_each = last // self.block // processes
        super().__init__(self.blocks_each * self.block * processes, **cut)
        self.dataset, self.device, self.num_workers, self.last = dataset, device, num_workers, last

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        generator = epoch_generator(self.seed, epoch)
        offset = int(torch.randint(self.last % self.block + 1, (), generator=generator))
        order = torch.randperm(self.last // self.block, generator=generator)
        mine = order[self.rank :: self.world_size][: self.blocks_each]
        rows = [offset + int(number) * self.block for number in mine]
        generator = epoch_generator(self.seed + 7919 * (self.rank + 1), epoch)
        for step, pair in enumerate(self._batches(rows, generator)):
            if step >= start:
                yield pair[0].to(self.device), pair[1].to(self.device)

    def _batches(self, rows: list[int], generator: torch.Generator) -> Iterator[Pair]:
        pool: list[Pair] = []
        for number, block in enumerate(self._read(rows), start=1):
            pool.append(block)
            if number % POOL and number < len(rows):
                continue
            lr, hr = (torch.cat(part) for part in zip(*pool, strict=True))
            order = torch.randperm(len(lr), generator=generator)
            whole = len(lr) // self.batch_size * self.batch_size
            for index in order[:whole].split(self.batch_size):
                yield lr[index], hr[index]
            pool = [(lr[order[whole:]], hr[order[whole:]])]

    def _read(self, rows: list[int]) -> Iterator[Pair]:
        blocks = _Blocks(self.dataset, rows, self.block)
        with as_user_error():
            yield from DataLoader(blocks, batch_size=None, num_workers=self.num_workers)


class _Blocks(Dataset):
    def __init__(self, dataset: TrainDataset, rows: list[int], block: int) -> None:
        self.dataset, self.rows, self.block = dataset, rows, block

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        return self.dataset.read(self.rows[index], self.rows[index] + self.block)
