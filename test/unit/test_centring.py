"""The last bias of averaged weights: what it is set by, and what is left alone."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from samples import OneOfSeveral, network, new_state
from torch.nn.functional import mse_loss

import train
from model import SRCNN
from training import centring
from training.batches import Batch, Batches, BatchPlan
from training.centring import centre
from training.recipes import FAST, POLISH, Recipe
from training.state import TrainingState

CPU = torch.device("cpu")


class Crops(Batches):
    """Five batches an epoch; pixels weigh differently, but for the last batch's."""

    def __init__(self) -> None:
        super().__init__(BatchPlan(2), 5)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step in range(start, 5):
            generator = torch.Generator().manual_seed(10 * epoch + step)
            high, weights = torch.rand(2, 2, 1, 20, 24, generator=generator)
            yield Batch(high.roll(1, 3), 0.9 * high, None if step == 4 else 3 * weights)


def averaged(recipe: Recipe, steps: int = 20) -> TrainingState:
    """Return a state whose average is away from its weights, in brightness, too."""
    state = new_state(replace(recipe, ema_share=0.5), steps)
    for name, weight in network().state_dict().items():
        state.ema[name].copy_(weight)
    return state


def mean_error(weights: dict[str, torch.Tensor], epoch: int, steps: int) -> float:
    """Return the weighted mean error over the first batches of an epoch."""
    model, errors, total = network(), 0.0, 0.0
    model.load_state_dict(weights)
    for low, high, given in list(Crops().epoch(epoch))[:steps]:
        weight = torch.ones_like(high) if given is None else given
        with torch.no_grad():
            errors += (weight * (model(low) - high)).sum().item()
        total += weight.sum().item()
    return errors / total


@pytest.mark.parametrize("steps", [3, 5])
def test_the_mean_error_is_zero_and_only_the_averages_bias_has_changed(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(centring, "BATCHES", 3 if steps == 3 else 100)
    state = averaged(POLISH)
    before = {name: weight.clone() for name, weight in state.master_params().items()}
    assert abs(mean_error(state.ema, 1, steps)) > 0.01
    centre(state, Crops(), 1, SRCNN())
    assert abs(mean_error(state.ema, 1, steps)) < 1e-6
    for name, weight in network().state_dict().items():
        assert torch.equal(state.ema[name], weight) == (name != "conv3.bias")
    assert all(torch.equal(weight, before[name]) for name, weight in state.master_params().items())


class WithAnother(OneOfSeveral):
    """Adds what another process, with crops twice as heavy and without error, has."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        values += torch.stack([torch.zeros(()), 2 * values[1]])
        return values


def test_all_processes_crops_count() -> None:
    state = averaged(POLISH)
    error = mean_error(state.ema, 0, 5)
    state.world = WithAnother(CPU, 0, 2)
    centre(state, Crops(), 0, SRCNN())
    change = network().conv3.bias.item() - state.ema["conv3.bias"].item()
    assert change == pytest.approx(error / 3, rel=1e-4)


def test_without_an_average_nothing_is_done() -> None:
    state = new_state(POLISH, 10)
    centre(state, Crops(), 0, SRCNN())
    assert state.ema is None


class Evaluator:
    """Notes the weights in place of their PSNR."""

    def __init__(self) -> None:
        self.model = SRCNN()
        self.seen: list[dict[str, torch.Tensor]] = []

    def scores(self, state: TrainingState) -> dict[str, float | None]:
        self.seen.append({name: weight.clone() for name, weight in state.weights().items()})
        return {"psnr": 30.0, "held_out_psnr": None}


@pytest.mark.parametrize("recipe", [POLISH, FAST], ids=lambda recipe: recipe.name)
def test_polishing_centres_what_each_epoch_leaves(recipe: Recipe) -> None:
    evaluator = Evaluator()
    train.train(averaged(recipe, 10), Crops(), mse_loss, evaluator)
    off = [abs(mean_error(weights, epoch, 5)) for epoch, weights in enumerate(evaluator.seen)]
    assert len(off) == 2
    assert all((error < 1e-6) == (recipe is POLISH) for error in off)


def test_what_is_trained_goes_on_as_without_it() -> None:
    ends = []
    for centred in (True, False):
        state = averaged(replace(POLISH, centred=centred), 10)
        train.train(state, Crops(), mse_loss, Evaluator())
        ends.append(state.master_params())
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name], rtol=0, atol=1e-6)
