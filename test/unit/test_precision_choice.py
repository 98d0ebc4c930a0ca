"""Which arithmetic is chosen on which device, with stand-ins for NPU, apex and the clock."""

import importlib.util
import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from model import SRCNN
from runtime.errors import UserError
from train import training_step
from training import precision_choice
from training.precision import Precision
from training.precision_choice import choose_precision, cost_of_determinism, why_no_apex

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NPU = SimpleNamespace(type="npu")
PATCHES = (8, 1, 33, 33)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Return a function that makes NPU and GPU ones with bf16 or without, and apex Ascend's."""

    def make(bf16: bool = True, modules: dict[str, object] | None = None) -> None:
        npu = SimpleNamespace(is_bf16_supported=lambda: bf16)
        monkeypatch.setattr(torch, "npu", npu, raising=False)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # or emulated
        capability = (8, 0) if bf16 else (7, 5)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        found = {"torch_npu": SimpleNamespace(npu=SimpleNamespace(amp=torch.cuda.amp))}
        found |= ASCENDS if modules is None else modules
        find_spec, import_module = importlib.util.find_spec, importlib.import_module
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name: found.get(name) if name == "apex" else find_spec(name),
        )

        def load(name: str) -> object:
            if name.partition(".")[0] not in ("apex", "torch_npu"):
                return import_module(name)
            if name not in found:
                raise ImportError(f"No module named {name!r}")
            return found[name]

        monkeypatch.setattr(importlib, "import_module", load)

    return make


ASCENDS = {
    "apex": SimpleNamespace(),
    "apex.amp": SimpleNamespace(),
    "apex.optimizers": SimpleNamespace(NpuFusedAdam=object()),
}


@pytest.mark.parametrize(
    ("device", "apex", "bf16", "apex_wanted", "name", "reason"),
    [
        (NPU, True, True, True, "apex-O2", "auto: Ascend's apex is installed"),
        (NPU, True, False, True, "apex-O2", "auto: Ascend's apex is installed"),
        (NPU, True, True, False, "bf16", "auto: this recipe's optimizer does not go with apex"),
        (NPU, True, False, False, "fp16", "auto: this recipe's optimizer does not go with apex"),
        (NPU, False, True, True, "fp16", "auto: Ascend's apex is not installed; see docs/npu.md"),
        (NPU, False, True, False, "bf16", "auto: this recipe's optimizer does not go with apex"),
        (CUDA, True, True, True, "bf16", "auto: what this GPU has"),
        (CUDA, True, False, True, "fp16", "auto: what this GPU has"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*GradScaler.*")
def test_auto(
    machine: Callable, device: object, apex: bool, bf16: bool, apex_wanted: bool,
    name: str, reason: str,
) -> None:  # fmt: skip
    machine(bf16, None if apex else {})
    chosen = choose_precision("auto", device, loss_scale=8.0, apex_wanted=apex_wanted)
    assert (chosen.value.name, chosen.reason) == (name, reason)
    assert chosen.value.device is device
    assert chosen.value.loss_scale == 8.0


@pytest.mark.parametrize(
    ("name", "device", "dtype"),
    [
        ("fp32", CPU, None),
        ("fp32", CUDA, None),
        ("fp32", NPU, None),
        ("bf16", CPU, torch.bfloat16),
        ("bf16", CUDA, torch.bfloat16),
        ("fp16", CUDA, torch.float16),
        ("fp16", NPU, torch.float16),
        ("apex-O1", NPU, torch.float16),
        ("apex-O2", NPU, torch.float16),
    ],
)
@pytest.mark.filterwarnings("ignore:.*GradScaler.*")
def test_what_is_asked_for(
    machine: Callable, name: str, device: object, dtype: torch.dtype | None
) -> None:
    machine()
    chosen = choose_precision(name, device, loss_scale="dynamic", apex_wanted=True)
    precision = chosen.value
    assert chosen.reason == "as asked"
    assert (precision.name, precision.half, precision.device) == (name, dtype, device)
    if dtype:
        assert precision.loss_scale == "dynamic"
    if name.startswith("apex"):
        assert (precision.opt_level, precision.combine_ddp) == (name[-2:], False)


@pytest.mark.filterwarnings("ignore:.*GradScaler.*")
@pytest.mark.parametrize("name", ["fp32", "fp32-contiguous"])  # the latter where a CPU began
def test_fp32_on_a_card_that_has_none_takes_a_loss_scale(machine: Callable, name: str) -> None:
    machine(bf16=False)
    chosen = choose_precision(name, NPU, loss_scale=4.0)
    assert chosen.reason.startswith("as asked, but this card computes convolutions in fp16")
    assert (chosen.value.name, chosen.value.dtype) == (name, torch.float32)
    assert (chosen.value.loss_scale, chosen.value.notices_overflow) == (4.0, True)
    assert chosen.value.device is NPU


@pytest.mark.parametrize("name", ["auto", "apex-O2"])
def test_apex_averages_the_gradients_of_several_processes(machine: Callable, name: str) -> None:
    machine()
    assert choose_precision(name, NPU, combine_ddp=True, processes=2).value.combine_ddp
    for processes in ({}, {"processes": 1}):
        with pytest.raises(UserError, match=r"--combine-ddp averages .* this run has one"):
            choose_precision(name, NPU, combine_ddp=True, **processes)


@pytest.mark.parametrize(
    ("name", "device", "options", "message"),
    [
        ("apex-O2", CPU, {}, "--precision apex-O2: Ascend's apex runs on an NPU, not on cpu"),
        ("apex-O1", NPU, {"apex_wanted": False}, "--precision apex-O1: this recipe's optimizer"),
        ("fp16", CPU, {}, "--precision fp16 needs an NPU or a GPU; a CPU trains in fp32 or bf16"),
        ("bf16", CUDA, {}, "--precision bf16: cuda has no bf16 units; use fp16 or fp32"),
        ("apex-O1", NPU, {"combine_ddp": True, "processes": 2}, "use it with apex O2"),
        ("auto", CPU, {"combine_ddp": True, "processes": 2}, "use it with apex O2"),
        ("fp16", NPU, {"combine_ddp": True, "processes": 2}, "use it with apex O2"),
    ],
)
def test_what_cannot_be_had(
    machine: Callable, name: str, device: object, options: dict, message: str
) -> None:
    machine(bf16=False)
    with pytest.raises(UserError, match=re.escape(message)):
        choose_precision(name, device, **options)


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        (ASCENDS, ""),
        ({}, "Ascend's apex is not installed; see docs/npu.md"),
        ({"apex": 1, "apex.amp": 1}, "No module named 'apex.optimizers'); is it Ascend's?"),
        ({"apex": 1, "apex.optimizers": 1}, "No module named 'apex.amp'); is it Ascend's?"),
        ({**ASCENDS, "apex.optimizers": 1}, "is not Ascend's (it has no NpuFusedAdam)"),
    ],
)
def test_why_apex_cannot_be_used(machine: Callable, modules: dict, reason: str) -> None:
    machine(modules=modules)
    why = why_no_apex(NPU)
    assert why.endswith(reason)
    assert bool(why) == bool(reason)


class Steps:
    """Training steps that take the milliseconds of a list, in turn; by the precision's name."""

    def __init__(self, milliseconds: Callable[[str], list[float]]) -> None:
        self.milliseconds, self.now = milliseconds, 100.0
        self.taken: list[str] = []

    def __call__(self, model: SRCNN, optimizer: object, precision: Precision, *_: object) -> None:
        name = precision.name
        times = self.milliseconds(name)
        self.now += times[self.taken.count(name) % len(times)] / 1000
        self.taken.append(name)

    def perf_counter(self) -> float:
        return self.now


def on_the_clock(
    monkeypatch: pytest.MonkeyPatch, milliseconds: Callable[[str], list[float]]
) -> Steps:
    steps = Steps(milliseconds)
    monkeypatch.setattr(precision_choice, "time", steps)
    return steps


@pytest.mark.parametrize("fastest", ["fp32-contiguous", "fp32", "bf16"])
def test_a_cpu_takes_what_is_fastest_at_its_best(
    monkeypatch: pytest.MonkeyPatch, fastest: str
) -> None:
    steps = on_the_clock(monkeypatch, lambda name: [9.5, 3.25 if name == fastest else 5.5, 7.5])
    chosen = choose_precision("auto", CPU, steps)
    assert chosen.value.name == fastest
    names = ("fp32-contiguous", "fp32", "bf16")
    listed = ", ".join(f"{name} {'3.2' if name == fastest else '5.5'} ms" for name in names)
    assert chosen.reason == f"auto: fastest here, 8 patches take {listed}"
    assert steps.taken == 10 * list(names)


@pytest.mark.parametrize(("milliseconds", "rounds"), [(400, 3), (67, 4), (1, 10)])
def test_the_trial_of_a_slow_cpu_is_short(
    monkeypatch: pytest.MonkeyPatch, milliseconds: int, rounds: int
) -> None:
    steps = on_the_clock(monkeypatch, lambda _: [milliseconds])
    choose_precision("auto", CPU, steps)
    assert len(steps.taken) == 3 * rounds


def test_what_deterministic_algorithms_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """In turns, the best of ten each; they stay on."""
    settings = []

    def milliseconds(_: str) -> list[float]:
        settings.append(torch.are_deterministic_algorithms_enabled())
        return [(9 - len(settings) // 4 % 4) * (1.5 if settings[-1] else 1)]

    steps = on_the_clock(monkeypatch, milliseconds)
    try:
        cost = cost_of_determinism(CPU, Precision(CPU), steps)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert cost == "a step of 8 patches takes 9.0 ms, without it 6.0 ms"
    assert settings == 10 * [False, True]


@pytest.mark.parametrize("name", ["fp32", "fp32-contiguous"])
def test_a_trial_trains_the_network_and_leaves_the_run_alone(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen = []

    def watched(model: SRCNN, optimizer: torch.optim.Optimizer, precision: Precision,
                *rest: object) -> tuple[torch.Tensor, bool]:  # fmt: skip
        before = [weight.detach().clone() for weight in model.parameters()]
        loss, stepped = training_step(model, optimizer, precision, *rest)
        after = list(model.parameters())
        assert stepped
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert all(weight.grad.abs().sum() > 0 for weight in after)
        loss_function, low, high = rest
        assert low.shape == high.shape == PATCHES
        assert (low.min() >= 0, low.max() <= 1, low.std() > 0.2) == (True, True, True)
        assert loss.item() == pytest.approx(loss_function(model(low).float(), low).item(), rel=0.1)
        seen.append((precision.name, low.is_contiguous(memory_format=precision.memory_format)))
        return loss, stepped

    precision = precision_choice._native(name, CPU, 32.0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    probe = precision_choice._Probe(CPU, precision, watched)
    assert torch.equal(torch.rand(3), expected)
    assert probe.seconds == float("inf")
    for _ in range(2):
        probe.step()
    assert seen == 2 * [(name, True)]
    assert 0 < probe.seconds < float("inf")
    assert probe.precision is not precision


def test_a_trial_is_made_where_training_runs() -> None:
    """On a device without numbers here."""
    device = torch.device("meta")
    probe = precision_choice._Probe(device, Precision(device), training_step)
    assert probe.x.is_meta
    assert all(weight.is_meta for weight in probe.model.parameters())
