"""Loss scale and skipped steps of PyTorch's own mixed precision, on the CPU."""

import math

import pytest
import torch
from torch import nn

from inference.last_layer import ColumnsAsChannels
from model import SRCNN
from runtime.errors import RunError
from training.precision import FP32_CONTIGUOUS, MOST_SKIPPED_IN_A_ROW, Autocast, Precision

CPU = torch.device("cpu")
scaled = pytest.mark.skipif(
    not hasattr(torch.amp, "GradScaler"), reason="before torch 2.3 the CPU has no loss scale"
)


class Run:
    """A weight of 1 that each step lowers by the gradient, with a loss scale."""

    def __init__(self, loss_scale: float | str) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.model.weight)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        self.precision = Autocast(CPU, torch.float32, loss_scale)
        self.model, self.optimizer = self.precision.prepare(self.model, optimizer)

    def step(self, gradient: float) -> bool:
        self.optimizer.zero_grad()
        loss = self.model(torch.ones(1, 1)).sum() * gradient
        self.precision.backward(loss, self.optimizer)
        return self.precision.step(self.optimizer)

    @property
    def weight(self) -> float:
        return self.model.weight.item()

    @property
    def scale(self) -> float:
        return self.precision.scaler.get_scale()


@scaled
def test_gradients_are_scaled_in_between_alone() -> None:
    run = Run(32.0)
    loss = run.model(torch.ones(1, 1)).sum() * 0.25
    run.precision.backward(loss, run.optimizer)
    assert run.model.weight.grad.item() == 8.0
    assert run.precision.step(run.optimizer)
    assert run.weight == 0.75


@scaled
def test_a_static_scale_stays_whatever_happens() -> None:
    run = Run(32.0)
    run.precision.scaler.set_growth_interval(1)
    assert [run.step(gradient) for gradient in (0.25, math.inf, 0.25, 0.25)] == [
        True, False, True, True
    ]  # fmt: skip
    assert run.scale == 32.0
    assert run.weight == 0.25, "the step that overflowed did nothing"
    assert (run.precision.skipped, run.precision.skipped_in_a_row) == (1, 0)


@scaled
def test_a_dynamic_scale_grows_without_a_skip_and_backs_off_with_one() -> None:
    run = Run("dynamic")
    run.precision.scaler.set_growth_interval(2)
    first = run.scale
    assert run.step(0.0) and run.step(0.0)
    assert run.scale == 2 * first
    assert run.precision.skipped == 0, "growing is no skipped step"
    assert not run.step(math.nan)
    assert run.scale == first
    assert (run.precision.skipped, run.precision.skipped_in_a_row) == (1, 1)


@scaled
def test_too_many_overflows_in_a_row_end_the_run_and_others_do_not() -> None:
    run = Run("dynamic")
    for _ in range(MOST_SKIPPED_IN_A_ROW - 1):
        assert not run.step(math.inf)
    assert run.step(0.0)
    for _ in range(MOST_SKIPPED_IN_A_ROW - 1):
        assert not run.step(math.inf)
    assert run.precision.skipped == 2 * MOST_SKIPPED_IN_A_ROW - 2
    with pytest.raises(RunError, match=r"20 steps in a row were skipped, .* in fp32; lower --lr"):
        run.step(math.inf)


@scaled
@pytest.mark.parametrize("loss_scale", ["dynamic", 32.0])
def test_the_state_comes_back(loss_scale: float | str) -> None:
    run, other = Run(loss_scale), Run(loss_scale)
    for gradient in (0.25, math.inf, math.inf):
        run.step(gradient)
    other.precision.load_state_dict(run.precision.state_dict())
    assert (other.precision.skipped, other.precision.skipped_in_a_row) == (2, 2)
    assert other.scale == run.scale
    assert run.scale == (32.0 if loss_scale == 32.0 else Run("dynamic").scale / 4)


@scaled
def test_a_twin_has_the_same_arithmetic_and_a_scale_of_its_own() -> None:
    run = Run("dynamic")
    twin = run.precision.twin()
    assert (twin.device, twin.dtype, twin.loss_scale) == (CPU, torch.float32, "dynamic")
    assert twin.scaler is not run.precision.scaler


def test_bf16_has_no_scale_and_computes_in_bf16() -> None:
    precision = Autocast(CPU, torch.bfloat16, 32.0)
    assert precision.scaler is None
    assert (precision.name, precision.half, precision.notices_overflow) == (
        "bf16", torch.bfloat16, False
    )  # fmt: skip
    convolution = nn.Conv2d(1, 1, 3)
    with precision.autocast():
        assert convolution(torch.ones(1, 1, 4, 4)).dtype == torch.bfloat16
    assert convolution(torch.ones(1, 1, 4, 4)).dtype == torch.float32
    weights = precision.master_params(convolution, torch.optim.SGD(convolution.parameters()))
    assert {name: weight.dtype for name, weight in weights.items()} == {
        "weight": torch.float32, "bias": torch.float32
    }  # fmt: skip
    assert precision.state_dict() == {"skipped": 0, "skipped_in_a_row": 0, "scaler": None}


@scaled
def test_fp32_with_a_scale_computes_in_fp32() -> None:
    precision = Autocast(CPU, torch.float32, 32.0)
    assert (precision.name, precision.half, precision.notices_overflow) == ("fp32", None, True)
    with precision.autocast():
        assert nn.Conv2d(1, 1, 3)(torch.ones(1, 1, 4, 4)).dtype == torch.float32


def test_the_layout_and_last_layer_of_the_cpu() -> None:
    assert Precision().memory_format == torch.channels_last
    assert Precision(CPU, FP32_CONTIGUOUS).memory_format == torch.contiguous_format
    model = Precision().to_device(SRCNN())
    assert isinstance(model.conv3, ColumnsAsChannels)
    assert list(model.state_dict()) == list(SRCNN().state_dict())
    assert model.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_what_is_trained_is_what_master_params_show() -> None:
    run = nn.Linear(2, 1)
    shown = Precision().master_params(run, torch.optim.SGD(run.parameters()))
    with torch.no_grad():
        run.weight += 1
    assert torch.equal(shown["weight"], run.weight)
    assert not shown["weight"].requires_grad
