"""Muon where a layer's inputs are white, against the definition, and the recipe that uses it."""

import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from commands import ROOT, run
from runs import newest_step, training_by_two
from samples import network, save_weights
from torch import nn
from torch.nn import functional

from model import SRCNN
from training import whitening
from training.muon import MuonAdam
from training.optimizers import build_optimizer
from training.recipes import POLISH
from training.whitening import WhitenedMuon

LAYERS = {"conv1": 1.0, "conv2": 1.0, "conv3": 0.5}
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def smooth(seed: int) -> torch.Tensor:
    """Pictures whose neighbours are alike, as those of photographs are."""
    generator = torch.Generator().manual_seed(seed)
    return functional.avg_pool2d(torch.rand(4, 1, 28, 28, generator=generator), 5, 1)


def whitened(model: SRCNN) -> WhitenedMuon:
    return WhitenedMuon(model, lr=1e-4, muon_lr=1e-3, layers=LAYERS)


def step(model: SRCNN, optimizer: MuonAdam, seed: int = 0) -> None:
    optimizer.zero_grad()
    low = smooth(seed)
    nn.functional.mse_loss(model(low), low.roll(1, 2)).backward()
    optimizer.step()


def inputs_of(model: SRCNN, name: str, low: torch.Tensor) -> torch.Tensor:
    """Return all that a layer's kernel sees, a row for each place, in fp64."""
    layer = model.get_submodule(name)
    x = low if name == "conv1" else functional.relu(model.conv1(low))
    side = layer.kernel_size[0]
    rows = functional.unfold(x, side, padding=side // 2)
    return rows.transpose(1, 2).reshape(-1, rows.shape[1]).double().detach()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["conv1", "conv2"])
def test_a_step_is_orthogonal_where_the_inputs_are_white(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format, name: str
) -> None:
    monkeypatch.setattr(whitening, "PLACES", 200_000)  # nearly all, each many times
    model = network().to(memory_format=layout)
    seen = inputs_of(model, name, smooth(0))
    optimizer, layer = whitened(model), model.get_submodule(name)
    before = layer.weight.detach().clone()
    step(model, optimizer)
    moments = seen.T @ seen / len(seen)
    own = optimizer.moments[list(LAYERS).index(name)].double()
    assert (own - moments).norm() < 0.02 * moments.norm()
    damping = whitening.DAMPING * moments.diagonal().mean()
    root = torch.linalg.cholesky(moments + damping * torch.eye(len(moments)))
    change = (before - layer.weight.detach()).flatten(1).double() / 1e-3 @ root
    gradient = torch.linalg.solve_triangular(
        root, layer.weight.grad.flatten(1).double().T, upper=False
    ).T
    left, sizes, right = torch.linalg.svd(gradient, full_matrices=False)
    turned = left.T @ change @ right.T  # Muon makes about 1 of each of the sizes
    assert sizes[0] > 5 * sizes[len(sizes) // 2], "or there was nothing to make even"
    large = turned.diagonal()[: len(sizes) // 2]
    assert 0.5 < large.min() < large.max() < 1.6
    assert float(turned.norm()) == pytest.approx(float(change.norm()), rel=0.1), "no step elsewhere"


def test_the_third_layer_and_the_biases_step_as_with_muon() -> None:
    models = [network(), network()]
    step(models[0], whitened(models[0]))
    step(models[1], MuonAdam(models[1], lr=1e-4, muon_lr=1e-3, layers=LAYERS))
    one, other = (dict(model.named_parameters()) for model in models)
    for name, weight in one.items():
        assert torch.equal(weight, other[name]) == (name not in ("conv1.weight", "conv2.weight"))


def test_inputs_are_looked_at_in_the_first_steps_and_then_seldom() -> None:
    """Their moments are the mean at first; working out what follows leaves them alone."""
    model = network()
    optimizer = whitened(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    looks, total = 0, 0.0
    for number in range(2 * whitening.EVERY + 1):
        before = optimizer.moments[0].clone()
        with torch.no_grad():
            model(torch.ones(1, 1, 9, 9))  # an evaluation is not looked at
        assert torch.equal(optimizer.moments[0], before)
        step(model, optimizer, seed=number)
        if torch.equal(optimizer.moments[0], before):
            continue
        looks += 1
        assert number < whitening.FIRST or number % whitening.EVERY == 0
        if number < whitening.FIRST:
            total += float(inputs_of(model, "conv1", smooth(number)).square().mean())
            mean = float(optimizer.moments[0].diagonal().mean())
            assert mean == pytest.approx(total / looks, rel=0.02)
    assert looks == whitening.FIRST + 2


@pytest.mark.parametrize("layouts", [LAYOUTS, LAYOUTS[::-1]])
def test_it_goes_on_from_its_state_in_either_layout(layouts: list[torch.memory_format]) -> None:
    first = network().to(memory_format=layouts[0])
    optimizer = whitened(first)
    for seed in range(whitening.FIRST + 2):
        step(first, optimizer, seed)
    ends = []
    for layout in layouts:
        model = network().to(memory_format=layout)
        model.load_state_dict(first.state_dict())
        other = whitened(model)
        other.load_state_dict(deepcopy(optimizer.state_dict()))
        ends.append(model)
        step(model, other, 99)
    step(first, optimizer, 99)
    for gone_on, tolerance in zip(ends, (0.0, 1e-4), strict=True):
        for one, same in zip(first.parameters(), gone_on.parameters(), strict=True):
            torch.testing.assert_close(one.contiguous(), same.contiguous(), rtol=0, atol=tolerance)


def test_what_is_not_finite_ends_in_weights_that_are_not() -> None:
    """The loop then ends the run with its one line."""
    model = network()
    optimizer = whitened(model)
    optimizer.zero_grad()
    model(torch.full((1, 1, 12, 12), math.nan)).mean().backward()
    optimizer.step()
    assert not model.conv1.weight.isfinite().any()


def test_pictures_smaller_than_a_kernel() -> None:
    model = network()
    optimizer = whitened(model)
    model(torch.rand(2, 1, 3, 4)).square().mean().backward()
    optimizer.step()
    assert model.conv2.weight.isfinite().all()


def test_several_processes_whiten_by_the_inputs_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would step elsewhere otherwise; here the other one has seen nothing but ones."""
    alone, model = network(), network()
    optimizers = whitened(alone), whitened(model)
    step(alone, optimizers[0])
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    firsts = []

    def add_ones(tensor: torch.Tensor) -> None:
        assert tensor.is_contiguous(), "NCCL and HCCL refuse it"
        tensor.add_(1.0)

    def note_first(tensor: torch.Tensor, src: int) -> None:
        assert tensor.is_contiguous(), "NCCL and HCCL refuse it"
        firsts.append(src)

    monkeypatch.setattr("torch.distributed.all_reduce", add_ones)
    monkeypatch.setattr("torch.distributed.broadcast", note_first)
    step(model, optimizers[1])
    for own, shared in zip(*(o.moments.values() for o in optimizers), strict=True):
        torch.testing.assert_close(shared, (own + 1) / 2)
    assert firsts == [0, 0], "what follows from them is the same on all, to the last bit"
    assert not torch.equal(model.conv2.weight, alone.conv2.weight)


NOTING_WEIGHTS = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
import torch, train
from training.whitening import WhitenedMuon

step, folder = WhitenedMuon.step, sys.argv.pop(1)

def noting(optimizer):
    step(optimizer)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    torch.save(weights, f"{folder}/{os.environ['RANK']}.pt")

WhitenedMuon.step = noting
train.main()
"""


def test_two_processes_polish_the_same_weights(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "noting.py").write_text(NOTING_WEIGHTS)
    words = ["--recipe=polish", "--num-steps=12", f"--init-weights={save_weights(tmp_path / 'w')}"]
    command = training_by_two(dataset, tmp_path / "out", 1)
    program = command.index(ROOT / "train.py")
    command[program : program + 1] = [tmp_path / "noting.py", ROOT, tmp_path]
    result = run(*command, *words)
    assert result.returncode == 0, result.stderr
    assert "12 steps of 4 samples on 2 process(es), whitened-muon" in result.stdout
    assert newest_step(tmp_path / "out") == 12
    pairs = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_inputs_that_overflowed_or_are_black_do_no_harm() -> None:
    """A loss scale that was too high costs one step, which is skipped, not the moments."""
    model = network()
    optimizer = whitened(model)
    for value in (math.inf, 0.0):
        optimizer.zero_grad()
        model(torch.full((1, 1, 12, 12), value)).mean().backward()
        assert all(moments.isfinite().all() for moments in optimizer.moments.values())
    optimizer.step()
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_polishing_takes_it_at_the_recipes_rates() -> None:
    optimizer = build_optimizer(POLISH, SRCNN(), torch.device("cpu"), apex=False)
    assert isinstance(optimizer, WhitenedMuon)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([5e-4, 5e-4, 2.5e-4, 5e-4])
    assert optimizer.moments.keys() == {0, 1}
