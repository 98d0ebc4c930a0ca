"""Kernels that grow: first the smaller network, then the larger one that starts as it."""

from dataclasses import replace

import pytest
import torch
from samples import new_state
from torch import nn
from torch.nn.functional import mse_loss

from model import SRCNN, identity_init
from train import training_step
from training.growth import growing
from training.precision import Precision
from training.recipes import FAST, Recipe
from training.state import TrainingState

SMALL_STEPS, STEPS = 3, 5
OPTIMIZERS = ["muon", "adam", "sgd"]


def step(state: TrainingState) -> None:
    """Take a step on a picture of its own."""
    high = torch.rand(2, 1, 15, 12, generator=torch.Generator().manual_seed(state.step))
    state.begin_step()
    state.advance(*training_step(
        state.parallel_model, state.optimizer, state.precision, mse_loss, high.sqrt(), high
    ))  # fmt: skip


def recipe_of(optimizer: str) -> Recipe:
    return replace(FAST, optimizer=optimizer, small_share=SMALL_STEPS / STEPS, ema_share=0.5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_learns_as_the_smaller_network_first(optimizer: str) -> None:
    recipe = recipe_of(optimizer)
    state = new_state(recipe, STEPS)
    torch.manual_seed(1)
    small = SRCNN(kernel_sizes=(9, 3, 5))
    identity_init(small)
    small = Precision().to_device(small)
    other = new_state(replace(recipe, small_share=0.0), STEPS, model=small)
    for _ in range(SMALL_STEPS):
        step(state)
        step(other)
    for weights, expected in (
        (state.master_params(), other.master_params()),
        (state.weights(), other.weights()),
    ):
        middle = nn.functional.pad(expected.pop("conv2.weight"), [1] * 4)
        torch.testing.assert_close(weights.pop("conv2.weight"), middle, rtol=1e-3, atol=1e-5)
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_rest_of_the_kernel_learns_afterwards(optimizer: str) -> None:
    recipe = recipe_of(optimizer)
    state = new_state(recipe, STEPS)
    kernel = state.master_params()["conv2.weight"]
    ring = torch.ones(5, 5, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    moved = []
    for _ in range(STEPS):
        before = kernel.clone()
        step(state)
        moved.append(bool(((kernel - before)[..., ring] != 0).float().mean() > 0.5))
    assert moved == [number >= SMALL_STEPS for number in range(STEPS)]


def test_a_grown_network_computes_what_the_small_one_did() -> None:
    small = SRCNN(kernel_sizes=(9, 3, 5))
    model, picture = growing(small), torch.rand(2, 1, 20, 17)
    torch.testing.assert_close(model(picture), small(picture))
    for size in (3, 5):
        model.conv2.size = size
        torch.testing.assert_close(model(picture), small(picture))


def test_a_long_run_does_not_stay_small_for_long() -> None:
    small = [
        FAST.is_small(step, total) for total in (10_000, 140_000) for step in (5999, 6000, 9999)
    ]
    assert small == [True, False, False, True, True, True]
    assert not FAST.is_small(10_000, 140_000)
