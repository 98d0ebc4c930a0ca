"""Fused NPU optimizers for the simulations: their plain twins under a fused optimizer's rules.

A fused optimizer moves parameters, gradients and states of a group into one block of memory at its
first step and updates whole blocks from then on. The arithmetic is that of the plain optimizer;
what differs is what it cannot bear. Where a card would quietly go on with stale memory, the
simulation raises an error.
"""

from typing import Any

import torch


class FusedRules:
    """What combining tensors demands; goes before the plain optimizer among the bases."""

    _combined: dict[torch.Tensor, tuple[int, int]] | None = None

    def check_combined(self) -> None:
        """Take note of the blocks at the first gradients; later, insist that they stayed.

        Raises:
            RuntimeError: a parameter is not on an NPU or not contiguous, or it or its gradient
                has been re-allocated, or has its first gradient only now.
            TypeError: a parameter is neither float32 nor float16.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        blocks = {p: (p.data_ptr(), p.grad.data_ptr()) for p in parameters if p.grad is not None}
        if self._combined is None and blocks:
            for parameter in blocks:
                _check_kind(parameter)
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


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al., 2020) without bias correction, weight norms clamped to 10, as Ascend's."""

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
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        self.adam = adam
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter by its own trust ratio."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        gradient = parameter.grad
        state["step"] += 1
        mean = state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = mean / square.sqrt().add(group["eps"])
        if group["weight_decay"]:
            update.add_(parameter, alpha=group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * self._trust_ratio(parameter, update))

    def _trust_ratio(self, parameter: torch.Tensor, update: torch.Tensor) -> float:
        weight_norm = parameter.pow(2).sum().sqrt().clamp(0, 10).item()
        update_norm = update.pow(2).sum().sqrt().item()
        return 1.0 if self.adam or not weight_norm or not update_norm else weight_norm / update_norm


def fused_optimizers(rules: type[FusedRules]) -> dict[str, type[torch.optim.Optimizer]]:
    """Make the four fused optimizers that the product knows, under the rules of one package."""

    class NpuFusedAdam(rules, torch.optim.Adam):
        def __init__(
            self,
            params: Any,
            lr: float = 1e-3,
            betas: tuple[float, float] = (0.9, 0.999),
            eps: float = 1e-8,
            weight_decay: float = 0,
            amsgrad: bool = False,
        ) -> None:
            super().__init__(params, lr, betas, eps, weight_decay, amsgrad, foreach=False)

    class NpuFusedSGD(rules, torch.optim.SGD):
        def __init__(
            self,
            params: Any,
            lr: float,
            momentum: float = 0.0,
            dampening: float = 0.0,
            weight_decay: float = 0.0,
            nesterov: bool = False,
        ) -> None:
            super().__init__(params, lr, momentum, dampening, weight_decay, nesterov, foreach=False)

    class NpuFusedAdadelta(rules, torch.optim.Adadelta):
        def __init__(
            self,
            params: Any,
            lr: float = 1.0,
            rho: float = 0.9,
            eps: float = 1e-6,
            weight_decay: float = 0,
        ) -> None:
            super().__init__(params, lr, rho, eps, weight_decay, foreach=False)

    class NpuFusedLamb(rules, Lamb):
        pass

    made = (NpuFusedAdam, NpuFusedSGD, NpuFusedAdadelta, NpuFusedLamb)
    return {optimizer.__name__: optimizer for optimizer in made}
