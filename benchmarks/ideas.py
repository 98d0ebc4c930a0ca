"""What each part of the fast recipe is worth: the recipe with one thing changed, on equal steps.

    python benchmarks/ideas.py --data-path dataset [--steps 2500] [--seed 1] [--only NAME …]

Trains once per line and prints PSNR by the `modelzoo` protocol on the held-out training images,
which choices are made by, and on Set5, which is reported only; and the milliseconds of a step.
One seed a line: differences below about 0.02 dB mean little.
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch.nn.functional import l1_loss

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trainer

from benchmarks.train import CPU, run_options
from model import SRCNN
from runtime import optimizers
from runtime.distributed import World
from training.precision_choice import choose_precision
from training.recipes import FAST, Recipe
from training.stopping import StopRequest

MUON = getattr(torch.optim, "Muon", None)  # PyTorch 2.9 and later
BORDER = 8  # pixels of a crop from which the network sees the zeros around it


def lighter_borders(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error in which the border of a crop counts 0.4 of the rest."""
    weight = torch.full(output.shape[2:], 0.4)
    weight[BORDER:-BORDER, BORDER:-BORDER] = 1.0
    return (weight / weight.mean() * (output - target).square()).mean()


def unchanged(model: SRCNN, device: torch.device, layout: torch.memory_format) -> SRCNN:
    """Move a network as PyTorch computes it."""
    return model.to(device, memory_format=layout)


def linear_end(recipe: Recipe, step: int, total_steps: int) -> float:
    """Let the learning rates be constant, but for the last 40 % of the steps: down to 0."""
    warmup = min(1.0, (step + 1) / recipe.warmup_steps)
    return warmup * min(1.0, (1 - step / total_steps) / 0.4)


def muon_with(**constants: float) -> Callable[..., torch.optim.Optimizer]:
    """Return PyTorch's Muon with some of its constants changed."""
    return lambda matrices, **options: MUON(matrices, **{**options, **constants})


SMALLER = {"crop_size": 48, "batch_size": 4, "steps_per_epoch": 2}
IDEAS = {
    "the recipe": {},
    "crops of 48×48, batch 8": {"crop_size": 48, "batch_size": 8},
    "crops of 33×33, batch 16": {"crop_size": 33, "batch_size": 16},
    "48×48, batch 4, twice the steps": SMALLER,
    "the same, at the end linear": {**SMALLER, "lr_factor": linear_end},
    "batch 1, twice the steps": {"batch_size": 1, "steps_per_epoch": 2},
    "batch 4, half the steps": {"batch_size": 4, "steps_per_epoch": 0.5},
    "half the learning rates": {"lr": FAST.lr / 2},
    "twice the learning rates": {"lr": FAST.lr * 2},
    "half of Muon's rate": {"muon_factor": FAST.muon_factor / 2},
    "twice Muon's rate": {"muon_factor": FAST.muon_factor * 2},
    "Muon's momentum 0.9": {"Muon": muon_with(momentum=0.9)},
    "Muon's momentum 0.98": {"Muon": muon_with(momentum=0.98)},
    "3 iterations of Muon's, not 5": {"Muon": muon_with(ns_steps=3)},
    "Muon for conv2 alone": {"MUON_LAYERS": ("conv2",)},
    "Muon for conv3, too": {"MUON_LAYERS": ("conv1", "conv2", "conv3")},
    "Adam alone, 1e-3": {"optimizer": "adam", "lr": 1e-3},
    "Adam alone, 2e-3": {"optimizer": "adam", "lr": 2e-3},
    "constant learning rates": {"cosine": False},
    "constant, at the end linear": {"lr_factor": linear_end},
    "no warm-up": {"warmup_steps": 0},
    "PyTorch's default start": {"identity_start": False},
    "L1 loss": {"loss": l1_loss},
    "borders count 0.4": {"loss": lighter_borders},
    "no average": {"average_share": 0.0},
    "average over 10 %": {"average_share": 0.1},
    "conv3 in bf16, too": {"to_train": unchanged},
}
PATCHED = {  # what is changed elsewhere than in the recipe
    "loss": (trainer, "mse_loss"),
    "to_train": (trainer, "to_train"),
    "lr_factor": (Recipe, "lr_factor"),
    "Muon": (torch.optim, "Muon"),
    "MUON_LAYERS": (optimizers, "MUON_LAYERS"),
}


def measure(name: str, args: argparse.Namespace) -> None:
    """Train with one thing changed and print a line."""
    idea = IDEAS[name]
    changes = {key: value for key, value in idea.items() if key not in PATCHED}
    steps = int(args.steps * changes.pop("steps_per_epoch", 1))
    recipe = replace(FAST, num_epochs=1, steps_per_epoch=steps, **changes)
    options = run_options(args.data_path, select="held-out", seed=args.seed)
    precision = choose_precision("auto", CPU, trial=False).value
    with contextlib.ExitStack() as stack:
        for key in idea.keys() & PATCHED.keys():
            stack.enter_context(patch.object(*PATCHED[key], idea[key]))
        run = trainer.Trainer(options, recipe, World(device=CPU), precision)
        with contextlib.redirect_stdout(io.StringIO()):
            _, step_seconds = run.train_epoch(0, 0, StopRequest())
    held_out, set5 = (run.psnr(run.weights(), pairs) for pairs in (run.held_out, run.eval_pairs))
    print(f"{name:32}{held_out:9.3f}{set5:8.3f}{1000 * step_seconds:9.1f}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-path", type=Path, required=True, help="with T91 at ×3")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=IDEAS, default=list(IDEAS), metavar="NAME")
    args = parser.parse_args()
    print(f"{args.steps:,} steps, seed {args.seed}, {torch.get_num_threads()} thread(s)")
    print(f"{'':32}{'held-out':>9}{'Set5':>8}{'ms/step':>9}")
    for name in args.only:
        measure(name, args)


if __name__ == "__main__":
    main()
