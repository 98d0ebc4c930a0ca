"""Mixed precision behind one signature: fp32, PyTorch's own autocast, Ascend's apex.

precision.prepare(model, optimizer)         once, before the first step
with precision.autocast(): …                around the forward pass
precision.backward(loss, optimizer)         gradients, of the scaled loss where there is a scale
precision.step(optimizer)                   the optimizer's step, or none after an overflow
precision.master_params(model, optimizer)   the fp32 weights that are trained
"""

import contextlib
import importlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from inference.last_layer import ColumnsAsChannels, InFp32, in_layout
from model import SRCNN
from runtime.device import has_fp32
from runtime.errors import RunError

CPU = torch.device("cpu")
STATIC_SCALE = 32.0
MOST_SKIPPED_IN_A_ROW = 20
HALF = {torch.bfloat16: "bf16", torch.float16: "fp16"}
FP32_CONTIGUOUS = "fp32-contiguous"  # fp32 in plain layout, where a CPU is faster with that


class Precision:
    """Single precision; the base of the others.

    Args:
        device: where training runs.
        name: for the log.

    Attributes:
        half: what training computes in, where that is not fp32.
        skipped: steps lost to overflow.
        notices_overflow: whether a step that overflows is noticed on a card that saturates, too,
            where no value tells.
    """

    half: torch.dtype | None = None
    notices_overflow = False

    def __init__(self, device: torch.device = CPU, name: str = "fp32") -> None:
        self.device, self.name = device, name
        self.skipped = 0
        self.skipped_in_a_row = 0

    def twin(self) -> "Precision":
        """Return another one of the same arithmetic, to try it with; fp32 stands in for apex."""
        return Precision(self.device, self.name)

    @property
    def memory_format(self) -> torch.memory_format:
        """Layout of tensors that convolutions run fastest in."""
        plain = self.device.type == "npu" or self.name == FP32_CONTIGUOUS
        return torch.contiguous_format if plain else torch.channels_last

    def to_device(self, model: SRCNN) -> SRCNN:
        """Move a network on luminance to the device, in the form that trains best there.

        Parameters and their names stay. The last layer computes in fp32, except in fp16 on an NPU:
        that is 8 times as fine as bfloat16, and apex makes all parameters fp16.
        """
        if self.device.type != "npu" or self.half != torch.float16:
            kind = ColumnsAsChannels if self.device.type == "cpu" else InFp32
            model.conv3 = kind(model.conv3)  # type: ignore[assignment]
        return in_layout(model.to(self.device), self.memory_format)

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Convert a model that is on its device, in fp32, and its optimizer."""
        return model, optimizer

    def autocast(self) -> AbstractContextManager:
        """Return the context of the forward pass."""
        return contextlib.nullcontext()

    def evaluation(self) -> AbstractContextManager:
        """Return the context in which another model than the trained one computes as it is."""
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Add to the gradients, scaled until `step` where there is a loss scale."""
        loss.backward()

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Step; False when the gradients overflowed and it did not.

        Raises:
            RunError: 20 steps in a row overflowed.
        """
        stepped = self._step(optimizer)
        self.skipped += not stepped
        self.skipped_in_a_row = 0 if stepped else self.skipped_in_a_row + 1
        if self.skipped_in_a_row == MOST_SKIPPED_IN_A_ROW:
            raise RunError(
                f"{MOST_SKIPPED_IN_A_ROW} steps in a row were skipped, as gradients overflowed in "
                f"{self.name}; {advice(self.device)}"
            )
        return stepped

    def _step(self, optimizer: torch.optim.Optimizer) -> bool:
        optimizer.step()
        return True

    def master_params(
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

    Args:
        device: where training runs.
        dtype: of convolutions; float32 for a card that computes those in fp16 whatever their
            type, which takes a loss scale, too.
        loss_scale: a number, or "dynamic".
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, loss_scale: float | str) -> None:
        super().__init__(device, HALF.get(dtype, "fp32"))
        self.half = dtype if dtype in HALF else None
        self.dtype, self.loss_scale = dtype, loss_scale
        self.static_scale = None if loss_scale == "dynamic" else float(loss_scale)
        self.scaler = self._scaler() if dtype != torch.bfloat16 else None
        self.notices_overflow = self.scaler is not None
        self._stepped = False

    def twin(self) -> Precision:
        return Autocast(self.device, self.dtype, self.loss_scale)

    def _scaler(self) -> "torch.amp.GradScaler":
        initial: dict[str, Any] = {}
        if self.static_scale is not None:
            initial["init_scale"] = self.static_scale
        if self.device.type == "npu":  # reads the overflow flag of chips that saturate (910A)
            scaler = importlib.import_module("torch_npu").npu.amp.GradScaler
            return scaler(**initial)
        if not hasattr(torch.amp, "GradScaler"):  # before torch 2.3
            return torch.cuda.amp.GradScaler(**initial)
        return torch.amp.GradScaler(self.device.type, **initial)

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        optimizer.register_step_post_hook(self._note_step)
        return model, optimizer

    def _note_step(self, *_: object) -> None:
        self._stepped = True

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None)

    def backward(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def _step(self, optimizer: torch.optim.Optimizer) -> bool:
        if self.scaler is None:
            return super()._step(optimizer)
        self._stepped = False
        self.scaler.step(optimizer)
        self.scaler.update(self.static_scale)
        return self._stepped

    def state_dict(self) -> dict:
        scaler = self.scaler.state_dict() if self.scaler else None
        return {**super().state_dict(), "scaler": scaler}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if self.scaler and state.get("scaler"):  # of a GPU it lacks what torch_npu's has beside
            self.scaler.load_state_dict({**self.scaler.state_dict(), **state["scaler"]})


class Apex(Precision):
    """Ascend's apex: O1 (fp16 in convolutions) or O2 (fp16 weights, fp32 master weights)."""

    half = torch.float16

    def __init__(
        self, device: torch.device, opt_level: str, loss_scale: float | str, combine_ddp: bool
    ) -> None:
        super().__init__(device, f"apex-{opt_level}")
        self.notices_overflow = loss_scale == "dynamic"  # a static scale never looks
        self.amp = importlib.import_module("apex.amp")
        self.opt_level, self.loss_scale, self.combine_ddp = opt_level, loss_scale, combine_ddp
        self._backed_off = False

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

    def evaluation(self) -> AbstractContextManager:
        if self.opt_level != "O1":  # apex has nothing to disable then, and says so by a traceback
            return contextlib.nullcontext()
        return self.amp.disable_casts()  # O1 casts in every convolution of the process

    def _scale(self) -> float:
        return self.amp.state_dict()["loss_scaler0"]["loss_scale"]

    def backward(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        before = self._scale()
        with self.amp.scale_loss(loss, optimizer) as scaled_loss:
            scaled_loss.backward()
        self._backed_off = self._scale() < before

    def _step(self, optimizer: torch.optim.Optimizer) -> bool:
        optimizer.step()  # after an overflow apex has replaced it by one that does nothing
        return not self._backed_off

    def master_params(
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


def advice(device: torch.device) -> str:
    """Return what to do when numbers overflow."""
    other = " or --precision fp32" if has_fp32(device) else ""
    return f"lower --lr, or try --loss-scale dynamic{other}"
