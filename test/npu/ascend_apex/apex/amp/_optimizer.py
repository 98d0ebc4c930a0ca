"""What amp adds to an optimizer: master weights, unscaled gradients, their average over ranks."""

import types
from typing import Any

import torch
import torch.distributed as dist

from apex.amp._scaler import LossScaler
from apex.amp._state import Options, say


def process_optimizer(optimizer: torch.optim.Optimizer, options: Options) -> None:
    """Attach amp's part to an optimizer and replace its ``step`` and ``zero_grad``.

    Raises:
        RuntimeError: the optimizer was here before, or does not go with the options.
    """
    if hasattr(optimizer, "_amp_stash"):
        raise RuntimeError("A given optimizer should only be passed through amp.initialize once.")
    optimizer.is_npu_fused_optimizer = getattr(optimizer, "is_npu_fused_optimizer", False)
    stash = optimizer._amp_stash = OptimizerStash(optimizer, options)
    _check_options(optimizer, options)
    if stash.with_masters:
        optimizer.step = types.MethodType(_step_with_masters(optimizer.step, stash), optimizer)
    if stash.with_masters or stash.combined:
        optimizer.zero_grad = types.MethodType(lambda self: stash.zero_grad(), optimizer)


def _check_options(optimizer: Any, options: Options) -> None:
    fused = optimizer.is_npu_fused_optimizer
    if fused and options.opt_level not in ("O1", "O2"):
        raise RuntimeError(
            "Currently, npu fused optimizer can only be used when opt_level='O1' or opt_level='O2'"
        )
    combined = fused or options.combine_grad
    if combined and options.opt_level == "O2" and not options.master_weights:
        raise RuntimeError(
            "With opt_level O2, master_weights should be True when combine_grad is True or npu "
            "fused optimizer is used"
        )
    if options.check_combined_tensors and not combined:
        say("checking combined tensors function will not take effect!")


def _step_with_masters(step: Any, stash: "OptimizerStash") -> Any:
    """Wrap ``step``: no closure, and the masters are copied to the model."""

    def call(self: Any, closure: Any = None) -> Any:
        if closure is not None:
            raise RuntimeError("Currently, Amp does not support closure use with optimizers.")
        result = step()
        stash.copy_masters_to_model()
        return result

    return call


class OptimizerStash:
    """Amp's part of one optimizer.

    ``masters`` are pairs of an fp16 parameter and its fp32 master; ``plain`` are the parameters
    that the optimizer updates themselves (all of O1, batch norm of O2). Masters come into being
    late: at the first ``zero_grad`` or ``scale_loss``, not in ``amp.initialize``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, options: Options) -> None:
        self.optimizer = optimizer
        self.with_masters = bool(options.master_weights)
        self.together = bool(options.combine_grad)
        self.combined = bool(options.combine_grad or optimizer.is_npu_fused_optimizer)
        self.average = bool(options.combine_ddp)
        self.ready = False
        self.step_is_patched = False
        self.masters: list[tuple[torch.nn.Parameter, torch.nn.Parameter]] = []
        self.plain: list[torch.nn.Parameter] = []
        self.earlier: dict[torch.nn.Parameter, torch.Tensor] = {}

    def make_ready(self) -> None:
        """Put fp32 masters into the optimizer in place of fp16 parameters, once.

        Raises:
            TypeError: a parameter is neither fp32 nor fp16, or not on the card.
        """
        if self.ready:
            return
        self.ready = True
        for group in self.optimizer.param_groups:
            group["params"] = [self._master_or_itself(p) for p in group["params"]]
        if self.with_masters:
            for parameter in self.plain:
                parameter.grad = None
            # Casts states that were loaded for fp16 parameters.
            self.optimizer.load_state_dict(self.optimizer.state_dict())

    def _master_or_itself(self, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        if not parameter.requires_grad and (self.with_masters or self.combined):
            return parameter
        known = parameter.dtype in (torch.float32, torch.float16)
        if parameter.device.type != "npu" or not known:
            raise TypeError(
                "Optimizer's parameters must be either torch.npu.FloatTensor or "
                f"torch.npu.HalfTensor. Received {parameter.type()}"
            )
        if not self.with_masters or parameter.dtype != torch.float16:
            self.plain.append(parameter)
            return parameter
        master = torch.nn.Parameter(parameter.detach().clone().float())
        self.masters.append((parameter, master))
        if parameter in self.optimizer.state:
            self.optimizer.state[master] = self.optimizer.state.pop(parameter)
        return master

    def zero_grad(self) -> None:
        """Zero gradients in place; masters' gradients go where nothing is combined."""
        self.make_ready()
        for parameter in [*self.plain, *(model for model, _ in self.masters)]:
            if parameter.grad is not None:
                parameter.grad.detach_().zero_()
        self.clear_master_gradients()

    def clear_master_gradients(self) -> None:
        """Forget the gradients that ``model.zero_grad`` would not reach."""
        for _, master in self.masters:
            if self.combined and master.grad is not None:
                master.grad.zero_()
            else:
                master.grad = None

    def before_backward(self) -> None:
        """Put earlier, unscaled gradients aside, so that the scaled ones come alone."""
        self.make_ready()
        self.earlier = {}
        for parameter in self.plain:
            if parameter.grad is not None:
                self.earlier[parameter] = parameter.grad.clone()
        for parameter in [*self.plain, *(model for model, _ in self.masters)]:
            if self.combined and parameter.grad is not None:
                parameter.grad.zero_()
            else:
                parameter.grad = None

    @torch.no_grad()
    def after_backward(self, scaler: LossScaler) -> None:
        """Average over ranks, look for overflow, unscale and add to earlier gradients."""
        halves = [(master, model.grad, master.grad) for model, master in self.masters]
        floats = [(p, p.grad, self.earlier.get(p)) for p in self.plain]
        for updates in (halves, floats):
            updates[:] = [update for update in updates if update[1] is not None]
            if self.average:
                for _, gradient, _ in updates:
                    dist.all_reduce(gradient.div_(dist.get_world_size()))
        for updates in (halves, floats):
            if updates and not scaler._has_overflow:
                self._unscale(updates, scaler)

    def _unscale(self, updates: list, scaler: LossScaler) -> None:
        """Unscale gradients of one type; those not combined by amp before they become fp32."""
        factor = 1.0 / scaler.loss_scale()
        if scaler.looks_at_gradients:
            first = 1.0 if self.together else factor
            scaler.multiply([gradient for _, gradient, _ in updates], first)
            if scaler._has_overflow:
                return
            factor /= first
        for parameter, gradient, earlier in updates:
            unscaled = gradient.to(parameter.dtype).mul(factor)
            if earlier is not None:
                unscaled.add_(earlier)
            if parameter.grad is None:
                parameter.grad = unscaled
            else:
                parameter.grad.copy_(unscaled)

    @torch.no_grad()
    def copy_masters_to_model(self) -> None:
        """Round the masters to the model's fp16 weights."""
        for model, master in self.masters:
            model.copy_(master)
        self.clear_master_gradients()
