"""Optimizers by name: PyTorch's, their fused NPU twins, and Muon."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from model import SRCNN
from runtime.device import optimizer_options
from runtime.errors import UserError
from training.muon import MuonAdam
from training.recipes import MUON, WHITENED_MUON, Recipe
from training.whitening import WhitenedMuon

OWN = {MUON: MuonAdam, WHITENED_MUON: WhitenedMuon}
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
    if recipe.uses_muon:
        own = OWN[recipe.optimizer]
        return own(model, recipe.lr, recipe.muon_factor * recipe.lr, muon_layers(recipe))
    slow = list(model.conv3.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [*model.conv1.parameters(), *model.conv2.parameters()]}
    ]
    if recipe.last_layer_factor == 1:
        groups[0]["params"] += slow
    else:
        groups.append({"params": slow, "lr": recipe.lr * recipe.last_layer_factor})
    options: dict[str, Any] = {"momentum": 0.9} if recipe.optimizer == "sgd" else {}
    options |= optimizer_options(device)
    return _find(recipe.optimizer, device, apex)(groups, lr=recipe.lr, **options)


def muon_layers(recipe: Recipe) -> dict[str, float]:
    """Return the layers whose weights Muon takes, each with its learning rate over Muon's."""
    return {"conv1": 1.0, "conv2": 1.0, "conv3": recipe.last_layer_factor}


def _find(name: str, device: torch.device, apex: bool) -> Callable[..., torch.optim.Optimizer]:
    if device.type != "npu":
        if name not in PLAIN:
            raise UserError(f"--optimizer {name} is NpuFused only, it needs an NPU; use adam")
        return getattr(torch.optim, PLAIN[name])
    module: ModuleType = importlib.import_module("apex.optimizers" if apex else "torch_npu.optim")
    if not hasattr(module, FUSED[name]):
        raise UserError(f"--optimizer {name}: {module.__name__} has no {FUSED[name]}")
    return getattr(module, FUSED[name])
