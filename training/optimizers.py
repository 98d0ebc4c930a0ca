"""Optimizers by name: PyTorch's, their fused NPU twins, and Muon for the fast recipe."""

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn

from model import SRCNN
from runtime.errors import UserError
from training.recipes import MUON, Recipe

MUON_LAYERS = ("conv1", "conv2")  # Adam takes the third, whose weights are one row
PLAIN = {"adam": "Adam", "sgd": "SGD", "adadelta": "Adadelta"}
FUSED = {
    "adam": "NpuFusedAdam",
    "sgd": "NpuFusedSGD",
    "adadelta": "NpuFusedAdadelta",
    "lamb": "NpuFusedLamb",
}


def build_optimizer(
    recipe: Recipe, model: SRCNN, device: torch.device, apex: bool
) -> torch.optim.Optimizer:
    """Make the optimizer of a recipe; on an NPU the fused one, from apex or from torch_npu.

    The third layer's slower rate takes a second group of parameters, and no more: torch_npu's
    NpuFusedAdam launches 8 kernels a step for each group (16 here, 24 with the three groups of
    the published code; 42 without fusion), as counted over the simulated driver.

    Args:
        recipe: tells optimizer, learning rate and the third layer's share of it. SGD has
            momentum 0.9; everything else is PyTorch's default.
        model: on its device.
        device: where the model is.
        apex: whether apex drives the run.

    Raises:
        UserError: there is no such optimizer on this device or in this PyTorch.
    """
    if recipe.optimizer == MUON:
        return MuonAdam(model, recipe.lr, recipe.muon_factor * recipe.lr)
    slow = list(model.conv3.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [*model.conv1.parameters(), *model.conv2.parameters()]}
    ]
    if recipe.last_layer_factor == 1:
        groups[0]["params"] += slow
    else:
        groups.append({"params": slow, "lr": recipe.lr * recipe.last_layer_factor})
    options = {"momentum": 0.9} if recipe.optimizer == "sgd" else {}
    return _find(recipe.optimizer, device, apex)(groups, lr=recipe.lr, **options)


def _find(name: str, device: torch.device, apex: bool) -> Callable[..., torch.optim.Optimizer]:
    if device.type != "npu":
        if name not in PLAIN:
            raise UserError(f"--optimizer {name} is NpuFused only, it needs an NPU; use adam")
        return getattr(torch.optim, PLAIN[name])
    module: ModuleType = importlib.import_module("apex.optimizers" if apex else "torch_npu.optim")
    if not hasattr(module, FUSED[name]):
        raise UserError(f"--optimizer {name}: {module.__name__} has no {FUSED[name]}")
    return getattr(module, FUSED[name])


class MuonAdam(torch.optim.Optimizer):
    """Muon for the weights of conv1 and conv2, seen as matrices, and Adam for the rest.

    Muon (Jordan et al., 2024) steps along the orthogonalised momentum of a matrix, so that all
    its directions learn at one rate: Nesterov momentum 0.95, 5 Newton–Schulz iterations.
    `torch.optim.Muon` takes matrices only: it gets views that share the kernels' memory, 64×81
    and 32×1600 in the published network.

    Args:
        model: in its memory format.
        lr: Adam's learning rate.
        muon_lr: Muon's learning rate.
        layers: whose weights Muon takes.
        momentum: Muon's.
        ns_steps: Newton–Schulz iterations.
    """

    def __init__(
        self,
        model: SRCNN,
        lr: float,
        muon_lr: float,
        layers: Sequence[str] = MUON_LAYERS,
        momentum: float = 0.95,
        ns_steps: int = 5,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(
                f"--recipe fast needs PyTorch 2.9 or newer, this is {torch.__version__}"
            )
        self.kernels = [getattr(model, name).weight for name in layers]
        rest = [p for p in model.parameters() if not any(p is kernel for kernel in self.kernels)]
        super().__init__([{"params": self.kernels, "lr": muon_lr}, {"params": rest, "lr": lr}], {})
        self.matrices = [nn.Parameter(_as_matrix(kernel.data)) for kernel in self.kernels]
        self.muon = torch.optim.Muon(
            self.matrices, weight_decay=0.0, momentum=momentum, nesterov=True, ns_steps=ns_steps
        )
        self.adam = torch.optim.Adam(rest, betas=(0.9, 0.99))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step both; the learning rates are those of this optimizer's groups."""
        for inner, group in zip((self.muon, self.adam), self.param_groups, strict=True):
            inner.param_groups[0]["lr"] = group["lr"]
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            matrix.grad = _as_matrix(torch.empty_like(kernel).copy_(kernel.grad))
        self.muon.step()
        self.adam.step()

    def state_dict(self) -> dict:
        """Return the states of both."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over the states of both."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adam.load_state_dict(state_dict["adam"])


def _as_matrix(kernel: torch.Tensor) -> torch.Tensor:
    """View an O×I×H×W kernel as O×(I·H·W), in the order of its memory, which Muon ignores."""
    channels_last = not kernel.is_contiguous()
    return (kernel.permute(0, 2, 3, 1) if channels_last else kernel).view(kernel.shape[0], -1)
