"""Muon for the kernels of a network, and Adam for the rest."""

from collections.abc import Mapping

import torch
from torch import nn

from runtime.device import matrix_type, optimizer_options

LEAST = 1e-7  # of a norm: no division by 0


class MuonAdam(torch.optim.Optimizer):
    """Muon for the weights of layers, seen as matrices, and Adam for the rest, such as biases.

    Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) steps along the orthogonalised
    momentum of a matrix, so that all its directions learn at one rate. So do its rows, the filters:
    each is divided by the root of the mean square of its steps so far, and the step keeps its
    length (NorMuon, Li et al., 2025, arXiv:2510.05491). The matrices are the kernels in the order
    of their memory, which Muon ignores: 64×81 and 32×1600 in the published network; a kernel with
    one output, which would be one row, has a row for each input: 32×25. On an NPU they must be in a
    plain format, see `runtime.device.keep_plain_formats`.

    Args:
        model: in its memory format.
        lr: Adam's learning rate.
        muon_lr: Muon's learning rate.
        layers: those whose weights Muon takes, each with its learning rate over Muon's.
        momentum: Muon's, Nesterov's kind; and how far back the mean squares of rows look.
        ns_steps: Newton–Schulz iterations, in what the device multiplies fastest.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        muon_lr: float,
        layers: Mapping[str, float],
        momentum: float = 0.95,
        ns_steps: int = 5,
    ) -> None:
        self.kernels = [model.get_parameter(f"{name}.weight") for name in layers]
        rest = [p for p in model.parameters() if not any(p is kernel for kernel in self.kernels)]
        groups = [
            {"params": [kernel], "lr": muon_lr * factor}
            for kernel, factor in zip(self.kernels, layers.values(), strict=True)
        ]
        super().__init__([*groups, {"params": rest, "lr": lr}], {})
        self.momentum, self.ns_steps = momentum, ns_steps
        self.dtype = matrix_type(self.kernels[0].device)
        self.momenta = [torch.zeros_like(as_matrix(kernel)) for kernel in self.kernels]
        self.squares = [momentum.new_zeros(len(momentum), 1) for momentum in self.momenta]
        options = optimizer_options(self.kernels[0].device)
        self.adam = torch.optim.Adam(rest, betas=(0.9, 0.99), **options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step both; the learning rates are those of this optimizer's groups."""
        *muon, adam = self.param_groups
        states = zip(muon, self.kernels, self.momenta, self.squares, strict=True)
        for number, (group, kernel, momentum, squares) in enumerate(states):
            assert kernel.grad is not None
            gradient = as_matrix(torch.empty_like(kernel).copy_(kernel.grad))
            momentum.lerp_(gradient, 1 - self.momentum)
            update = self.direction(number, gradient.lerp(momentum, self.momentum), squares)
            rate = group["lr"] * max(1, update.shape[0] / update.shape[1]) ** 0.5
            kernel.add_(as_kernel(update, kernel), alpha=-rate)
        self.adam.param_groups[0]["lr"] = adam["lr"]
        self.adam.step()

    def direction(
        self, _number: int, gradient: torch.Tensor, squares: torch.Tensor
    ) -> torch.Tensor:
        """Return a kernel's step for a gradient, both as matrices, at a learning rate of 1."""
        step = orthogonalised(gradient, self.ns_steps, self.dtype).float()
        return self.even(step, squares)

    def even(self, update: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
        """Return a step of the same length whose rows go at one rate; notes their squares."""
        squares.lerp_(update.square().mean(1, keepdim=True), 1 - self.momentum)
        rows = update / squares.sqrt().clamp(min=LEAST)
        return rows * (update.norm() / rows.norm().clamp(min=LEAST))

    def state_dict(self) -> dict:
        """Return the states of both; momenta as kernels, which devices lay out differently."""
        pairs = zip(self.momenta, self.kernels, strict=True)
        momenta = [as_kernel(momentum, kernel) for momentum, kernel in pairs]
        return {"momenta": momenta, "squares": self.squares, "adam": self.adam.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over the states of both."""
        momenta = zip(self.momenta, self.kernels, state_dict["momenta"], strict=True)
        for momentum, kernel, earlier in momenta:
            momentum.copy_(as_matrix(torch.empty_like(kernel).copy_(earlier)))
        for squares, earlier in zip(self.squares, state_dict["squares"], strict=True):
            squares.copy_(earlier)
        self.adam.load_state_dict(state_dict["adam"])
        for group in self.adam.param_groups:  # a card's may be saved
            group.update(optimizer_options(self.kernels[0].device))


def orthogonalised(matrix: torch.Tensor, ns_steps: int, dtype: torch.dtype) -> torch.Tensor:
    """Return about U·Vᵀ of a matrix's singular value decomposition U·S·Vᵀ.

    Each Newton–Schulz iteration takes the singular values s to 3.4445 s − 4.7750 s³ + 2.0315 s⁵,
    which brings those near 1 that lie in 0–1: after 5 all above 0.0015 are 0.65 to 1.2. The
    coefficients are those of torch.optim.Muon, and so is the order of operations in half precision.

    Args:
        matrix: M×N.
        ns_steps: number of iterations.
        dtype: their arithmetic. What is small must not be lost on the way to float16, which is
            why the matrix is divided by its norm before; bfloat16 can hold it as it is.
    """
    if dtype == torch.float16:
        matrix = matrix / matrix.float().norm().clamp(min=LEAST)
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.float().norm().clamp(min=LEAST).to(dtype)
    x = (_iterated_by_gram if dtype == torch.float32 else _iterated)(x, ns_steps)
    return x.T if tall else x


def _iterated(x: torch.Tensor, ns_steps: int) -> torch.Tensor:
    for _ in range(ns_steps):
        gram = x @ x.T
        x = torch.addmm(
            x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445
        )
    return x


def _iterated_by_gram(x: torch.Tensor, ns_steps: int) -> torch.Tensor:
    """Do the same iterations on X·Xᵀ, which is small, and apply them to X at the end.

    Each multiplies X by a polynomial Q of X·Xᵀ, which so becomes Q·X·Xᵀ·Q. Half precision is too
    coarse for that.
    """
    gram = x @ x.T
    total = torch.eye(len(gram), device=x.device)
    for _ in range(ns_steps):
        q = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        q.diagonal().add_(3.4445)
        total, gram = q @ total, q @ gram @ q
    return total @ x


def as_matrix(kernel: torch.Tensor) -> torch.Tensor:
    """View an O×I×H×W kernel as O×(I·H·W), in the order of its memory; 1×I×H×W as I×(H·W)."""
    if kernel.shape[0] == 1:
        return kernel[0].flatten(1)
    channels_last = not kernel.is_contiguous()
    return (kernel.permute(0, 2, 3, 1) if channels_last else kernel).reshape(kernel.shape[0], -1)


def as_kernel(matrix: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """View a matrix as a kernel, the other way round."""
    if kernel.shape[0] == 1 or kernel.is_contiguous():
        return matrix.view(kernel.shape)
    outputs, inputs, height, width = kernel.shape
    return matrix.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
