"""The trained networks for `torch.hub.load(repository, "srcnn_x3")`; see model.SRCNN.

Each takes luminance of a picture that is already enlarged bicubically, N×1×H×W, 0–1, and returns
the same shape.
"""

from inference.weights import load_weights as _load_weights
from inference.weights import shipped_weights as _shipped_weights
from model import SRCNN as _SRCNN

dependencies = ["torch"]


def srcnn_x2(pretrained: bool = True) -> _SRCNN:
    """Return SRCNN for enlarging by 2; with `pretrained=False`, untrained."""
    return _network(2, pretrained)


def srcnn_x3(pretrained: bool = True) -> _SRCNN:
    """Return SRCNN for enlarging by 3; with `pretrained=False`, untrained."""
    return _network(3, pretrained)


def srcnn_x4(pretrained: bool = True) -> _SRCNN:
    """Return SRCNN for enlarging by 4; with `pretrained=False`, untrained."""
    return _network(4, pretrained)


def _network(scale: int, pretrained: bool) -> _SRCNN:
    return _load_weights(_shipped_weights(scale)) if pretrained else _SRCNN()
