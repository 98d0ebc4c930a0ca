"""Muon where a layer's inputs are as if uncorrelated, which is for the end of long runs."""

from collections.abc import Mapping
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from training.muon import LEAST, MuonAdam, as_kernel, as_matrix

EVERY = 100  # steps between two looks at the inputs; the first steps look each time
FIRST = 10
MEMORY = 0.95  # of the inputs seen so far, at each look
DAMPING = 0.01  # of their mean variance
PLACES = 1024  # that are looked at each time


class WhitenedMuon(MuonAdam):
    """Muon's steps, taken in coordinates in which a layer's inputs are white.

    What a layer sees of a picture is correlated: its 5×5 neighbours in 64 maps are 1,600 numbers
    with few large variances and many small ones. A step that turns all directions of a kernel by
    as much changes the output along the small ones by next to nothing, so that those are learnt
    last. With L·Lᵀ the inputs' second moments, W·L is the kernel for inputs L⁻¹·x, which are white.
    Its gradient is G·L⁻ᵀ, and a step S there is S·L⁻¹ here. Second moments of the inputs are one
    factor of K-FAC (Martens and Grosse, 2015, arXiv:1503.05671); Newton–Muon (Du and Su, 2026,
    arXiv:2604.01472) divides by them before Muon's step and does not come back.

    In each of the `FIRST` steps and then every `EVERY` steps a layer's inputs are looked at, with
    several processes those of all. The model refers to the optimizer then, so do not copy it.

    Args:
        model: in its memory format; what it computes while gradients are on is training.
        lr: Adam's learning rate.
        muon_lr: Muon's learning rate; of whitened layers how much an output changes in a step.
        layers: those whose weights Muon takes, each with its learning rate over Muon's. Where a
            layer has more than one output, its inputs are made white.
    """

    def __init__(
        self, model: nn.Module, lr: float, muon_lr: float, layers: Mapping[str, float]
    ) -> None:
        super().__init__(model, lr, muon_lr, layers)
        self.steps = 0
        self.moments: dict[int, torch.Tensor] = {}  # of the inputs, by the kernel's number
        self.whiteners: dict[int, torch.Tensor] = {}  # L⁻¹
        for number, (name, kernel) in enumerate(zip(layers, self.kernels, strict=True)):
            if len(kernel) > 1:
                size = kernel[0].numel()
                self.moments[number] = kernel.new_zeros(size, size)
                layer = model.get_submodule(name)
                layer.register_forward_pre_hook(partial(self._look, number))

    def _look(self, number: int, _: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if torch.is_grad_enabled() and (self.steps < FIRST or self.steps % EVERY == 0):
            with torch.no_grad(), torch.autocast(inputs[0].device.type, enabled=False):
                self.take_in(number, *inputs)

    def take_in(self, number: int, x: torch.Tensor) -> None:
        """Take in what a layer's kernel sees of an input, N×C×H×W, unless it overflowed."""
        side = self.kernels[number].shape[-1]
        padded = functional.pad(x.float(), [side // 2] * 4)
        generator = torch.Generator().manual_seed(self.steps)
        sample, row, column = (
            torch.randint(count, (PLACES, 1, 1), generator=generator)
            for count in (len(x), *x.shape[2:])
        )
        rows, columns = row + torch.arange(side)[:, None], column + torch.arange(side)
        index = [numbers.to(x.device) for numbers in (sample, rows, columns)]
        seen = padded[index[0], :, index[1], index[2]]  # PLACES×side×side×C
        seen = seen.permute(0, 3, 1, 2).flatten(1)
        moments = seen.T @ (seen / len(seen))
        if dist.is_initialized():
            dist.all_reduce(moments)
            moments /= dist.get_world_size()
        if moments.isfinite().all():
            self.moments[number].lerp_(moments, max(1 - MEMORY, 1 / (self.steps + 1)))
        self.whiten(number)

    def whiten(self, number: int) -> None:
        """Work out L⁻¹ of a layer, on the CPU: no NPU can. All processes take the first one's."""
        moments, unit = self.moments[number].cpu(), torch.eye(len(self.moments[number]))
        damping = DAMPING * float(moments.diagonal().mean()) + LEAST
        root = torch.linalg.cholesky(moments + damping * unit)
        inverse = torch.linalg.solve_triangular(root, unit, upper=False)  # columns first
        self.whiteners[number] = inverse.contiguous().to(self.moments[number].device)
        if dist.is_initialized():
            dist.broadcast(self.whiteners[number], src=0)

    def direction(self, number: int, gradient: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
        """Return a step for a gradient, both as matrices."""
        if number not in self.moments:
            return super().direction(number, gradient, squares)
        kernel, whitener = self.kernels[number], self.whiteners[number]
        white = as_kernel(gradient, kernel).flatten(1) @ whitener.T
        step = super().direction(number, white, squares) @ whitener
        return as_matrix(torch.empty_like(kernel).copy_(step.view(kernel.shape)))

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step all; the learning rates are those of this optimizer's groups."""
        super().step()
        self.steps += 1

    def state_dict(self) -> dict:
        """Return the states, and the inputs' second moments, from which the rest follows."""
        return {**super().state_dict(), "steps": self.steps, "moments": self.moments}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over the states."""
        super().load_state_dict(state_dict)
        self.steps = state_dict["steps"]
        for number, moments in self.moments.items():
            moments.copy_(state_dict["moments"][number])
            self.whiten(number)
