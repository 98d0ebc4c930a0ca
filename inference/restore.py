"""Using a trained network, as evaluation and enlarging have in common."""

import numpy as np
import torch
from torch import nn


@torch.inference_mode()
def restore(model: nn.Module, luminance: np.ndarray, ensemble: bool = False) -> np.ndarray:
    """Put one whole image through the network, on the device where the network is.

    Args:
        model: takes 1×1×H×W; returns the same, or cuts the same off each side.
        luminance: H×W, 0–255, the bicubically enlarged image.
        ensemble: average over flips and rotations.

    Returns:
        H×W float64, as large as the network's answer, about 0–255, neither clipped nor rounded.
    """
    device = next(model.parameters()).device
    x = torch.from_numpy(np.asarray(luminance, dtype=np.float32) / 255.0)[None, None].to(device)
    y = self_ensemble(model, x) if ensemble else model(x)
    return y[0, 0].cpu().numpy().astype(np.float64) * 255.0


def self_ensemble(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the mean of the network's answers to the 8 flips and rotations of its input.

    Each answer is turned back before it is averaged (Timofte et al., 2016, arXiv:1511.02228).
    Takes 8 times as long as `model(x)`.

    Args:
        model: keeps height and width, or cuts the same off each side.
        x: N×C×H×W.

    Returns:
        What `model(x)` would, of the same shape.
    """
    total = torch.zeros((), device=x.device)
    for turns in range(4):
        for flip in ((), (3,)):
            answer = model(torch.rot90(x.flip(flip), turns, (2, 3)))
            total = total + torch.rot90(answer, -turns, (2, 3)).flip(flip)
    return total / 8
