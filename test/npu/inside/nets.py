"""The small network and the training loop that the checks share."""

from collections.abc import Callable

import torch
from torch import nn


class SmallNet(nn.Module):
    """Three convolutions in SRCNN's shapes, optionally with batch normalisation."""

    def __init__(self, channels: int = 64, batch_norm: bool = False) -> None:
        """Build the layers with torch's random initialisation."""
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 9, padding=4)
        self.conv2 = nn.Conv2d(channels, channels // 2, 5, padding=2)
        self.conv3 = nn.Conv2d(channels // 2, 1, 5, padding=2)
        self.relu = nn.ReLU(inplace=True)
        self.bn = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map N×1×H×W to N×1×H×W."""
        return self.conv3(self.relu(self.conv2(self.relu(self.bn(self.conv1(image))))))

    def groups(self) -> list[dict]:
        """Two groups of parameters: the last layer learns at a tenth of the rate."""
        first = [*self.conv1.parameters(), *self.conv2.parameters(), *self.bn.parameters()]
        return [{"params": first}, {"params": list(self.conv3.parameters()), "lr": 1e-4}]


def batch(size: int = 17) -> tuple[torch.Tensor, torch.Tensor]:
    """Four random inputs and targets on the CPU."""
    return torch.rand(4, 1, size, size), torch.rand(4, 1, size, size)


def train(
    device: str, make_optimizer: Callable, steps: int = 6, channels: int = 8
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train in fp32 from seed 1; returns the losses and the weights on the CPU."""
    torch.manual_seed(1)
    net = SmallNet(channels)
    inputs, targets = batch()
    net.to(device)
    optimizer = make_optimizer(net.groups(), lr=1e-3)
    losses = []
    for _ in range(steps):
        loss = nn.functional.mse_loss(net(inputs.to(device)), targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: weight.cpu() for name, weight in net.state_dict().items()}
