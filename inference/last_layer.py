"""The last layer, whose sum is the picture: in fp32, and in the form that is fastest."""

from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional

Module = TypeVar("Module", bound=nn.Module)


def in_layout(module: Module, layout: torch.memory_format) -> Module:
    """Give the weights of a module another memory format."""
    return module.to(memory_format=layout)  # type: ignore[call-overload]


class InFp32(nn.Module):
    """A convolution in fp32 under autocast, too, with the parameters of the one it replaces.

    The last layer's sum is the picture, which bfloat16 would round to 8 bits.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.get_parameter("bias")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self._convolve(x.float())

    def _convolve(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, self.weight, self.bias, padding="same")


class ColumnsAsChannels(InFp32):
    """A convolution with one output channel, computed with one channel per kernel column.

    A single output channel leaves all but one lane of the CPU's vectors idle. Here each column of
    the kernel is a filter of its own, and the answers are added up, each shifted by its column.
    """

    def _convolve(self, x: torch.Tensor) -> torch.Tensor:
        size = self.weight.shape[-1]
        filters = self.weight[0].permute(2, 0, 1).flip(0).unsqueeze(3)
        columns = functional.conv2d(x, filters, padding=(size // 2, 0))
        total = functional.fold(columns.flatten(2), x.shape[2:], (1, size), padding=(0, size // 2))
        return total + self.bias
