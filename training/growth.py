"""Kernels that grow: conv2 learns as 3×3 first, at two fifths of the arithmetic, then as 5×5."""

import torch
from torch import nn
from torch.nn import functional

from model import SRCNN

SMALL = 3


class Growing(nn.Module):
    """A convolution that can use its centre alone, with the parameters of the one it replaces.

    What is not in use has no gradient: where it is 0, it stays 0, and the optimizer's state of it
    with it. Muon's step of the centre is the same with zeros around. So nothing has to be moved
    when more comes into use.

    Attributes:
        size: side of the part that is in use; at first all of it.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.get_parameter("bias")
        self.size = conv.kernel_size[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        border = (self.weight.shape[-1] - self.size) // 2
        centre = slice(border, border + self.size)
        return functional.conv2d(x, self.weight[..., centre, centre], self.bias, padding="same")


def growing(small: SRCNN) -> SRCNN:
    """Return the 9-5-5 network that computes what a 9-3-5 one does, and can grow."""
    model = SRCNN()
    weights = small.state_dict()
    border = (model.conv2.kernel_size[0] - small.conv2.kernel_size[0]) // 2
    weights["conv2.weight"] = functional.pad(weights["conv2.weight"], [border] * 4)
    model.load_state_dict(weights)
    model.conv2 = Growing(model.conv2)  # type: ignore[assignment]
    return model
