"""Loss scale and skipped steps of mixed precision, PyTorch's own and apex's, on the CPU."""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from inference.last_layer import ColumnsAsChannels, InFp32
from model import SRCNN
from runtime.errors import RunError
from training.precision import (
    FP32_CONTIGUOUS,
    MOST_SKIPPED_IN_A_ROW,
    Apex,
    Autocast,
    Precision,
    advice,
)

CPU = torch.device("cpu")
NPU = SimpleNamespace(type="npu")  # this torch may know no such device
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
    weights = precision.master_params(
        convolution, torch.optim.SGD(convolution.parameters(), lr=0.1)
    )
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
    shown = Precision().master_params(run, torch.optim.SGD(run.parameters(), lr=0.1))
    with torch.no_grad():
        run.weight += 1
    assert torch.equal(shown["weight"], run.weight)
    assert not shown["weight"].requires_grad


def test_where_the_last_layer_computes_in_fp32_and_the_layout_of_each_device() -> None:
    class Unmoved(SRCNN):
        """Notes where it is moved to."""

        def to(self, *device: object, **layout: object) -> SRCNN:
            moves.extend([*device, *layout.values()])
            return self

    kinds = {}
    npu_half = Autocast(CPU, torch.bfloat16, 32.0)
    npu_half.device, npu_half.half = NPU, torch.float16
    for name, precision in (
        ("npu", Precision(NPU)),
        ("npu, fp16", npu_half),
        ("meta", Precision(torch.device("meta"))),
    ):
        moves: list[object] = []
        model = precision.to_device(Unmoved())
        kinds[name] = type(model.conv3)
        layout = torch.channels_last if name == "meta" else torch.contiguous_format
        assert moves == [precision.device, layout]
    assert kinds == {"npu": InFp32, "npu, fp16": nn.Conv2d, "meta": InFp32}


@pytest.mark.parametrize("loss_scale", ["dynamic", 64.0])
@pytest.mark.parametrize("kind", ["npu", "old torch"])
def test_other_scalers_than_that_of_this_torch(
    monkeypatch: pytest.MonkeyPatch, kind: str, loss_scale: float | str
) -> None:
    """On an NPU torch_npu's, which reads the card's flag; before torch 2.3 that of CUDA."""
    amp = SimpleNamespace(GradScaler=lambda **initial: (kind, initial))
    if kind == "npu":
        torch_npu = SimpleNamespace(npu=SimpleNamespace(amp=amp))
        monkeypatch.setitem(sys.modules, "torch_npu", torch_npu)
    else:
        monkeypatch.delattr(torch.amp, "GradScaler", raising=False)
        monkeypatch.setattr(torch.cuda, "amp", amp)
    precision = Autocast(NPU if kind == "npu" else CPU, torch.float16, loss_scale)
    assert precision.scaler == (kind, {} if loss_scale == "dynamic" else {"init_scale": 64.0})
    assert (precision.name, precision.half) == ("fp16", torch.float16)


@scaled
def test_autocast_and_scale_are_told_the_device_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple] = []
    for owner, name in ((torch, "autocast"), (torch.amp, "GradScaler")):
        monkeypatch.setattr(owner, name, lambda *device, **options: told.append((device, options)))
    Autocast(torch.device("meta"), torch.float16, 8.0).autocast()
    assert told == [
        (("meta",), {"init_scale": 8.0}),
        (("meta",), {"dtype": torch.float16, "enabled": True}),
    ]


class Amp(ModuleType):
    """What Ascend's `apex.amp` does here: O2's weights are fp16, those it steps fp32 copies."""

    def initialize(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, **options: object
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        self.options, self.casts = options, True
        self.scale = 1024.0 if options["loss_scale"] == "dynamic" else options["loss_scale"]
        if options["opt_level"] == "O2":
            model.half()
            self.zero_grad, optimizer.zero_grad = optimizer.zero_grad, self.make_masters
            self.optimizer = optimizer
        return model, optimizer

    def make_masters(self) -> None:
        """Make the weights that are stepped, as apex does on first use."""
        for group in self.optimizer.param_groups:
            group["params"] = [nn.Parameter(weight.detach().float()) for weight in group["params"]]
        self.optimizer.zero_grad = self.zero_grad

    def master_params(self, optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
        return (weight for group in optimizer.param_groups for weight in group["params"])

    @contextlib.contextmanager
    def scale_loss(
        self, loss: torch.Tensor, optimizer: torch.optim.Optimizer
    ) -> Iterator[torch.Tensor]:
        yield loss * self.scale
        if not loss.isfinite() and self.options["loss_scale"] == "dynamic":
            self.scale /= 2
            optimizer.zero_grad()  # which leaves `step` nothing to do

    @contextlib.contextmanager
    def disable_casts(self) -> Iterator[None]:
        self.casts = False
        yield
        self.casts = True

    def state_dict(self) -> dict:
        return {"loss_scaler0": {"loss_scale": self.scale}}

    def load_state_dict(self, state: dict) -> None:
        self.scale = state["loss_scaler0"]["loss_scale"]


@pytest.fixture
def apex(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Apex]:
    """Makes a Precision of apex, over an `apex.amp` of its own."""

    def make(*options: object) -> Apex:
        monkeypatch.setitem(sys.modules, "apex.amp", Amp("apex.amp"))
        return Apex(CPU, *options)

    return make


def prepared(precision: Precision) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A layer whose weights fp16 would round, and its optimizer, ready to train."""
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, 1 / 3)
    nn.init.constant_(model.bias, 1 / 7)
    return precision.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))


@pytest.mark.parametrize(
    ("level", "combine_ddp", "told"),
    [("O1", False, (None, None)), ("O2", False, (True, None)), ("O2", True, (True, True))],
)
def test_what_apex_is_told(
    apex: Callable[..., Apex], level: str, combine_ddp: bool, told: tuple
) -> None:
    """`combine_grad` needs master weights; anything but None is refused where it is not needed."""
    precision = apex(level, 64.0, combine_ddp)
    prepared(precision)
    assert precision.amp.options == {
        "opt_level": level, "loss_scale": 64.0, "verbosity": 0,
        "combine_grad": told[0], "combine_ddp": told[1],
    }  # fmt: skip
    assert (precision.name, precision.half) == (f"apex-{level}", torch.float16)
    twin = precision.twin()
    assert (type(twin), twin.name, twin.device) == (Precision, precision.name, CPU)


def test_apex_trains_the_weights_that_were_given_not_what_fp16_left_of_them(
    apex: Callable[..., Apex],
) -> None:
    precision = apex("O2", 64.0, False)
    model, optimizer = prepared(precision)
    assert model.weight.dtype == torch.float16
    shown = precision.master_params(model, optimizer)
    assert {name: weight.tolist() for name, weight in shown.items()} == {
        "weight": torch.full((1, 2), 1 / 3).tolist(), "bias": torch.full((1,), 1 / 7).tolist(),
    }  # fmt: skip
    for master in precision.amp.master_params(optimizer):
        master.grad = torch.ones_like(master)
    assert precision.step(optimizer)
    assert shown["weight"].tolist() == [[pytest.approx(-2 / 3)] * 2], "they share their memory"
    assert not shown["weight"].requires_grad


@pytest.mark.parametrize(("loss_scale", "notices"), [("dynamic", True), (1024.0, False)])
def test_apex_skips_where_its_scale_backed_off(
    apex: Callable[..., Apex], loss_scale: float | str, notices: bool
) -> None:
    precision = apex("O1", loss_scale, False)
    assert precision.notices_overflow == notices
    model, optimizer = prepared(precision)
    stepped = []
    for factor in (1.0, math.inf, math.inf, 1.0):
        optimizer.zero_grad()
        precision.backward(model(torch.ones(1, 2)).sum() * factor, optimizer)
        gradient = model.bias.grad
        stepped.append(precision.step(optimizer))
    assert stepped == [True, not notices, not notices, True]
    scale = 256.0 if notices else 1024.0
    assert gradient.item() == scale, "the loss is scaled"
    assert precision.skipped == (2 if notices else 0)
    state = precision.state_dict()
    other = apex("O1", loss_scale, False)
    prepared(other)
    other.amp.scale = 1.0
    other.load_state_dict(state)
    assert (other.skipped, other.skipped_in_a_row) == (precision.skipped, 0)
    assert other.amp.scale == scale


@pytest.mark.parametrize(("level", "casts"), [("O1", False), ("O2", True)])
def test_other_models_compute_as_they_are_beside_apex(
    apex: Callable[..., Apex], level: str, casts: bool
) -> None:
    """O1 casts in all models; O2 has no casts to disable, and apex would fail."""
    precision = apex(level, 64.0, False)
    prepared(precision)
    with precision.evaluation():
        assert precision.amp.casts == casts
    assert precision.amp.casts


@pytest.mark.parametrize("bf16", [True, False])
def test_what_to_do_about_overflow(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    """No --precision fp32 on a card that computes that in fp16 all the same."""
    card = SimpleNamespace(is_bf16_supported=lambda: bf16)
    monkeypatch.setattr(torch, "npu", card, raising=False)
    end = "--loss-scale dynamic" + (" or --precision fp32" if bf16 else "")
    assert advice(NPU).endswith(end)
    assert advice(CPU).endswith("or --precision fp32")


@scaled
def test_a_run_without_a_loss_scale_goes_on_with_one() -> None:
    """As one in fp32 on a card that computes convolutions in fp16."""
    without = Autocast(CPU, torch.bfloat16, 32.0)
    without.skipped = 2
    precision = Autocast(CPU, torch.float32, 32.0)
    for state in (Precision.state_dict(without), without.state_dict()):
        precision.load_state_dict(state)
        assert (precision.skipped, precision.scaler.get_scale()) == (2, 32.0)


@scaled
def test_the_loss_scale_goes_on_on_another_kind_of_card() -> None:
    """torch_npu's scaler has `dynamic` in its state, which PyTorch's own lacks, and demands it."""

    class OfAnNpu(torch.amp.GradScaler):
        dynamic = True

        def state_dict(self) -> dict:
            return {**super().state_dict(), "dynamic": self.dynamic}

        def load_state_dict(self, state: dict) -> None:
            super().load_state_dict(state)
            self.dynamic = state["dynamic"]

    gpu, npu, gpu_again = (Autocast(CPU, torch.float32, "dynamic") for _ in range(3))
    npu.scaler = OfAnNpu("cpu")
    gpu.scaler.load_state_dict({**gpu.scaler.state_dict(), "scale": 64.0, "_growth_tracker": 7})
    npu.load_state_dict(gpu.state_dict())
    gpu_again.load_state_dict(npu.state_dict())
    assert npu.scaler.dynamic
    assert gpu_again.scaler.state_dict() == gpu.scaler.state_dict()
    assert gpu_again.scaler.get_scale() == 64.0
