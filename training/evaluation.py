"""PSNR of the weights that are trained, after each epoch."""

import math
import sys
from typing import Any

import torch
from torch import nn

from datasets import EvalDataset, Pair
from model import SRCNN
from runtime.distributed import World
from runtime.errors import printable
from training.precision import Precision
from training.state import TrainingState

SAMPLES = 64  # that the network is given at a time; held-out patches are many
BELOW_BICUBIC_AFTER = 2000  # steps, 3 epochs of T91; a PSNR below bicubic's is worth a warning then


class Evaluator:
    """Measures weights by the `modelzoo` protocol, shared out over the processes.

    Args:
        eval_set: the evaluation images.
        held_out: pairs kept out of training, n×1×H×W, 0–1; may be none.
        world: the processes of the run.
        precision: that of training.
        half: evaluate in training's half precision, where it has one; otherwise in fp32.

    Attributes:
        bicubic_psnr: what the evaluation images have without a network, dB.
    """

    def __init__(
        self,
        eval_set: EvalDataset,
        held_out: list[Pair],
        world: World,
        precision: Precision,
        half: bool = False,
    ) -> None:
        self.eval_set, self.world, self.precision = eval_set, world, precision
        self.half = precision.half if half else None
        pairs = [(lr[None], hr[None]) for lr, hr in eval_set]
        self.pairs, self.held_out = (
            [(lr.to(world.device), hr.to(world.device)) for lr, hr in some]
            for some in (pairs, held_out)
        )
        self.model = precision.to_device(SRCNN()).eval().requires_grad_(False)
        self.bicubic_psnr = mean_psnr(nn.Identity(), self.pairs, world)

    @property
    def name(self) -> str:
        """Return the name of the evaluation set."""
        return self.eval_set.path.stem

    @property
    def description(self) -> str:
        """Return a line for the log."""
        path = printable(self.eval_set.path)
        bicubic = f"bicubic {self.bicubic_psnr:.2f} dB (modelzoo protocol)"
        return f"{path}, {len(self.eval_set)} images, {bicubic}"

    def psnr(self, weights: dict[str, torch.Tensor], pairs: list[Pair]) -> float:
        """Return the mean PSNR of image pairs with these weights, dB."""
        self.model.load_state_dict(weights)
        device = self.world.device.type
        autocast = torch.autocast(device, dtype=self.half, enabled=self.half is not None)
        with self.precision.evaluation(), autocast:
            return mean_psnr(self.model, pairs, self.world)

    def scores(self, state: TrainingState) -> dict[str, float | None]:
        """Return PSNR on the evaluation images and on held-out ones; None where there are none.

        `raw_psnr` is that of the weights without their moving average, where there is one.
        """
        weights = state.weights()
        raw = self.psnr(state.master_params(), self.pairs) if state.ema else None
        return {
            "psnr": self.psnr(weights, self.pairs),
            "raw_psnr": raw,
            "held_out_psnr": self.psnr(weights, self.held_out) if self.held_out else None,
        }

    def warn(self, metrics: dict[str, Any]) -> None:
        """Say on standard error what of an epoch's row of metrics should not pass unnoticed."""
        step, psnr, skipped = (metrics[name] for name in ("step", "psnr", "skipped_steps"))
        if skipped:
            print(f"steps skipped so far, as they overflowed: {skipped}", file=sys.stderr)
        if step >= BELOW_BICUBIC_AFTER and psnr < self.bicubic_psnr < math.inf:
            print(
                f"warning: PSNR {psnr:.2f} dB is below bicubic's {self.bicubic_psnr:.2f} dB "
                f"after {step:,} steps; see docs/troubleshooting.md",
                file=sys.stderr,
            )


@torch.no_grad()
def mean_psnr(model: nn.Module, pairs: list[Pair], world: World) -> float:
    """Return the mean over image pairs of the PSNR in dB of the output, clamped to 0–1.

    Each pair is n×1×H×W, 0–1. The images are shared out over the processes.
    """
    total = torch.zeros((), device=world.device)
    for lr, hr in pairs[world.rank :: world.size]:
        error = torch.zeros_like(total)
        for low, high in zip(lr.split(SAMPLES), hr.split(SAMPLES), strict=True):
            error += (model(low).clamp(0.0, 1.0) - high).square().mean() * (len(low) / len(lr))
        total += -10.0 * torch.log10(error)
    return world.sum(total).item() / len(pairs)
