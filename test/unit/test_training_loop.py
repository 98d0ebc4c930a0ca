"""The loop of train.py in this process: what a step, an epoch and a whole run do, by hand."""

import csv
import errno
import io
import math
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import samples
import torch
from samples import OneOfSeveral
from torch import nn
from torch.nn.functional import mse_loss

from datasets import EvalDataset
from inference.last_layer import ColumnsAsChannels
from model import SRCNN, identity_init
from runtime.distributed import World
from runtime.errors import RunError, run_main
from train import train, train_epoch, training_step
from training import checkpoint
from training.batches import Batch, Batches, BatchPlan
from training.evaluation import Evaluator, mean_psnr
from training.growth import growing
from training.precision import Precision
from training.recipes import FAST, POLISH, REFERENCE, Recipe, apply_overrides
from training.results import Results
from training.state import TrainingState, new_model
from training.stopping import Interrupted, StopRequest
from training.streaming import StreamedBatches
from training.timing import StepTimer

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("handlers")
STEPS = 3  # of an epoch
WISHES = ("num_epochs", "batch_size", "lr", "optimizer", "init_weights")


class Noise(Batches):
    """Batches that differ from step to step and whose low and high resolution differ."""

    def __init__(self, steps: int = STEPS) -> None:
        super().__init__(BatchPlan(2, seed=5), steps)
        self.seen: list[tuple[int, int]] = []

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step in range(start, self.steps_per_epoch):
            self.seen.append((epoch, step))
            generator = torch.Generator().manual_seed(100 * epoch + step)
            high = torch.rand(2, 1, 12, 9, generator=generator)
            yield Batch(0.5 * high + 0.1, high)


def new_state(recipe: Recipe, epochs: int, precision: Precision | None = None) -> TrainingState:
    return samples.new_state(recipe, epochs * STEPS, precision)


@pytest.fixture
def evaluator(tmp_path: Path) -> Evaluator:
    """Two images to evaluate and one that is held out, none of them square."""
    rng = np.random.default_rng(2)
    with h5py.File(tmp_path / "val_x3.h5", "w") as file:
        for number, shape in enumerate([(20, 31), (17, 24)]):
            file[f"hr/{number}"] = rng.uniform(16, 235, shape).astype(np.float32)
            file[f"lr/{number}"] = 0.9 * file[f"hr/{number}"][:]
    low = torch.rand(1, 1, 18, 25, generator=torch.Generator().manual_seed(1))
    return Evaluator(
        EvalDataset(tmp_path / "val_x3.h5"), [(low, low.sqrt())], World(CPU), Precision()
    )


def test_a_step_takes_low_resolution_in_and_compares_with_the_original() -> None:
    model = SRCNN()
    twin = SRCNN()
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.conv1.weight.grad = torch.full_like(model.conv1.weight, 1e3)  # of an earlier step
    low, high, _ = next(Noise().epoch(0))
    loss, stepped = training_step(model, optimizer, Precision(), mse_loss, low, high)
    expected = (twin(low) - high).square().mean()
    expected.backward()
    assert stepped
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for after, before in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(after.detach(), before.detach() - 0.1 * before.grad)


def test_a_samples_weight_is_that_of_its_squared_error() -> None:
    torch.manual_seed(3)
    model, (low, high, _) = SRCNN(), next(Noise().epoch(0))
    weights = torch.tensor([0.25, 2.0]).view(2, 1, 1, 1)
    expected = ((model(low) - high).square().mean((1, 2, 3)) @ weights.flatten() / 2).item()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss, _ = training_step(model, optimizer, Precision(), mse_loss, low, high, weights)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


class Watched(Precision):
    """Computes in bfloat16; notes which optimizer it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[torch.optim.Optimizer] = []

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def backward(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        self.given.append(optimizer)
        super().backward(loss, optimizer)

    def _step(self, optimizer: torch.optim.Optimizer) -> bool:
        self.given.append(optimizer)
        return False

    def master_params(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> dict[str, torch.Tensor]:
        self.given.append(optimizer)
        return super().master_params(model, optimizer)


def test_a_step_computes_the_loss_in_fp32_and_says_that_it_was_skipped() -> None:
    types, model, precision = [], SRCNN(), Watched()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def noting(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        types.extend((output.dtype, target.dtype))
        return mse_loss(output, target)

    loss, stepped = training_step(model, optimizer, precision, noting, *next(Noise().epoch(0)))
    assert (loss.dtype, stepped) == (torch.float32, False)
    assert types == [torch.float32, torch.float32]
    assert precision.given == [optimizer, optimizer]


@pytest.mark.parametrize("processes", [1, 4])
def test_learning_rates_step_by_step_and_by_group(processes: int) -> None:
    wanted = dict.fromkeys(WISHES)
    recipe = apply_overrides(FAST, wanted, processes, whole_images=True)
    state = new_state(recipe, epochs=4)
    factor = math.sqrt(processes)
    for step in range(12):
        state.step = step
        state.begin_step()
        scaled = factor * min(1, (1 - step / 12) / 0.4)
        rates = [group["lr"] for group in state.optimizer.param_groups]
        assert rates == pytest.approx([scaled * rate for rate in (1e-2, 1e-2, 5e-4, 1e-3)])
    reference = new_state(apply_overrides(REFERENCE, wanted, processes, True), epochs=4)
    reference.begin_step()
    rates = [group["lr"] for group in reference.optimizer.param_groups]
    assert rates == pytest.approx([1e-4 * factor, 1e-5 * factor])


def test_wishes_go_before_the_recipe_and_patches_make_larger_batches() -> None:
    wanted = {"num_epochs": 7, "batch_size": 3, "lr": 0.25, "optimizer": "sgd"}
    recipe = apply_overrides(FAST, {**wanted, "init_weights": None}, 4, whole_images=False)
    assert recipe == replace(FAST, **wanted)
    wanted = dict.fromkeys(WISHES)
    assert apply_overrides(FAST, wanted, 1, whole_images=True) == FAST
    assert apply_overrides(FAST, wanted, 1, whole_images=False).batch_size == 8
    tuned = apply_overrides(FAST, {**wanted, "init_weights": "w.pth"}, 1, whole_images=True)
    assert tuned == replace(FAST, small_share=0.0), "weights that are there have all their taps"
    assert apply_overrides(REFERENCE, wanted, 1, whole_images=False) == REFERENCE


def test_the_moving_average_is_that_of_its_formula() -> None:
    recipe = replace(FAST, ema_share=0.5)  # looks back over 6 of 12 steps
    state, batches = new_state(recipe, epochs=4), Noise()
    average: dict[str, torch.Tensor] = {}
    for epoch in range(2):
        for low, high, _ in batches.epoch(epoch):
            before = state.step
            state.begin_step()
            state.advance(*training_step(
                state.parallel_model, state.optimizer, state.precision, mse_loss, low, high
            ))  # fmt: skip
            decay = min(1 - 1 / 6, (before + 1) / (before + 10))
            for name, weight in state.master_params().items():
                earlier = average.get(name, weight)
                average[name] = decay * earlier + (1 - decay) * weight
    weights = state.weights()
    assert weights.keys() == average.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight.detach(), average[name], rtol=1e-5, atol=1e-7)
        assert not torch.equal(weight, state.master_params()[name])
    assert new_state(replace(FAST, ema_share=0.05), epochs=4).ema is None  # less than one step


class HalfWeights(Precision):
    """As apex O2 has it: fp16 weights in the network, fp32 ones with the optimizer."""

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        self.masters = {name: w.detach().clone() for name, w in model.named_parameters()}
        return model.half(), torch.optim.SGD(self.masters.values(), lr=0.1)

    def master_params(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> dict[str, torch.Tensor]:
        return self.masters


def test_what_is_averaged_is_fp32_where_the_network_is_fp16() -> None:
    """In fp16 a two-hundredth of a small step is nothing, and the average would stand still."""
    state = new_state(replace(FAST, optimizer="adam", ema_share=0.1), 500, HalfWeights())
    state.advance(torch.tensor(0.5), stepped=True)
    target = {name: weight.add_(5e-4) for name, weight in state.master_params().items()}
    state.model.load_state_dict(target)
    for _ in range(500 * STEPS - 1):
        state.advance(torch.tensor(0.5), stepped=True)
    for name, weight in state.weights().items():
        torch.testing.assert_close(weight, target[name], rtol=0, atol=2e-6)


class EverySecond(Precision):
    """Skips every second step."""

    def _step(self, optimizer: torch.optim.Optimizer) -> bool:
        self.calls = getattr(self, "calls", 0) + 1
        return self.calls % 2 == 1 and super()._step(optimizer)


def test_the_mean_loss_leaves_skipped_steps_out_and_begins_anew() -> None:
    state, batches, losses = new_state(REFERENCE, 2, EverySecond()), Noise(), []

    def noting(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = mse_loss(output, target)
        losses.append(loss.item())
        return loss

    train_epoch(state, batches, noting, StopRequest())
    assert state.mean_loss() == pytest.approx((losses[0] + losses[2]) / 2)
    assert state.precision.skipped == 1
    state.end_epoch({"epoch": 0, "psnr": 20.0, "held_out_psnr": None})
    assert math.isnan(state.mean_loss())
    train_epoch(state, batches, noting, StopRequest())  # skips the first and the third
    assert state.mean_loss() == pytest.approx(losses[4])
    assert batches.seen == [(epoch, step) for epoch in (0, 1) for step in range(STEPS)]


def test_numbers_of_no_use_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, too, and what overflows unseen on a card that saturates."""
    state = new_state(replace(FAST, ema_share=0.5), epochs=4)
    assert math.isnan(state.mean_loss())
    with torch.no_grad():
        state.ema["conv2.weight"][3, 2, 1, 0] = math.inf
    state.step = 7
    with pytest.raises(RunError, match=r"^weights are not finite at step 7; the ch"):
        state.mean_loss()
    monkeypatch.setattr("training.state.overflowed", lambda device: device == CPU)
    with pytest.raises(RunError, match=r"^numbers overflowed, which this card hides, at step 7; "):
        state.mean_loss()
    state.ema = None
    state.precision.notices_overflow = True
    assert math.isnan(state.mean_loss())


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("recipe", [REFERENCE, FAST, POLISH], ids=lambda r: r.name)
def test_the_first_weights_of_a_recipe(recipe: Recipe, plain: bool) -> None:
    """In the layout of the device; in the form that trains best on it unless plain."""
    torch.manual_seed(3)
    model = new_model(recipe, Precision(), plain)
    torch.manual_seed(3)
    expected = SRCNN()
    if recipe is POLISH:
        identity_init(expected)
    if recipe is FAST:
        torch.manual_seed(3)
        small = SRCNN(kernel_sizes=(9, 3, 5))
        identity_init(small)
        expected = growing(small)
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    assert model.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(model.conv3, ColumnsAsChannels) != plain


def test_the_losses_are_summed_where_training_runs() -> None:
    """One a process, on a device without numbers here."""
    model = SRCNN()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    world = World(torch.device("meta"))
    state = TrainingState(model, optimizer, REFERENCE, world, Precision(), 1)
    assert state.loss_sums.is_meta
    assert state.loss_sums.shape == (1,)


def test_the_weights_are_asked_of_the_optimizer_that_has_them() -> None:
    """Apex keeps those in fp32 there."""
    precision = Watched()
    state = new_state(REFERENCE, 1, precision)
    assert list(state.weights()) == list(SRCNN().state_dict())
    assert precision.given == [state.optimizer]


class Two(OneOfSeveral):
    """Two processes, of which the other one's losses add up to 5."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        values[1 - self.rank] += 5
        return values


def test_the_state_of_one_process_holds_the_losses_of_all() -> None:
    def of(rank: int) -> TrainingState:
        model = SRCNN()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return TrainingState(model, optimizer, REFERENCE, Two(CPU, rank, 2), Precision(), 6)

    first, second = of(0), of(1)
    first.advance(torch.tensor(2.0), stepped=True)
    first.gather_losses()
    saved = first.state_dict()
    for state, loss in ((of(0), 2), (second, 5)):
        state.load_state_dict(saved)
        assert (state.step, state.loss_sum.item(), state.loss_count) == (1, loss, 1)
        assert state.loss_sums[state.world.rank] == loss


def test_the_best_epoch_is_that_of_the_score_and_a_tie_goes_to_the_first() -> None:
    def scores(held_out: bool) -> list[tuple[int, float]]:
        state, best = new_state(REFERENCE, 4), []
        for epoch, (psnr, other) in enumerate([(30.0, 27.0), (31.0, 26.0), (31.0, 28.0), (29, 28)]):
            row = {"epoch": epoch, "psnr": psnr, "held_out_psnr": other if held_out else None}
            state.end_epoch(row)
            best.append((state.best["epoch"], state.best["psnr"]))
        return best

    assert scores(held_out=False) == [(0, 30.0), (1, 31.0), (1, 31.0), (1, 31.0)]
    assert scores(held_out=True) == [(0, 30.0), (0, 30.0), (2, 31.0), (2, 31.0)]
    with pytest.raises(RunError, match="the PSNR is nan at step 0"):
        new_state(REFERENCE, 1).end_epoch({"epoch": 0, "psnr": math.nan, "held_out_psnr": None})


def test_a_bug_in_a_step_leaves_no_process_that_reads() -> None:
    """Python waits for such a process as it ends, for ever; `error` holds all that it may."""

    def fails(_: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
        raise ValueError("a bug")

    before = active_children()
    batches = StreamedBatches(lambda _: lambda _: next(Noise().epoch(0)), BatchPlan(2), 3, CPU, 2)
    with pytest.raises(ValueError, match="a bug") as error:
        train_epoch(new_state(REFERENCE, epochs=1), batches, fails)
    assert active_children() == before, error


def test_a_worker_that_is_killed_during_a_step_ends_the_run_in_one_line() -> None:
    """PyTorch hears of it by a signal: that comes wherever this process is, most often here."""
    before, finished = active_children(), []

    def killing(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        for worker in set(active_children()) - set(before):
            os.kill(worker.pid, signal.SIGKILL)
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        finished.append(output)
        return mse_loss(output, target)

    batches = StreamedBatches(lambda _: lambda _: next(Noise().epoch(0)), BatchPlan(2), 9, CPU, 1)
    with pytest.raises(RunError, match=r"was killed, .*; lower --num-workers") as error:
        train(new_state(REFERENCE, epochs=3), batches, killing, None)
    assert not finished
    assert active_children() == before, error


class FirstCannotWrite(OneOfSeveral):
    """One of two processes; the first tells the other that it failed."""

    def highest(self, value: int) -> int:
        return 1 if value is True or (value is False and self.rank) else 0


def full(*_: object) -> None:
    raise RunError("the disk is full")


@pytest.mark.parametrize(
    ("rank", "told"), [(0, "the disk is full"), (1, "the first process of the training ended")]
)
def test_where_the_first_process_cannot_write_all_end(
    rank: int, told: str, evaluator: Evaluator
) -> None:
    """Or the others would wait for it, for half an hour."""
    state = new_state(REFERENCE, epochs=2)
    state.world = FirstCannotWrite(CPU, rank, 2)
    results = SimpleNamespace(add_epoch=full) if rank == 0 else None
    with pytest.raises(RunError, match=told):
        train(state, Noise(), mse_loss, evaluator, results)
    assert state.step == STEPS


def test_an_epoch_goes_on_where_it_was_left() -> None:
    state, batches = new_state(REFERENCE, epochs=2), Noise()
    state.step = STEPS + 1
    train_epoch(state, batches, mse_loss, StopRequest())
    assert batches.seen == [(1, 1), (1, 2)]
    assert state.step == 2 * STEPS


@pytest.mark.parametrize("recipe", [REFERENCE, replace(FAST, ema_share=0.5)], ids=lambda r: r.name)
def test_a_run_that_goes_on_from_its_state_ends_the_same(
    recipe: Recipe, evaluator: Evaluator, tmp_path: Path
) -> None:
    """Between two epochs, through the file of a checkpoint, with the average where there is one."""
    whole = new_state(recipe, epochs=3)
    train(whole, Noise(), mse_loss, evaluator)
    first = new_state(recipe, epochs=3)
    for epoch in (0, 1):
        train_epoch(first, Noise(), mse_loss, StopRequest())
        metrics = {"epoch": epoch, **evaluator.scores(first)}
        first.end_epoch(metrics)
    options = {"seed": 1}
    saved = {"options": options, "training": first.state_dict(), "recorder": {}}
    path = checkpoint.save(tmp_path, first.step, checkpoint.pack(saved))
    second = new_state(recipe, epochs=3)
    checkpoint.restore(checkpoint.load(path), options, second)
    assert (second.step, second.best) == (6, first.best)
    train(second, Noise(), mse_loss, evaluator)
    for name in whole.weights():
        assert torch.equal(whole.weights()[name], second.weights()[name])
        assert torch.equal(whole.master_params()[name], second.master_params()[name])


def test_psnr_clamps_the_output_and_is_the_mean_over_images() -> None:
    bright = nn.Conv2d(1, 1, 1)
    nn.init.constant_(bright.weight, 2.0)
    nn.init.constant_(bright.bias, 0.0)
    first = torch.full((1, 1, 2, 3), 0.9), torch.full((1, 1, 2, 3), 0.9)  # 1.8 becomes 1
    second = torch.full((1, 1, 5, 4), 0.3), torch.full((1, 1, 5, 4), 0.5)  # 0.6
    psnr = [-20 * math.log10(0.1), -20 * math.log10(0.1)]
    third = torch.full((1, 1, 3, 3), 0.2), torch.full((1, 1, 3, 3), 0.41)  # 0.4
    psnr.append(-20 * math.log10(0.01))
    measured = mean_psnr(bright, [first, second, third], World(CPU))
    assert measured == pytest.approx(sum(psnr) / 3, abs=0.01)


def test_what_a_run_records(
    evaluator: Evaluator, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Every second epoch's weights and the last one's; metrics and the known lines."""
    state, folder = new_state(REFERENCE, epochs=4), tmp_path / "x3"
    results = Results(folder, {"seed": 1}, save_every=2)
    train(state, Noise(), mse_loss, evaluator, results)
    results.wait()
    names = sorted(path.name for path in folder.glob("*.pth"))
    assert names == ["best.pth", "epoch_0.pth", "epoch_2.pth", "epoch_3.pth"]
    lines = capsys.readouterr().out.splitlines()
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["step"] for row in rows] == ["3", "6", "9", "12"]
    assert all(row["raw_psnr"] == "" and float(row["held_out_psnr"]) > 0 for row in rows)
    for epoch, row in enumerate(rows):
        (place,) = (n for n, line in enumerate(lines) if line.startswith(f"epoch{epoch} : "))
        assert lines[place].startswith(f"epoch{epoch} : loss={float(row['loss']):.6f}, each_step_")
        assert lines[place + 1] == f"eval psnr: {float(row['psnr']):.2f}"
    weights = torch.load(folder / f"epoch_{3}.pth", weights_only=True)
    assert all(torch.equal(weights[name], w) for name, w in state.master_params().items())


class Profiler:
    """Notes what it is given to watch."""

    def __init__(self) -> None:
        self.watched: list[int] = []

    def watch(self, pairs: Iterator[Batch], steps: int) -> Iterator[Batch]:
        self.watched.append(steps)
        return pairs


def test_times_rates_and_losses_of_the_epochs(
    evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """The warm-up and the profile are those of the first epoch, which is a long one here."""
    clock, losses, profiler = Clock(), [], Profiler()
    seconds = iter([10.0, 1, 1, 1, 1, 0.25, 0.5004, 1, 1, 1, 1, 1, 1, 1.5])

    def loss_function(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        clock.now += next(seconds)
        losses.append(mse_loss(output, target))
        return losses[-1]

    monkeypatch.setattr(
        "train.StepTimer", lambda synchronize, warm_up: StepTimer(synchronize, warm_up, clock)
    )
    wanted = dict.fromkeys(WISHES) | {"lr": 2e-3}
    recipe = apply_overrides(replace(FAST, ema_share=0.5), wanted, 1, True)
    state = samples.new_state(recipe, 14)
    results = Results(tmp_path / "x3", {})
    train(state, Noise(7), loss_function, evaluator, results, profiler)
    results.wait()
    tables = [list(csv.DictReader((tmp_path / "x3" / name).open()))
              for name in ("metrics.csv", "timing.csv")]  # fmt: skip
    assert [list(row.values()) for row in tables[1]] == [
        ["0", "14.75", "0.3752", "5.33"],
        ["1", "7.5", "1.071429", "1.87"],
    ]
    for epoch, row in enumerate(tables[0]):
        mean = sum(loss.item() for loss in losses[7 * epoch : 7 * epoch + 7]) / 7
        assert float(row["loss"]) == pytest.approx(mean, rel=1e-5)
        last = 7 * epoch + 6
        schedule = min(1, (1 - last / 14) / 0.4)
        assert float(row["lr"]) == pytest.approx(2e-3 * schedule)
        assert len({row["psnr"], row["raw_psnr"], row["held_out_psnr"]}) == 3
    assert profiler.watched == [7]
    output = capsys.readouterr().out
    assert output.count("first 5 steps: 14.000000 s") == output.count("first 5 steps") == 1
    assert "each_step_time=0.375200\n" in output


@pytest.mark.parametrize("step", [2, 3])
def test_a_loss_that_is_not_finite_is_looked_for_now_and_then(
    monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Here after every second step, and at the end of an epoch of three."""
    monkeypatch.setattr("train.LOOK_AT_LOSS_EVERY", 2)
    state = new_state(REFERENCE, epochs=2)

    def loss_function(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return mse_loss(output, target) * (math.nan if state.step == step - 1 else 1)

    with pytest.raises(RunError, match=f"the loss is nan at step {step}; .* lower --lr"):
        train(state, Noise(), loss_function, None)


def test_the_lines_of_an_epoch_come_as_it_ends(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the log is a file."""
    log, said = io.BytesIO(), []
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(log))

    def main() -> None:
        train(new_state(REFERENCE, epochs=1), Noise(), mse_loss, evaluator)
        said.append(log.getvalue())

    run_main(main)
    assert re.fullmatch(rb"epoch0 : loss=.*\neval psnr: [\d.]+\n", *said)


class Terminal(io.StringIO):
    """Standard error of someone who watches."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "rank"), [(Terminal, 0), (Terminal, 1), (io.StringIO, 0)])
def test_progress_is_shown_by_one_process_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], rank: int
) -> None:
    """And leaves no line behind."""
    shown = stream()
    monkeypatch.setattr("sys.stderr", shown)
    state = new_state(REFERENCE, epochs=2)
    state.step, state.world = STEPS, World(CPU, rank)
    train_epoch(state, Noise(), mse_loss, StopRequest())
    text = shown.getvalue()
    assert ("epoch 1:" in text and f"/{STEPS} " in text) == (stream is Terminal and rank == 0)
    assert "\n" not in text


class Clock:
    """A clock that the test turns."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_time_of_a_step_leaves_the_warm_up_out(capsys: pytest.CaptureFixture) -> None:
    clock, waited = Clock(), []
    timer = StepTimer(lambda: waited.append(clock.now), warm_up_of=11, clock=clock)
    for seconds in (10, 1, 1, 1, 1, 2, 3, 2, 3, 2, 3):
        clock.now += seconds
        timer.tick()
    clock.now += 0.4  # the device finishes
    assert timer.stop() == pytest.approx((29.4, 15.4 / 6))
    assert waited == [114.0, pytest.approx(129.4)]
    assert "first 5 steps: 14.000000 s" in capsys.readouterr().out
    short = StepTimer(lambda: None, warm_up_of=5, clock=clock)
    for _ in range(5):
        clock.now += 2
        short.tick()
    assert short.stop() == pytest.approx((10, 2))
    single = StepTimer(lambda: None, clock=clock)
    clock.now += 3
    single.tick()
    assert single.stop() == pytest.approx((3, 3))
    assert capsys.readouterr().out == ""


def test_each_step_of_an_epoch_has_the_rates_and_the_kernel_of_its_place() -> None:
    state, seen = new_state(FAST, epochs=4), []

    def loss_function(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append((state.optimizer.param_groups[0]["lr"], state.model.conv2.size))
        return mse_loss(output, target)

    for _ in range(4):
        train_epoch(state, Noise(), loss_function)
    rates, sizes = zip(*seen, strict=True)
    assert rates == pytest.approx([1e-2 * min(1, (1 - step / 12) / 0.4) for step in range(12)])
    assert sizes == (3,) * 8 + (5,) * 4


def test_what_is_saved_within_an_epoch_is_finite_and_holds_the_losses_of_all() -> None:
    def stopped(factor: float) -> list[int]:
        state, stop, gathered = new_state(REFERENCE, epochs=1), StopRequest(), []
        state.gather_losses = lambda: gathered.append(state.step)

        def loss_function(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            stop.signum = signal.SIGTERM
            return factor * mse_loss(output, target)

        with pytest.raises(Interrupted):
            train_epoch(state, Noise(), loss_function, stop)
        return gathered

    assert stopped(1.0) == [1]
    with pytest.raises(RunError, match="the loss is inf at step 1"):
        stopped(math.inf)


def test_images_a_second_are_those_of_all_processes_and_one_warns(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = SimpleNamespace(tick=lambda: None, stop=lambda: (1.5, 0.5))
    monkeypatch.setattr("train.StepTimer", lambda *_: timer)
    rows, warned, batches = [], [], Noise()
    batches.plan = BatchPlan(2, 0, 4)
    evaluator.warn = warned.append
    train(new_state(REFERENCE, epochs=1), batches, mse_loss, evaluator)
    assert not warned, "a process that keeps no results"
    results = SimpleNamespace(add_epoch=lambda state, metrics, timing: rows.append(timing))
    train(new_state(REFERENCE, epochs=1), batches, mse_loss, evaluator, results)
    assert len(warned) == 1
    assert [row["images_per_second"] for row in rows] == [2 * 4 / 0.5]


def test_a_checkpoint_holds_the_averaged_weights_of_the_best_epoch() -> None:
    """And how many steps were skipped."""
    recipe = replace(FAST, ema_share=0.5)
    state, again = new_state(recipe, epochs=2), new_state(recipe, epochs=2)
    train_epoch(state, Noise(), mse_loss)
    state.precision.skipped = 3
    state.end_epoch({"epoch": 0, "psnr": 30.0, "held_out_psnr": None})
    averaged = {name: weight.clone() for name, weight in state.weights().items()}
    train_epoch(state, Noise(), mse_loss)
    again.load_state_dict(state.state_dict())
    assert again.precision.skipped == 3
    assert all(torch.equal(again.best_weights[name], averaged[name]) for name in averaged)


@pytest.mark.parametrize("recipe", [REFERENCE, FAST], ids=lambda recipe: recipe.name)
def test_a_cpu_goes_on_without_foreach_whatever_a_card_had(recipe: Recipe) -> None:
    """See `optimizer_options`: torch_npu would ask a card that is not there."""
    state, again = (new_state(recipe, epochs=1) for _ in range(2))
    train_epoch(state, Noise(), mse_loss)
    saved = state.state_dict()
    adam = saved["optimizer"] if recipe is REFERENCE else saved["optimizer"]["adam"]
    for group in adam["param_groups"]:
        group["foreach"] = None
    again.load_state_dict(saved)
    optimizer = again.optimizer if recipe is REFERENCE else again.optimizer.adam
    assert [group["foreach"] for group in optimizer.param_groups] == [False] * len(
        adam["param_groups"]
    )


@pytest.mark.parametrize(("kind", "counts"), [("npu", int), ("cpu", torch.Tensor)])
def test_fused_optimizers_go_on_counting_in_numbers(kind: str, counts: type) -> None:
    """One of torch_npu's raises a tensor twice a step: it is a parameter's count, and its block's.

    PyTorch's own raises none but tensors.
    """
    state, again = (new_state(REFERENCE, epochs=1) for _ in range(2))
    train_epoch(state, Noise(), mse_loss)
    again.world = again.world._replace(device=SimpleNamespace(type=kind))
    again.load_state_dict(state.state_dict())
    steps = [values["step"] for values in again.optimizer.state.values()]
    assert steps == [state.step] * 6
    assert all(isinstance(step, counts) for step in steps)


def test_the_clock_is_read_when_the_device_has_finished() -> None:
    clock = Clock()

    def finish() -> None:
        clock.now += 0.5

    timer = StepTimer(finish, clock=clock)
    clock.now += 1
    timer.tick()
    assert timer.stop() == pytest.approx((1.5, 1.5))


def test_what_overflows_in_evaluation_is_no_fault_of_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a card that tells of it by a flag alone."""
    raised = [True]
    monkeypatch.setattr("training.state.overflowed", lambda _: bool(raised) and raised.pop())
    state = new_state(REFERENCE, epochs=2)
    state.end_epoch({"epoch": 0, "psnr": 30.0, "held_out_psnr": None})
    train_epoch(state, Noise(), mse_loss)
    assert math.isfinite(state.mean_loss())


def test_an_epoch_is_recorded_before_it_is_told(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the terminal is gone, and no signal told of it, telling fails."""

    def gone(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    rows: list[dict] = []
    results = SimpleNamespace(add_epoch=lambda state, metrics, timing: rows.append(metrics))
    monkeypatch.setattr("builtins.print", gone)
    with pytest.raises(OSError, match="Input/output error"):
        train(new_state(REFERENCE, 2), Noise(), mse_loss, evaluator, results)
    assert [row["epoch"] for row in rows] == [0]
