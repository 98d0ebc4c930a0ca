"""Optimizers and precision on a CPU: groups, Muon's views, the probe, the recipe's rates."""

import sys
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from model import SRCNN
from runtime.errors import RunError, UserError
from train import training_step
from training.muon import MuonAdam, orthogonalised
from training.optimizers import build_optimizer
from training.precision import Precision
from training.precision_choice import choose_precision
from training.recipes import FAST, REFERENCE

CPU = torch.device("cpu")
LAYERS = {"conv1": 1.0, "conv2": 1.0, "conv3": 0.1}


def loss_of(model: SRCNN) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.rand(2, 2, 1, 16, 16, generator=generator)
    return nn.functional.mse_loss(model(x), y)


def test_the_third_layer_learns_at_a_tenth_in_two_groups() -> None:
    model = SRCNN()
    groups = build_optimizer(REFERENCE, model, CPU, apex=False).param_groups
    assert [group["lr"] for group in groups] == [1e-4, 1e-5]
    assert [id(p) for group in groups for p in group["params"]] == [
        id(parameter) for parameter in model.parameters()
    ]


def test_one_rate_takes_one_group() -> None:
    recipe, model = replace(REFERENCE, last_layer_factor=1.0, optimizer="sgd"), SRCNN()
    (group,) = build_optimizer(recipe, model, CPU, apex=False).param_groups
    assert group["momentum"] == 0.9
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("apex", [False, True])
@pytest.mark.parametrize(
    ("name", "fused", "options"),
    [
        ("adam", "NpuFusedAdam", {}),
        ("sgd", "NpuFusedSGD", {"momentum": 0.9}),
        ("adadelta", "NpuFusedAdadelta", {}),
        ("lamb", "NpuFusedLamb", {}),
    ],
)
def test_an_npu_has_fused_ones(
    monkeypatch: pytest.MonkeyPatch, apex: bool, name: str, fused: str, options: dict
) -> None:
    """Apex's with apex, which has them all; torch_npu's without."""

    def made(groups: list[dict], **more: object) -> tuple:
        return [group.get("lr") for group in groups], more

    other, module = ("torch_npu.optim", "apex.optimizers")[:: 1 if apex else -1]
    monkeypatch.setitem(sys.modules, other, SimpleNamespace())
    full = SimpleNamespace(__name__=module, **{fused: made})
    monkeypatch.setitem(sys.modules, module, full)
    recipe, npu = replace(REFERENCE, optimizer=name), SimpleNamespace(type="npu")
    assert build_optimizer(recipe, SRCNN(), npu, apex) == ([None, 1e-5], {"lr": 1e-4, **options})
    monkeypatch.delattr(full, fused)
    with pytest.raises(UserError, match=f"--optimizer {name}: {module} has no {fused}"):
        build_optimizer(recipe, SRCNN(), npu, apex)


@pytest.mark.parametrize("name", ["Adam", "SGD", "Adadelta"])
def test_other_devices_have_those_of_pytorch(name: str) -> None:
    recipe = replace(REFERENCE, optimizer=name.lower())
    optimizer = build_optimizer(recipe, SRCNN(), CPU, apex=False)
    assert type(optimizer) is getattr(torch.optim, name)


def test_lamb_needs_an_npu() -> None:
    with pytest.raises(UserError, match="--optimizer lamb"):
        build_optimizer(replace(REFERENCE, optimizer="lamb"), SRCNN(), CPU, apex=False)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_orthogonalises_the_kernels_themselves(layout: torch.memory_format) -> None:
    torch.manual_seed(1)
    model = SRCNN().to(memory_format=layout)
    optimizer = MuonAdam(model, lr=1e-3, muon_lr=1e-2, layers=LAYERS)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss_of(model).backward()
    optimizer.step()
    update = (before["conv2.weight"] - model.conv2.weight.detach()).flatten(1)
    singular = torch.linalg.svdvals(update / update.norm() * update.shape[0] ** 0.5)
    assert 0.5 < singular.min() < singular.max() < 1.5, "all directions learn at one rate"
    update = (before["conv3.weight"] - model.conv3.weight.detach())[0].flatten(1)
    singular = torch.linalg.svdvals(update)  # a matrix of its 32 inputs and 25 taps
    expected = LAYERS["conv3"] * 1e-2 * (32 / 25) ** 0.5
    assert 0.6 * expected < singular.median() < singular.max() < 1.5 * expected
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_muon_steps_alike_in_both_layouts() -> None:
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(1)
        model = SRCNN().to(memory_format=layout)
        optimizer = MuonAdam(model, lr=1e-4, muon_lr=1e-3, layers=LAYERS)
        assert optimizer.dtype == torch.float32, "what every CPU is fast in"
        for _ in range(3):
            step(model, optimizer)
        results.append(loss_of(model).item())
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_muon_goes_on_in_the_other_layout() -> None:
    """As a run does that is resumed on an NPU, whose kernels lie otherwise than a CPU's."""
    torch.manual_seed(1)
    first = SRCNN().to(memory_format=torch.channels_last)
    optimizer = MuonAdam(first, lr=1e-4, muon_lr=1e-3, layers=LAYERS)
    step(first, optimizer)
    second = SRCNN()
    other = MuonAdam(second, lr=1e-4, muon_lr=1e-3, layers=LAYERS)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(optimizer.state_dict())
    for model, its in ((first, optimizer), (second, other)):
        step(model, its)
    for one, same in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one.contiguous(), same, rtol=0, atol=1e-5)


def step(model: SRCNN, optimizer: MuonAdam) -> None:
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with 2.9")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_is_that_of_pytorch_with_rows_at_one_rate(layout: torch.memory_format) -> None:
    """With gradients of all sizes, and at a learning rate that changes."""
    torch.manual_seed(2)
    model = SRCNN().to(memory_format=layout)
    ours = MuonAdam(model, lr=1e-3, muon_lr=1e-2, layers=LAYERS)
    ours.dtype = torch.bfloat16
    matrices = [nn.Parameter(torch.zeros_like(as_matrix(kernel))) for kernel in ours.kernels]
    theirs = torch.optim.Muon(matrices, lr=1.0, weight_decay=0.0, momentum=0.95, nesterov=True)
    expected = [as_matrix(kernel) for kernel in ours.kernels]
    squares = [torch.zeros(len(matrix), 1) for matrix in matrices]
    for step in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) * 10.0**-step
        for matrix, kernel in zip(matrices, ours.kernels, strict=True):
            matrix.grad = as_matrix(kernel.grad)
        rates = [1e-2 / (step + 1), 2e-2, 3e-2]
        for group, rate in zip(ours.param_groups, rates, strict=False):
            group["lr"] = rate
        ours.step()
        theirs.step()  # from 0, at a rate of 1: the matrices are what it subtracts
        for i, matrix in enumerate(matrices):
            squares[i] = 0.95 * squares[i] + 0.05 * (matrix.data**2).mean(1, keepdim=True)
            rows = matrix.data / squares[i].sqrt()
            expected[i] += rates[i] * rows * matrix.data.norm() / rows.norm()
            matrix.data.zero_()
    for matrix, kernel in zip(expected, ours.kernels, strict=True):
        torch.testing.assert_close(as_matrix(kernel.data), matrix, rtol=1e-5, atol=1e-7)


def test_a_filter_without_a_gradient_stays_where_it_is() -> None:
    model = SRCNN()
    optimizer = MuonAdam(model, lr=1e-3, muon_lr=1e-2, layers=LAYERS)
    before = model.conv2.weight.detach().clone()
    loss_of(model).backward()
    assert model.conv2.weight.grad is not None
    model.conv2.weight.grad[5] = 0.0
    optimizer.step()
    moved = (model.conv2.weight.detach() - before).abs().amax((1, 2, 3))
    assert moved[5] == 0
    assert moved[torch.arange(32) != 5].min() > 0


def as_matrix(kernel: torch.Tensor) -> torch.Tensor:
    """The values of a kernel as its memory has them, a row for each output; of one, each input."""
    if len(kernel) == 1:
        return kernel.detach().reshape(kernel.shape[1], -1).clone()
    memory = torch.as_strided(kernel.detach(), (kernel.numel(),), (1,))
    return memory.clone().view(len(kernel), -1)


def multiplies(dtype: torch.dtype) -> bool:
    """Tell whether this torch has matrix products of a type on a CPU; fp16 came with 2.2."""
    try:
        return torch.ones(1, 1, dtype=dtype).mm(torch.ones(1, 1, dtype=dtype)).item() == 1
    except RuntimeError:
        return False


TYPES = {torch.float32: 0.0, torch.float16: 3e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize(("dtype", "error"), [t for t in TYPES.items() if multiplies(t[0])])
@pytest.mark.parametrize("size", [1.0, 1e-7, 1e4])  # gradients that float16 cannot hold, too
def test_a_matrix_is_orthogonalised_in_every_type(
    dtype: torch.dtype, error: float, size: float
) -> None:
    torch.manual_seed(3)
    matrix = torch.randn(32, 400)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    exact = orthogonalised(matrix, 5, torch.float32)
    singular = torch.linalg.svdvals(exact)
    assert 0.6 < singular.min() <= singular.max() < 1.25
    assert (left.T @ exact @ right.T).diagonal().min() > 0.6  # in the directions of the matrix
    for matrix_or_its_transpose, turned in ((matrix, exact), (matrix.T, exact.T)):
        result = orthogonalised(size * matrix_or_its_transpose, 5, dtype).float()
        assert float((result - turned).norm() / turned.norm()) <= max(error, 1e-5)


def test_muon_goes_on_from_its_state() -> None:
    torch.manual_seed(1)
    models = [SRCNN(), SRCNN()]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [MuonAdam(model, lr=1e-3, muon_lr=1e-2, layers=LAYERS) for model in models]
    for step in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        if step == 1:
            optimizers[1] = MuonAdam(models[1], lr=1e-3, muon_lr=1e-2, layers=LAYERS)
            optimizers[1].load_state_dict(deepcopy(optimizers[0].state_dict()))
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_state_of_other_layers_is_refused() -> None:
    state = MuonAdam(SRCNN(), lr=1e-3, muon_lr=1e-2, layers={"conv1": 1.0}).state_dict()
    with pytest.raises(ValueError, match="shorter"):
        MuonAdam(SRCNN(), lr=1e-3, muon_lr=1e-2, layers=LAYERS).load_state_dict(state)


def test_the_fast_recipes_rate_goes_to_zero() -> None:
    factors = [FAST.lr_factor(step, 1000) for step in range(1000)]
    assert factors[0] == 1 == factors[600] > factors[601]
    assert [factors[800], factors[999]] == pytest.approx([0.5, 1 / 400])
    assert REFERENCE.lr_factor(500, 1000) == 1.0


def test_the_moving_average_looks_back_over_a_share_of_the_run() -> None:
    """A fiftieth, here 20 steps, once so many are done; over one step there is no average."""
    decays = [FAST.ema_decay(step, 1000) for step in (0, 8, 80, 169, 172, 999)]
    assert decays == pytest.approx([0.1, 0.5, 0.9, 170 / 179, 0.95, 0.95])
    assert FAST.ema_decay(99, 75) == pytest.approx(1 / 3)
    assert FAST.ema_decay(99, 50) == REFERENCE.ema_decay(99, 1000) == 0


def test_auto_takes_the_fastest_and_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    chosen = choose_precision("auto", CPU, training_step)
    precision, reason = chosen.value, chosen.reason
    assert torch.equal(torch.rand(3), expected)
    assert precision.name in ("fp32", "fp32-contiguous", "bf16")
    assert all(f"{name} " in reason for name in ("fp32-contiguous", "fp32", "bf16"))
    plain = precision.name == "fp32-contiguous"
    assert precision.memory_format == (torch.contiguous_format if plain else torch.channels_last)


def test_auto_without_a_trial_goes_by_the_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """So processes of one run agree, and a deterministic run does not depend on the clock."""
    for units, name in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("training.precision_choice.has_bf16", lambda units=units: units)
        assert choose_precision("auto", CPU).value.name == name


def test_bf16_trains_fp32_weights() -> None:
    torch.manual_seed(1)
    model = SRCNN()
    optimizer = build_optimizer(replace(REFERENCE, lr=1e-3), model, CPU, apex=False)
    precision = choose_precision("bf16", CPU).value
    model, optimizer = precision.prepare(model, optimizer)
    losses = []
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with precision.autocast():
        assert model(x).dtype == torch.bfloat16
    for _ in range(5):
        loss, stepped = training_step(model, optimizer, precision, nn.functional.mse_loss, x, x)
        assert stepped
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(w.dtype == torch.float32 for w in precision.master_params(model, optimizer).values())


class Overflowing(Precision):
    def _step(self, optimizer: torch.optim.Optimizer) -> bool:
        return False


def test_twenty_skipped_steps_in_a_row_end_the_run() -> None:
    precision, optimizer = Overflowing(), torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    for _ in range(19):
        assert not precision.step(optimizer)
    with pytest.raises(RunError, match=r"20 steps in a row.*--loss-scale dynamic"):
        precision.step(optimizer)
    again = Precision()
    again.load_state_dict(precision.state_dict())
    assert again.skipped == again.skipped_in_a_row == 20
