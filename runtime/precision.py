"""Mixed precision behind one signature: fp32, PyTorch's own autocast, Ascend's apex.

precision.prepare(model, optimizer)      once, before the first step
with precision.autocast(): …             around the forward pass
precision.step(loss, optimizer)          backward pass and optimizer step, loss scale included
precision.masters(model, optimizer)      the fp32 weights that are trained
"""

import contextlib
import importlib
import importlib.util
import time
from contextlib import AbstractContextManager

import torch
from torch import nn

from model import SRCNN
from runtime.device import Choice, module
from runtime.errors import RunError, UserError

STATIC_SCALE = 32.0
MOST_SKIPPED_IN_A_ROW = 20
NOT_WITH_APEX = "this recipe's optimizer does not go with apex"
FP32_CONTIGUOUS = "fp32-contiguous"  # fp32 in plain layout, where a CPU is faster with that


class Precision:
    """Single precision; the base of the others. `skipped` counts steps lost to overflow."""

    def __init__(self, name: str = "fp32") -> None:
        self.name = name
        self.skipped = 0
        self.skipped_in_a_row = 0

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Convert a model that is on its device, in fp32, and its optimizer."""
        return model, optimizer

    def autocast(self) -> AbstractContextManager:
        """Return the context of the forward pass."""
        return contextlib.nullcontext()

    def step(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> bool:
        """Go back from the loss and step; False when the gradients overflowed and it did not.

        Raises:
            RunError: 20 steps in a row overflowed.
        """
        optimizer.zero_grad()
        stepped = self._step(loss, optimizer)
        self.skipped += not stepped
        self.skipped_in_a_row = 0 if stepped else self.skipped_in_a_row + 1
        if self.skipped_in_a_row == MOST_SKIPPED_IN_A_ROW:
            raise RunError(
                f"{MOST_SKIPPED_IN_A_ROW} steps in a row were skipped, as gradients overflowed in "
                f"{self.name}; try --loss-scale dynamic, a lower --lr, or --precision fp32"
            )
        return stepped

    def _step(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> bool:
        loss.backward()
        optimizer.step()
        return True

    def masters(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> dict[str, torch.Tensor]:
        """Return the trained fp32 weights by name, sharing memory with what is trained."""
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    def state_dict(self) -> dict:
        """Return what a resumed run needs: counts, and the loss scale where there is one."""
        return {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}

    def load_state_dict(self, state: dict) -> None:
        """Take over the state of an interrupted run, after `prepare`."""
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]


class Autocast(Precision):
    """PyTorch's autocast: fp32 weights, convolutions in bf16 or fp16; fp16 with a loss scale.

    A static scale is set anew after each step: so it stays what it is, and a step with gradients
    that are not finite is skipped all the same, which `GradScaler(dynamic=False)` would not do.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, loss_scale: float | str) -> None:
        super().__init__({torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype])
        self.device, self.dtype = device, dtype
        self.static_scale = None if loss_scale == "dynamic" else float(loss_scale)
        self.scaler = self._scaler() if dtype == torch.float16 else None
        self._stepped = False

    def _scaler(self) -> torch.amp.GradScaler:
        initial = {} if self.static_scale is None else {"init_scale": self.static_scale}
        if self.device.type == "npu":  # reads the overflow flag of chips that saturate (910A)
            scaler = importlib.import_module("torch_npu").npu.amp.GradScaler
            return scaler(**initial)
        return torch.amp.GradScaler(self.device.type, **initial)

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        optimizer.register_step_post_hook(self._note_step)
        return model, optimizer

    def _note_step(self, *_: object) -> None:
        self._stepped = True

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _step(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> bool:
        if self.scaler is None:
            return super()._step(loss, optimizer)
        self._stepped = False
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)
        self.scaler.update(self.static_scale)
        return self._stepped

    def state_dict(self) -> dict:
        scaler = self.scaler.state_dict() if self.scaler else None
        return {**super().state_dict(), "scaler": scaler}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])


class Apex(Precision):
    """Ascend's apex: O1 (fp16 in convolutions) or O2 (fp16 weights, fp32 master weights)."""

    def __init__(self, opt_level: str, loss_scale: float | str, combine_ddp: bool) -> None:
        super().__init__(f"apex-{opt_level}")
        self.amp = importlib.import_module("apex.amp")
        self.opt_level, self.loss_scale, self.combine_ddp = opt_level, loss_scale, combine_ddp

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        model, optimizer = self.amp.initialize(
            model,
            optimizer,
            opt_level=self.opt_level,
            loss_scale=self.loss_scale,
            combine_grad=True if self.opt_level == "O2" else None,  # needs master weights
            combine_ddp=self.combine_ddp or None,
            verbosity=0,
        )
        optimizer.zero_grad()  # apex makes its masters on first use; this is one
        for master, weight in zip(self.amp.master_params(optimizer), weights, strict=True):
            master.data.copy_(weight)  # apex takes its masters from weights already cut to fp16
        return model, optimizer

    def _scale(self) -> float:
        return self.amp.state_dict()["loss_scaler0"]["loss_scale"]

    def _step(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> bool:
        before = self._scale()
        with self.amp.scale_loss(loss, optimizer) as scaled_loss:
            scaled_loss.backward()
        optimizer.step()
        return self._scale() >= before  # a static scale never checks, a dynamic one backs off

    def masters(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> dict[str, torch.Tensor]:
        names = (name for name, _ in model.named_parameters())
        masters = self.amp.master_params(optimizer)  # in the order of the groups, as the names
        return {name: w.detach() for name, w in zip(names, masters, strict=True)}

    def state_dict(self) -> dict:
        return {**super().state_dict(), "amp": self.amp.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.amp.load_state_dict(state["amp"])


def choose_precision(
    name: str,
    device: torch.device,
    loss_scale: float | str = STATIC_SCALE,
    combine_ddp: bool = False,
    apex_wanted: bool = True,
) -> Choice:
    """Choose the arithmetic of training.

    "auto" takes apex O2, else fp16 on an NPU; bf16, else fp16 on a GPU; on a CPU what a probe of
    less than a second finds fastest.

    Args:
        name: "auto", "fp32", "bf16", "fp16", "apex-O1" or "apex-O2".
        device: where training runs.
        loss_scale: a number, or "dynamic"; for fp16 and apex.
        combine_ddp: let apex average the gradients of several processes.
        apex_wanted: whether "auto" may take apex; a recipe with its own optimizer can't use it.

    Returns:
        The Precision and why it was chosen.

    Raises:
        UserError: the device or the machine has not got it.
    """
    why_not = why_no_apex(device)
    if name.startswith("apex-"):
        why_not = why_not or ("" if apex_wanted else NOT_WITH_APEX)
        if why_not:
            raise UserError(f"--precision {name}: {why_not}")
        return Choice(Apex(name.removeprefix("apex-"), loss_scale, combine_ddp), "as asked")
    if combine_ddp and (name != "auto" or why_not or not apex_wanted):
        raise UserError("--combine-ddp is apex's own averaging of gradients; use it with apex")
    if name != "auto":
        return Choice(_native(name, device, loss_scale), "as asked")
    if device.type == "npu":
        if not why_not and apex_wanted:
            return Choice(Apex("O2", loss_scale, combine_ddp), "auto: Ascend's apex is installed")
        reason = why_not or NOT_WITH_APEX
        return Choice(_native("fp16", device, loss_scale), f"auto: {reason}")
    if device.type == "cuda":
        name = "bf16" if module(device).is_bf16_supported() else "fp16"
        return Choice(_native(name, device, loss_scale), "auto: what this GPU has")
    return _fastest_on_cpu(device)


def why_no_apex(device: torch.device) -> str:
    """Return why Ascend's apex can't be used, or nothing when it can."""
    if device.type != "npu":
        return f"Ascend's apex runs on an NPU, not on {device.type}"
    if importlib.util.find_spec("apex") is None:
        return "Ascend's apex is not installed; see README.md, Ascend NPU"
    try:
        optimizers = importlib.import_module("apex.optimizers")
        importlib.import_module("apex.amp")
    except ImportError as error:
        return f"apex cannot be loaded ({error}); is it Ascend's?"
    if not hasattr(optimizers, "NpuFusedAdam"):
        return "the apex that is installed is not Ascend's (it has no NpuFusedAdam)"
    return ""


def memory_format(device: torch.device, precision: Precision) -> torch.memory_format:
    """Return the layout of tensors that convolutions run fastest in."""
    plain = device.type == "npu" or precision.name == FP32_CONTIGUOUS
    return torch.contiguous_format if plain else torch.channels_last


def _native(name: str, device: torch.device, loss_scale: float | str) -> Precision:
    if name in ("fp32", FP32_CONTIGUOUS):
        return Precision(name)
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs an NPU or a GPU; a CPU trains in fp32 or bf16")
    if name == "bf16" and device.type != "cpu" and not module(device).is_bf16_supported():
        raise UserError(f"--precision bf16: {device} has no bf16 units; use fp16 or fp32")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[name]
    return Autocast(device, dtype, loss_scale)


def _fastest_on_cpu(device: torch.device) -> Choice:
    """Time a few training steps in each way and choose the fastest."""
    candidates = [_native(n, device, STATIC_SCALE) for n in (FP32_CONTIGUOUS, "fp32", "bf16")]
    seconds = [_time_step(device, precision) for precision in candidates]
    timings = ", ".join(
        f"{precision.name} {1000 * s:.1f} ms"
        for precision, s in zip(candidates, seconds, strict=True)
    )
    best = candidates[seconds.index(min(seconds))]
    return Choice(best, f"auto: fastest here, 8 patches take {timings}")


def _time_step(device: torch.device, precision: Precision, repetitions: int = 4) -> float:
    generator_state = torch.get_rng_state()  # a probe must not change the run's random numbers
    layout = memory_format(device, precision)
    model = SRCNN().to(device, memory_format=layout)
    x = torch.rand(8, 1, 33, 33, device=device).contiguous(memory_format=layout)
    torch.set_rng_state(generator_state)
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        with precision.autocast():
            output = model(x)
        nn.functional.mse_loss(output.float(), x).backward()
        times.append(time.perf_counter() - start)
    return min(times)
