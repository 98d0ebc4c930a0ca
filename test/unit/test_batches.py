"""What an epoch consists of: every patch once, in an order that seed and epoch decide."""

import errno
import multiprocessing
import os
import signal
from collections.abc import Iterator
from itertools import chain
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from datasets import Pair, TrainDataset
from runtime.errors import RunError, UserError
from runtime.numbers import SEED
from training.batches import Batches, BatchPlan, PatchBatches
from training.streaming import StreamedBatches, patch_reader

CPU = torch.device("cpu")


def numbered(count: int, side: int = 2) -> torch.Tensor:
    """Patches whose pixels all hold the patch's number, in 256ths."""
    values = torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1) / 256
    return values.expand(-1, 1, side, side)


def numbers(batches: Batches, epoch: int, start: int = 0) -> list[list[int]]:
    values = []
    for lr, hr, _ in batches.epoch(epoch, start):
        assert torch.equal(lr + 1 / 256, hr)
        values.append([round(256 * value) for value in lr[:, 0, 0, 0].tolist()])
    return values


def flat(epoch: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(epoch))


def resident(count: int, **plan: int) -> PatchBatches:
    lr = numbered(count)
    return PatchBatches(lr, lr + 1 / 256, CPU, BatchPlan(**plan))


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


def test_an_order_stays_in_the_next_release() -> None:
    """So that a run can go on there; neighbouring seeds never share an epoch's order."""
    generator = torch.Generator().manual_seed(3_000_011)
    expected = torch.randperm(50, generator=generator).tolist()
    assert flat(numbers(resident(50, batch_size=10, seed=3), 2)) == expected
    assert BatchPlan(8, world_size=3) == BatchPlan(8, 0, 3, 0)
    assert resident(50, batch_size=10).plan == BatchPlan(10, 0, 1, 0)


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
    values = 255 / 256 * np.arange(250, dtype=np.float32)[:, None, None]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, more in (("lr", 0.0), ("hr", 255 / 256)):
            file[name] = np.broadcast_to(values + more, (250, 2, 3))
    return TrainDataset(tmp_path / "a.h5")


def streamed(dataset: TrainDataset, count: int, workers: int = 0, **values: int) -> StreamedBatches:
    plan = BatchPlan(**values)
    steps = count // plan.samples_per_step
    return StreamedBatches(patch_reader(dataset, count, plan), plan, steps, CPU, workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_disk_are_those_from_memory(patch_file: TrainDataset, workers: int) -> None:
    """In every epoch, from any step on, and never one of the patches after the first `count`."""
    for rank in (0, 1):
        plan = {"batch_size": 8, "rank": rank, "world_size": 2, "seed": 3}
        memory, disk = resident(241, **plan), streamed(patch_file, 241, workers, **plan)
        assert memory.steps_per_epoch == disk.steps_per_epoch == 15
        for epoch, start in ((0, 0), (1, 11)):
            assert numbers(disk, epoch, start) == numbers(memory, epoch, start)


@pytest.fixture
def as_in_python_3_14() -> Iterator[None]:
    """Processes are started by a server that knows nothing of this one."""
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(None, force=True)


@pytest.mark.usefixtures("as_in_python_3_14")
def test_workers_begin_as_copies_of_this_process() -> None:
    """Else each would load torch, and get what was drawn, in every epoch."""
    pair = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    batches = StreamedBatches(lambda _: lambda _: pair, BatchPlan(2), 4, CPU, 1)
    assert sum(batch[1].sum().item() for batch in batches.epoch(0)) == 8


@pytest.mark.filterwarnings("error:This DataLoader will create")
def test_more_workers_than_cores_are_no_news(patch_file: TrainDataset) -> None:
    workers = len(os.sched_getaffinity(0)) + 1
    next(streamed(patch_file, 241, workers, batch_size=8, seed=3).epoch(0))


def test_a_reading_worker_passes_on_the_users_error(tmp_path: Path) -> None:
    values = np.full((40, 2, 2), np.nan, np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["lr"], file["hr"] = values, values
    batches = streamed(TrainDataset(tmp_path / "a.h5"), 40, 1, batch_size=8, seed=1)
    before = active_children()
    with pytest.raises(UserError, match=r"a\.h5: lr holds values that are not finite") as error:
        next(batches.epoch(0))
    assert "\n" not in str(error.value)
    assert active_children() == before, "it ended at once, which later takes 5 s"


@pytest.mark.parametrize("kind", [UserError, RunError])
def test_an_error_for_the_user_stays_of_its_kind(kind: type[UserError]) -> None:
    def fails(_: slice) -> Pair:
        raise kind("the disk: it is gone")

    with pytest.raises(kind) as error:
        next(StreamedBatches(lambda _: fails, BatchPlan(2), 4, CPU, 1).epoch(0))
    assert (type(error.value), str(error.value)) == (kind, "the disk: it is gone")


@pytest.mark.parametrize(
    "error", [UserError("a.h5 is damaged"), RuntimeError("a bug\nof this program")]
)
def test_an_error_of_this_process_stays_what_it_is(error: Exception) -> None:
    def fails(_: slice) -> Pair:
        raise error

    with pytest.raises(type(error)) as raised:
        next(StreamedBatches(lambda _: fails, BatchPlan(2), 4, CPU, 0).epoch(0))
    assert str(raised.value) == str(error)


def test_a_bug_in_a_reading_worker_is_told_as_one() -> None:
    def fails(_: slice) -> Pair:
        raise RuntimeError("shapes differ")

    before = active_children()
    with pytest.raises(RuntimeError, match="shapes differ") as error:
        next(StreamedBatches(lambda _: fails, BatchPlan(2), 4, CPU, 1).epoch(0))
    assert not isinstance(error.value, RunError)
    assert active_children() == before, "Python waits for a worker that is left, for ever"


def test_a_worker_that_is_killed_ends_in_one_line() -> None:
    def killed(_: slice) -> Pair:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    batches = StreamedBatches(lambda _: killed, BatchPlan(2), 4, CPU, 1)
    with (
        pytest.raises(RunError, match=r"was killed, .*; lower --num-workers") as error,
        batches.reading(0) as epoch,
    ):
        next(epoch)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("error:Exception ignored in")  # PyTorch's, of half a loader
def test_a_worker_that_cannot_be_started_leaves_none_behind(
    patch_file: TrainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a limit of processes, open files or memory: the first had begun, deaf to SIGTERM."""
    start, begun = BaseProcess.start, []

    def only_one_can_be(worker: BaseProcess) -> None:
        if begun:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        start(worker)
        begun.append(worker)

    monkeypatch.setattr(BaseProcess, "start", only_one_can_be)
    with pytest.raises(
        RunError, match=r"\(Resource temporarily unavailable\); lower --num-workers"
    ):
        next(streamed(patch_file, 241, 2, batch_size=8, seed=3).epoch(0))
    begun[0].join(60)
    assert not begun[0].is_alive(), "Python waits for it, for ever"


def test_the_largest_seed_gives_each_epoch_one_of_its_own() -> None:
    largest = SEED(str(10**12))
    batches = resident(50, batch_size=10, seed=largest)
    assert numbers(batches, 8_000_000) != numbers(batches, 8_000_001)


def test_workers_go_on_reading_when_the_whole_group_is_told_to_stop(
    patch_file: TrainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by `timeout` or a job's scheduler: the main process takes one step more, and saves."""
    run = BaseProcess.run

    def told_as_it_starts(worker: BaseProcess) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        run(worker)

    monkeypatch.setattr(BaseProcess, "run", told_as_it_starts)
    before = active_children()
    batches = streamed(patch_file, 241, 2, batch_size=8, seed=3).epoch(0)
    next(batches)
    for worker in set(active_children()) - set(before):
        os.kill(worker.pid, signal.SIGTERM)
    assert len(list(batches)) == 29
    assert active_children() == before
