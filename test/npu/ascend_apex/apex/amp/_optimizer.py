"""What amp adds to an optimizer: master weights, unscaled gradients, their average over ranks."""

import types
from typing import Any

import torch
import torch.distributed as dist

from apex.amp._casts import disable_casts
from apex.amp._state import LossScaler, Options


def process_optimizer(optimizer: torch.optim.Optimizer, options: Options) -> None:
    """Attach amp's part to an optimizer and replace its ``step`` and ``zero_grad``.

    Raises:
        RuntimeError: the optimizer was here before, or does not go with the options.
    """
    if hasattr(optimizer, "_amp_stash"):
        raise RuntimeError("A given optimizer should only be passed through amp.initialize once.")
    optimizer.is_npu_fused_optimizer = getattr(optimizer, "is_npu_fused_optimizer", False)
    _check_options(optimizer, options)
    stash = optimizer._amp_stash = OptimizerStash(optimizer, options)
    optimizer.step = types.MethodType(_amp_step(optimizer.step, stash), optimizer)
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
    if options.combine_ddp and not combined:
        raise RuntimeError("combine_ddp=True needs combine_grad=True or a npu fused optimizer.")


def _amp_step(step: Any, stash: "OptimizerStash") -> Any:
    """Wrap ``step``: no closure with masters, no casts inside, masters copied to the model."""

    def amp_step(self: Any, closure: Any = None) -> Any:
        if closure is not None and stash.with_masters:
            raise RuntimeError("Currently, Amp does not support closure use with optimizers.")
        with disable_casts():
            result = step() if closure is None else step(closure)
        stash.copy_masters_to_model()
        return result

    return amp_step


class OptimizerStash:
    """Amp's part of one optimizer.

    ``masters`` are pairs of an fp16 parameter and its fp32 master; ``plain`` are the parameters
    that the optimizer updates themselves (all of O1, batch norm of O2). Masters come into being
    late: at the first ``zero_grad`` or ``scale_loss``, not in ``amp.initialize``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, options: Options) -> None:
        self.optimizer = optimizer
        self.with_masters = bool(options.master_weights)
        self.combined = bool(options.combine_grad or optimizer.is_npu_fused_optimizer)
        self.average = bool(options.combine_ddp)
        self.ready = False
        self.step_is_patched = False
        self.masters: list[tuple[torch.nn.Parameter, torch.nn.Parameter]] = []
        self.plain: list[torch.nn.Parameter] = []
        self.earlier: dict[torch.nn.Parameter, torch.Tensor] = {}

    def make_ready(self) -> None:
        """Put fp32 masters into the optimizer in place of fp16 parameters, once."""
        if self.ready:
            return
        self.ready = True
        for group in self.optimizer.param_groups:
            group["params"] = [self._master_or_itself(p) for p in group["params"]]
        # Casts states that were loaded for fp16 parameters.
        self.optimizer.load_state_dict(self.optimizer.state_dict())

    def _master_or_itself(self, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
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
        parameters = [*self.plain, *(model for model, _ in self.masters)]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.average:
            for gradient in gradients:
                dist.all_reduce(gradient.div_(dist.get_world_size()))
        if scaler.dynamic and not all(torch.isfinite(g).all().item() for g in gradients):
            scaler._has_overflow = True
            return
        for parameter in self.plain:
            self._unscale(parameter, parameter.grad, self.earlier.get(parameter), scaler)
        for model, master in self.masters:
            self._unscale(master, model.grad, master.grad, scaler)

    def _unscale(
        self,
        parameter: torch.nn.Parameter,
        gradient: torch.Tensor | None,
        earlier: torch.Tensor | None,
        scaler: LossScaler,
    ) -> None:
        if gradient is None:
            return
        unscaled = gradient.to(parameter.dtype).mul(1.0 / scaler.loss_scale())
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
