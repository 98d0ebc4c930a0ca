"""SRCNN, the three-layer super-resolution network of Dong et al., 2014 (arXiv:1501.00092)."""

from collections.abc import Sequence

import torch
from torch import nn


class SRCNN(nn.Module):
    """Maps a bicubically enlarged image to a sharper one of the same size.

    The defaults are the published 9-5-5 network on luminance. The paper's other shapes are
    `kernel_sizes=(9, 1, 5)` or `(9, 3, 5)`, wider `channels`, and `num_channels=3` for RGB.
    State dict keys are `conv1.weight`, `conv1.bias`, … `conv3.bias`.

    Args:
        channels: feature maps of the first and the second layer.
        kernel_sizes: odd kernel sizes of the three layers.
        num_channels: image channels in and out.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 32),
        kernel_sizes: Sequence[int] = (9, 5, 5),
        num_channels: int = 1,
    ) -> None:
        super().__init__()
        if len(channels) != 2 or len(kernel_sizes) != 3 or any(k % 2 == 0 for k in kernel_sizes):
            raise ValueError(
                f"SRCNN takes 2 channel counts and 3 odd kernel sizes, "
                f"not {tuple(channels)} and {tuple(kernel_sizes)}"
            )
        widths = (num_channels, *channels, num_channels)
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(widths[i], widths[i + 1], kernel_sizes[i], padding=kernel_sizes[i] // 2)
            for i in range(3)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the restored image; `x` is N×C×H×W, 0–1, and the output has its shape."""
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x))
        return self.conv3(x)

    @property
    def receptive_radius(self) -> int:
        """Pixels to each side of an output pixel that influence it: 4 + 2 + 2 = 8 by default."""
        return sum(conv.kernel_size[0] // 2 for conv in (self.conv1, self.conv2, self.conv3))


@torch.no_grad()
def identity_init(model: SRCNN, std: float = 1e-3) -> None:
    """Initialise so that the untrained network nearly returns its input, the bicubic picture.

    For each image channel one filter of conv1 copies the centre pixel, conv2 passes it on and
    conv3 gives it back; conv3's other weights are normal with `std`, every other filter is
    He-normal (He et al., 2015, arXiv:1502.01852), biases are 0. ReLU passes the copied channel
    unchanged, as pixels are not negative. Training starts a few dB below bicubic's PSNR, for the
    noise of conv3, where PyTorch's own initialisation starts near 7 dB.
    """
    for conv in (model.conv1, model.conv2):
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    nn.init.normal_(model.conv3.weight, std=std)
    for conv in (model.conv1, model.conv2, model.conv3):
        nn.init.zeros_(conv.get_parameter("bias"))
        centre = conv.kernel_size[0] // 2
        for channel in range(model.conv3.out_channels):
            if conv is not model.conv3:
                conv.weight[channel] = 0.0
            conv.weight[channel, channel, centre, centre] = 1.0
