"""Batches of a set that takes more memory than it may: worker processes read them from disk.

They are the same as from memory, of patches and of crops alike.
"""

import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import active_children
from traceback import clear_frames

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datasets import ImageDataset, TrainDataset
from runtime.errors import RunError, UserError
from training.batches import Batch, Batches, BatchPlan, shuffled
from training.crops import Crops, RandomCrops

Read = Callable[[slice], Batch]  # the samples of an epoch from one number to another


class StreamedBatches(Batches):
    """Batches that are read from disk when they are due.

    Args:
        reader: returns, for an epoch, the function that reads samples of it; of `patch_reader`
            or `crop_reader`.
        plan: how samples become batches.
        steps_per_epoch: the steps of an epoch.
        device: where batches are wanted.
        num_workers: processes that read.
    """

    def __init__(
        self,
        reader: Callable[[int], Read],
        plan: BatchPlan,
        steps_per_epoch: int,
        device: torch.device,
        num_workers: int,
    ) -> None:
        super().__init__(plan, steps_per_epoch)
        self.reader, self.device, self.num_workers = reader, device, num_workers

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        batches = _Steps(self.reader(epoch), self.plan)
        steps = range(start, self.steps_per_epoch)
        others = set(active_children())
        try:
            for batch in _deaf_to_sigterm(batches, steps, self.num_workers):
                yield Batch(*(torch.from_numpy(values).to(self.device) for values in batch))
        except BaseException as error:
            clear_frames(error.__traceback__)  # they hold workers; Python's end would wait for them
            for worker in set(active_children()) - others:  # of a loader that was not yet whole
                worker.kill()
            if isinstance(error, UserError):  # of a worker, which hands on its traceback as text
                kind = type(error)
                raise kind(str(error).strip().rpartition(f"{kind.__name__}: ")[2]) from None
            raise


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep Python from telling what fails as half a loader is dropped."""
    told, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = told


def _deaf_to_sigterm(
    batches: "_Steps", steps: range, num_workers: int
) -> Iterator[list[np.ndarray]]:
    """Start workers that read on: the main process stops a run that is told to, and saves.

    They inherit that the signal is blocked; ignored by their own doing, it would end those that
    only begin.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with warnings.catch_warnings():  # of more workers than cores: they wait for the disk
            warnings.filterwarnings("ignore", "This DataLoader will create")
            return iter(
                DataLoader(
                    batches, None, sampler=steps, num_workers=num_workers,
                    collate_fn=list,  # leaves the arrays alone
                    multiprocessing_context="fork" if num_workers else None,  # as Python to 3.13
                )
            )  # fmt: skip
    except OSError as error:
        with _unheard():
            clear_frames(error.__traceback__)
        raise RunError(
            f"a process that reads the training set cannot be started ({error.strerror}); "
            f"lower --num-workers"
        ) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Steps(Dataset):
    """Item `step` is that step's batch of this process.

    In arrays, which a worker sends through its pipe; tensors would need room in /dev/shm.
    """

    def __init__(self, read: Read, plan: BatchPlan) -> None:
        self.read, self.plan = read, plan

    def __getitem__(self, step: int) -> list[np.ndarray]:
        return [values.numpy() for values in self.read(self.plan.mine(step)) if values is not None]


def patch_reader(dataset: TrainDataset, count: int, plan: BatchPlan) -> Callable[[int], Read]:
    """Return a reader of the first `count` patches of a file, shuffled anew each epoch."""
    return lambda epoch: partial(_read_patches, dataset, shuffled(count, plan, epoch))


def crop_reader(
    dataset: ImageDataset | TrainDataset, numbers: list[int], crops: RandomCrops
) -> Callable[[int], Read]:
    """Return a reader of random crops; `numbers` are those of the images to crop from."""
    return lambda epoch: partial(_read_crops, dataset, numbers, crops, crops.draw(epoch))


def _read_patches(dataset: TrainDataset, order: torch.Tensor, samples: slice) -> Batch:
    return Batch(*dataset.take(order[samples]))


def _read_crops(
    dataset: ImageDataset | TrainDataset,
    numbers: list[int],
    crops: RandomCrops,
    drawn: Crops,
    samples: slice,
) -> Batch:
    batch, weights = [], drawn.weight[samples, None, None, None] * crops.pixel_weights
    for image, top, left, _, rows, columns, transpose in zip(
        *(values[samples].tolist() for values in drawn), strict=True
    ):
        flips = [dimension for dimension, flip in ((1, rows), (2, columns)) if flip]
        pair = [side.flip(flips) for side in dataset.crop(numbers[image], top, left, crops.size)]
        batch.append([side.transpose(1, 2) if transpose else side for side in pair])
    lr, hr = (torch.stack(side) for side in zip(*batch, strict=True))
    return Batch(lr, hr, weights)
