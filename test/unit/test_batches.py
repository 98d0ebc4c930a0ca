"""What an epoch consists of: every patch once, in an order that seed and epoch decide."""

from itertools import chain
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from datasets import TrainDataset
from runtime.errors import UserError
from training.batches import PatchBatches, StreamedBatches

CPU = torch.device("cpu")


def numbered(count: int, side: int = 2) -> torch.Tensor:
    """Patches whose pixels all hold the patch's number."""
    return torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 1, side, side)


def numbers(batches: PatchBatches | StreamedBatches, epoch: int, start: int = 0) -> list[list[int]]:
    for lr, hr in batches.epoch(epoch, start):
        assert torch.equal(lr, hr)
    return [
        [round(255 * v) if isinstance(batches, StreamedBatches) else int(v)
         for v in lr[:, 0, 0, 0].tolist()]
        for lr, _ in batches.epoch(epoch, start)
    ]  # fmt: skip


def flat(epoch: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(epoch))


def resident(count: int, **cut: int) -> PatchBatches:
    return PatchBatches(numbered(count), numbered(count), CPU, **cut)


def test_every_patch_once_and_the_incomplete_batch_dropped() -> None:
    epoch = numbers(resident(103, batch_size=10, seed=1), 0)
    assert [len(batch) for batch in epoch] == [10] * 10
    assert len(set(flat(epoch))) == 100


def test_order_is_new_each_epoch_and_the_same_each_time() -> None:
    batches = resident(100, batch_size=10, seed=1)
    assert numbers(batches, 3) == numbers(batches, 3)
    assert numbers(batches, 3) != numbers(batches, 4)
    assert numbers(batches, 3) != numbers(resident(100, batch_size=10, seed=2), 3)
    assert numbers(batches, 3, start=7) == numbers(batches, 3)[7:]


@pytest.mark.parametrize("size", [2, 4])
def test_processes_share_out_the_batch_of_one(size: int) -> None:
    whole = numbers(resident(103, batch_size=12, seed=5), 2)
    parts = [
        numbers(resident(103, batch_size=12 // size, rank=r, world_size=size, seed=5), 2)
        for r in range(size)
    ]
    assert [flat(step) for step in zip(*parts, strict=True)] == whole


@pytest.fixture
def patch_file(tmp_path: Path) -> TrainDataset:
    values = np.broadcast_to(np.arange(250, dtype=np.float32)[:, None, None], (250, 2, 2))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["lr"], file["hr"] = values, values
    return TrainDataset(tmp_path / "a.h5")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_epoch_has_every_patch_once(
    patch_file: TrainDataset, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("batches.BLOCK", 10)
    monkeypatch.setattr("batches.POOL", 3)
    batches = StreamedBatches(patch_file, CPU, workers, 250, batch_size=8, seed=1)
    epoch = numbers(batches, 0)
    assert len(epoch) == batches.steps_per_epoch == 31
    assert len(set(flat(epoch))) == 248
    assert epoch != sorted(epoch)
    assert numbers(batches, 0, start=20) == epoch[20:]
    assert numbers(batches, 1) != epoch


def test_streaming_processes_never_see_the_same_patch(
    patch_file: TrainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batches.BLOCK", 10)
    cut = {"batch_size": 8, "world_size": 2, "seed": 1}
    parts = [numbers(StreamedBatches(patch_file, CPU, 0, 250, rank=r, **cut), 0) for r in range(2)]
    assert len(parts[0]) == len(parts[1]) == 15
    assert not set(flat(parts[0])) & set(flat(parts[1]))


def test_a_reading_worker_passes_on_the_users_error(tmp_path: Path) -> None:
    values = np.full((40, 2, 2), np.nan, np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["lr"], file["hr"] = values, values
    batches = StreamedBatches(TrainDataset(tmp_path / "a.h5"), CPU, 1, 40, batch_size=8, seed=1)
    with pytest.raises(UserError, match=r"a\.h5: /lr holds values that are not finite") as error:
        next(batches.epoch(0))
    assert "\n" not in str(error.value)
