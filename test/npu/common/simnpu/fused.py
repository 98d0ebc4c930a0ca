"""Fused NPU optimizers for the simulations: one parameter at a time, under fused rules.

A fused optimizer moves parameters, gradients and states of a group into one block of memory at its
first step and updates whole blocks from then on. The arithmetic is the same; what differs is what
it cannot bear. Where a card would quietly go on with stale memory, the simulation raises an error.
"""

import math
from typing import Any

import torch


class FusedRules:
    """What combining tensors demands; goes before the optimizer among the bases."""

    _combined: dict[torch.Tensor, tuple[int, int]] | None = None

    def check_combined(self) -> None:
        """Take note of the blocks at the first gradients; later, insist that they stayed.

        Raises:
            RuntimeError: a parameter is not on an NPU or not contiguous, shares its memory with
                another, or it or its gradient has been re-allocated, or has its first gradient
                only now.
            TypeError: a parameter is neither float32 nor float16, or a count of steps is a tensor,
                as PyTorch's own is, which a card would raise twice: for it, and for its block.
        """
        if any(isinstance(state.get("step"), torch.Tensor) for state in self.state.values()):
            raise TypeError("a fused optimizer counts steps in numbers, not in tensors")
        parameters = [p for group in self.param_groups for p in group["params"]]
        blocks = {p: (p.data_ptr(), p.grad.data_ptr()) for p in parameters if p.grad is not None}
        if self._combined is None and blocks:
            for parameter in blocks:
                _check_kind(parameter)
            if len({parameter.untyped_storage().data_ptr() for parameter in blocks}) < len(blocks):
                raise RuntimeError("Tensors to combine must each have a storage of their own.")
            self._combined = blocks
        elif self._combined is not None and blocks != self._combined:
            raise RuntimeError(
                "a parameter or gradient of a fused optimizer was re-allocated after it was "
                "combined: a card would go on with stale memory"
            )

    def zero_gradients(self) -> None:
        """Zero the gradients where they are."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.detach_().zero_()


def _check_kind(parameter: torch.Tensor) -> None:
    if parameter.device.type != "npu":
        raise RuntimeError(f"Tensors to combine must be on NPU, got {parameter.device.type}.")
    if parameter.dtype not in (torch.float32, torch.float16):
        raise TypeError(
            "Fused optimizer's parameters must be either float32 or float16, "
            f"but received {parameter.dtype}"
        )
    if not parameter.is_contiguous():
        raise RuntimeError("Tensors to combine must be contiguous.")


class _ByParameter(torch.optim.Optimizer):
    """An optimizer that updates each parameter from its gradient and its state."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state.update(self._first_state(parameter, group))
                    if "step" in state:
                        state["step"] += 1
                    gradient = parameter.grad
                    if group["weight_decay"] and not isinstance(self, Lamb):
                        gradient = gradient.add(parameter, alpha=group["weight_decay"])
                    self._update(parameter, gradient, group, state)
        return loss

    def _first_state(self, parameter: torch.Tensor, group: dict) -> dict[str, Any]:
        names = self.averages + ("max_exp_avg_sq",) * group.get("amsgrad", False)
        return {"step": 0} | {name: torch.zeros_like(parameter) for name in names}


def _check(*numbers: tuple[str, float, float]) -> None:
    """Refuse numbers outside [0, limit), each given with its name and its limit."""
    for name, number, limit in numbers:
        if not 0.0 <= number < limit:
            raise ValueError(f"Invalid {name}: {number}")


def _check_rates(lr: float, eps: float, weight_decay: float) -> None:
    _check(("learning rate", lr, math.inf), ("epsilon value", eps, math.inf))
    _check(("weight_decay value", weight_decay, math.inf))


def _check_betas(betas: tuple[float, float]) -> None:
    _check(*((f"beta parameter at index {i}", beta, 1.0) for i, beta in enumerate(betas)))


class Adam(_ByParameter):
    """Adam with the options of the fused ones."""

    averages = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
    ) -> None:
        _check_rates(lr, eps, weight_decay)
        _check_betas(betas)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"amsgrad": amsgrad})

    def _update(self, parameter: Any, gradient: torch.Tensor, group: dict, state: dict) -> None:
        mean, square = _averages(gradient, group, state)
        if group["amsgrad"]:
            square = state["max_exp_avg_sq"].copy_(torch.max(state["max_exp_avg_sq"], square))
        correction1, correction2 = (1 - beta ** state["step"] for beta in group["betas"])
        denominator = (square.sqrt() / math.sqrt(correction2)).add_(group["eps"])
        parameter.addcdiv_(mean, denominator, value=-group["lr"] / correction1)


def _averages(gradient: torch.Tensor, group: dict, state: dict) -> tuple[torch.Tensor, ...]:
    beta1, beta2 = group["betas"]
    mean = state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
    square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    return mean, square


class SGD(_ByParameter):
    """SGD with the options of the fused one."""

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        _check_rates(lr, 0.0, weight_decay)
        _check(("momentum value", momentum, math.inf))
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening}
        super().__init__(params, defaults | {"weight_decay": weight_decay, "nesterov": nesterov})

    def _first_state(self, parameter: torch.Tensor, group: dict) -> dict[str, Any]:
        return {}

    def _update(self, parameter: Any, gradient: torch.Tensor, group: dict, state: dict) -> None:
        if group["momentum"]:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = buffer = gradient.clone()
            else:
                buffer = state["momentum_buffer"].mul_(group["momentum"])
                buffer.add_(gradient, alpha=1 - group["dampening"])
            nesterov = group["nesterov"]
            gradient = gradient.add(buffer, alpha=group["momentum"]) if nesterov else buffer
        parameter.add_(gradient, alpha=-group["lr"])


class Adadelta(_ByParameter):
    """Adadelta with the options of the fused one."""

    averages = ("square_avg", "acc_delta")

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
    ) -> None:
        _check_rates(lr, eps, weight_decay)
        _check(("rho value", rho, math.nextafter(1.0, 2.0)))
        super().__init__(params, {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay})

    def _update(self, parameter: Any, gradient: torch.Tensor, group: dict, state: dict) -> None:
        rho, eps = group["rho"], group["eps"]
        square = state["square_avg"].mul_(rho).addcmul_(gradient, gradient, value=1 - rho)
        delta = state["acc_delta"].add(eps).sqrt_().div_(square.add(eps).sqrt_()).mul_(gradient)
        parameter.add_(delta, alpha=-group["lr"])
        state["acc_delta"].mul_(rho).addcmul_(delta, delta, value=1 - rho)


class Lamb(_ByParameter):
    """LAMB (You et al., 2020) without bias correction, weight norms clamped to 10, as Ascend's."""

    averages = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0,
        adam: bool = False,
    ) -> None:
        """Take Adam's options; ``adam`` keeps the trust ratio at 1."""
        _check_rates(lr, eps, 0.0)
        _check_betas(betas)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        self.adam = adam
        super().__init__(params, defaults)

    def _update(self, parameter: Any, gradient: torch.Tensor, group: dict, state: dict) -> None:
        mean, square = _averages(gradient, group, state)
        update = mean / square.sqrt().add(group["eps"])
        if group["weight_decay"]:
            update.add_(parameter, alpha=group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * self._trust_ratio(parameter, update))

    def _trust_ratio(self, parameter: torch.Tensor, update: torch.Tensor) -> float:
        """The ratio of the norms, for which the host waits as Ascend's does."""
        weight_norm = parameter.pow(2).sum().sqrt().clamp(0, 10).item()
        update_norm = update.pow(2).sum().sqrt().item()
        return 1.0 if self.adam or not weight_norm or not update_norm else weight_norm / update_norm


def fused_optimizers(rules: type[FusedRules]) -> dict[str, type[torch.optim.Optimizer]]:
    """Make the four fused optimizers that the product knows, under the rules of one package."""
    plain = (Adam, SGD, Adadelta, Lamb)
    return {
        name: type(name, (rules, optimizer), {})
        for optimizer in plain
        for name in [f"NpuFused{optimizer.__name__}"]
    }
