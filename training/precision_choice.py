"""Which arithmetic a run trains in: as asked, or what is fastest on its device."""

import importlib
import importlib.util
import time
from collections.abc import Callable

import torch
from torch import nn

from model import SRCNN
from runtime.device import (
    Choice,
    card_has_bf16,
    has_bf16,
    has_fp32,
    matrix_type,
    optimizer_options,
    synchronize,
)
from runtime.errors import UserError
from training.precision import (
    FP32_CONTIGUOUS,
    HALF,
    STATIC_SCALE,
    Apex,
    Autocast,
    Precision,
)

NOT_WITH_APEX = "this recipe's optimizer does not go with apex"
PROBE_SECONDS = 0.8
TrainingStep = Callable[..., tuple[torch.Tensor, bool]]  # train.training_step


def choose_precision(
    name: str,
    device: torch.device,
    training_step: TrainingStep | None = None,
    *,
    loss_scale: float | str = STATIC_SCALE,
    combine_ddp: bool = False,
    processes: int = 1,
    apex_wanted: bool = True,
) -> Choice[Precision]:
    """Choose the arithmetic of training.

    "auto" takes, on an NPU, apex O2, or fp16 where it is not installed; for recipes that cannot use
    it bf16, on an Ascend 910A fp16. On a GPU: bf16, else fp16. On a CPU: what a trial of less than
    a second finds fastest, or what its units promise.

    Args:
        name: "auto", "fp32", "bf16", "fp16", "apex-O1" or "apex-O2".
        device: where training runs.
        training_step: to try what is fastest on a CPU; None for no trial. The clock decides then,
            which may do so otherwise in the next run, and in another process of the same run.
        loss_scale: a number, or "dynamic"; for fp16 and apex.
        combine_ddp: let apex average the gradients of several processes.
        processes: how many there are.
        apex_wanted: whether "auto" may take apex; a recipe with its own optimizer can't use it.

    Returns:
        The Precision and why it was chosen.

    Raises:
        UserError: the device or the machine has not got it.
    """
    why_not = why_no_apex(device) if apex_wanted else NOT_WITH_APEX
    if name.startswith("apex-") and why_not:
        raise UserError(f"--precision {name}: {why_not}")
    apex = name.startswith("apex-") or (name == "auto" and not why_not)
    level = "O2" if name == "auto" else name.removeprefix("apex-")
    if combine_ddp and not (apex and level == "O2"):
        raise UserError("--combine-ddp is apex's own averaging of gradients; use it with apex O2")
    if combine_ddp and processes == 1:
        raise UserError("--combine-ddp averages the gradients of several processes, and this run "
                        "has one; leave it out")  # fmt: skip
    if apex:
        reason = "auto: Ascend's apex is installed" if name == "auto" else "as asked"
        return Choice(Apex(device, level, loss_scale, combine_ddp), reason)
    if name in ("fp32", FP32_CONTIGUOUS) and not has_fp32(device):
        reason = "as asked, but this card computes convolutions in fp16 all the same"
        precision = Autocast(device, torch.float32, loss_scale)
        precision.name = name  # that of a run which a CPU began stays
        return Choice(precision, reason)
    if name != "auto":
        return Choice(_native(name, device, loss_scale), "as asked")
    if device.type == "npu":
        name = "fp16" if apex_wanted else HALF[matrix_type(device)]
        return Choice(_native(name, device, loss_scale), f"auto: {why_not}")
    if device.type == "cuda":
        name = "bf16" if card_has_bf16(device) else "fp16"
        return Choice(_native(name, device, loss_scale), "auto: what this GPU has")
    return (
        _fastest_on_cpu(device, training_step) if training_step else _likely_fastest_on_cpu(device)
    )


def cost_of_determinism(
    device: torch.device, precision: Precision, training_step: TrainingStep
) -> str:
    """Return what a training step takes with deterministic algorithms and without, as a clause.

    Measured in turns, on 8 patches; the best times count. Leaves deterministic algorithms on.
    """
    probes = {wanted: _Probe(device, precision, training_step) for wanted in (False, True)}
    for _ in range(10):
        for wanted, probe in probes.items():
            torch.use_deterministic_algorithms(wanted)
            probe.step()
    free, bound = (1000 * probe.seconds for probe in probes.values())
    return f"a step of 8 patches takes {bound:.1f} ms, without it {free:.1f} ms"


class _Probe:
    """A training step on 8 patches of 33×33, and its best time so far.

    Leaves the random numbers of the process, and the counts of the precision, as they are.
    """

    def __init__(
        self, device: torch.device, precision: Precision, training_step: TrainingStep
    ) -> None:
        self.device, self.training_step, self.seconds = device, training_step, float("inf")
        self.precision = precision.twin()
        with torch.random.fork_rng(devices=[]):
            model = self.precision.to_device(SRCNN())
            self.x = (
                torch.rand(8, 1, 33, 33)
                .to(device)
                .contiguous(memory_format=precision.memory_format)
            )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, **optimizer_options(device))
        self.model, self.optimizer = self.precision.prepare(model, optimizer)

    def step(self) -> None:
        """Take the step, and note the time."""
        start = time.perf_counter()
        self.training_step(
            self.model, self.optimizer, self.precision, nn.functional.mse_loss, self.x, self.x
        )
        synchronize(self.device)
        self.seconds = min(self.seconds, time.perf_counter() - start)


def why_no_apex(device: torch.device) -> str:
    """Return why Ascend's apex can't be used, or nothing when it can."""
    if device.type != "npu":
        return f"Ascend's apex runs on an NPU, not on {device.type}"
    if importlib.util.find_spec("apex") is None:
        return "Ascend's apex is not installed; see docs/npu.md"
    try:
        optimizers = importlib.import_module("apex.optimizers")
        importlib.import_module("apex.amp")
    except ImportError as error:
        return f"apex cannot be loaded ({error}); is it Ascend's?"
    if not hasattr(optimizers, "NpuFusedAdam"):
        return "the apex that is installed is not Ascend's (it has no NpuFusedAdam)"
    return ""


def _native(name: str, device: torch.device, loss_scale: float | str) -> Precision:
    if name in ("fp32", FP32_CONTIGUOUS):
        return Precision(device, name)
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs an NPU or a GPU; a CPU trains in fp32 or bf16")
    if name == "bf16" and device.type != "cpu" and not card_has_bf16(device):
        raise UserError(f"--precision bf16: {device} has no bf16 units; use fp16 or fp32")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[name]
    return Autocast(device, dtype, loss_scale)


def _fastest_on_cpu(device: torch.device, training_step: TrainingStep) -> Choice[Precision]:
    """Time training steps in each way, in turns, and choose the fastest.

    Other work on the machine disturbs all ways alike then; the best time of each counts.
    """
    candidates = [_native(n, device, STATIC_SCALE) for n in (FP32_CONTIGUOUS, "fp32", "bf16")]
    probes = [_Probe(device, precision, training_step) for precision in candidates]
    start, rounds = time.perf_counter(), 0
    while rounds < 3 or (rounds < 10 and time.perf_counter() - start < PROBE_SECONDS):
        for probe in probes:
            probe.step()
        rounds += 1
    timings = ", ".join(
        f"{precision.name} {1000 * probe.seconds:.1f} ms"
        for precision, probe in zip(candidates, probes, strict=True)
    )
    fastest = min(range(len(probes)), key=lambda i: probes[i].seconds)
    return Choice(candidates[fastest], f"auto: fastest here, 8 patches take {timings}")


def _likely_fastest_on_cpu(device: torch.device) -> Choice[Precision]:
    name, units = ("bf16", "bf16 units") if has_bf16() else ("fp32", "no bf16 units")
    return Choice(_native(name, device, STATIC_SCALE), f"auto: this CPU has {units}")
