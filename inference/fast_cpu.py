"""The network rewritten for a CPU that enlarges pictures: the same answers, sooner."""

import copy

import torch
from torch import nn

from inference.last_layer import ColumnsAsChannels, in_layout, replace_last_layer
from model import SRCNN

EXACT = 16  # feature maps that stay in fp32: as many as an AVX-512 vector holds


def for_cpu(model: SRCNN, bf16: bool) -> nn.Module:
    """Return a copy of the network that is faster on a CPU and takes 1×1×H×W only.

    Args:
        model: on luminance.
        bf16: compute most of the second layer, which is nine tenths of all arithmetic, in
            bfloat16. On photographs the answer stays within 0.001 dB of that in fp32
            (benchmarks/enlarging_speed.py measures it).
    """
    model = in_layout(copy.deepcopy(model), torch.channels_last)
    replace_last_layer(model, ColumnsAsChannels)
    if bf16 and model.conv1.out_channels > EXACT:
        return _MostlyBf16(model)
    return model


class _MostlyBf16(nn.Module):
    """The network with the feature maps that carry the picture in fp32, the others in bfloat16.

    bfloat16 has 8 significant bits, as many as the picture. A few feature maps pass the picture
    itself on; rounded, they cost 0.1 dB and more. The many that answer to edges are small, and so
    is what rounding does to them.
    """

    def __init__(self, model: SRCNN) -> None:
        super().__init__()
        order = _strength(model).argsort(descending=True)
        strong, weak = order[:EXACT], order[EXACT:]
        self.strong1, self.weak1 = (_part(model.conv1, outputs=maps) for maps in (strong, weak))
        self.strong2, self.weak2 = (_part(model.conv2, inputs=maps) for maps in (strong, weak))
        self.weak2.bias = None
        self.weak2.to(torch.bfloat16)
        self.conv3 = model.conv3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.strong2(self.strong1(x).relu_())
        y += self.weak2(self.weak1(x).relu_().to(torch.bfloat16))
        return self.conv3(y.relu_())


def _strength(model: SRCNN) -> torch.Tensor:
    """Return, for each feature map of the first layer, what even areas send through it."""
    grey = torch.tensor([0.2, 0.5, 0.8])
    conv = model.conv1
    bias = conv.get_parameter("bias").detach()
    answer = conv.weight.detach().sum((1, 2, 3))[:, None] * grey + bias[:, None]
    weight = model.conv2.weight.detach().square().sum((0, 2, 3))
    return answer.relu().square().mean(1) * weight


def _part(
    conv: nn.Conv2d,
    outputs: torch.Tensor | slice = slice(None),
    inputs: torch.Tensor | slice = slice(None),
) -> nn.Conv2d:
    """Return the convolution restricted to some of its channels."""
    weight = conv.weight.detach()[outputs][:, inputs]
    bias = conv.get_parameter("bias").detach()[outputs]
    part = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding="same")
    part.load_state_dict({"weight": weight, "bias": bias})
    return in_layout(part, torch.channels_last)
