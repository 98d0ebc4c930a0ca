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
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch.nn.functional import l1_loss

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trainer
from benchmarks.train import run_options
from runtime.distributed import World
from runtime.precision_choice import choose_precision
from runtime.recipes import FAST
from runtime.stopping import StopRequest

IDEAS = {
    "the recipe": {},
    "crops of 48×48, batch 8": {"crop_size": 48, "batch_size": 8},
    "crops of 33×33, batch 16": {"crop_size": 33, "batch_size": 16},
    "batch 1": {"batch_size": 1},
    "batch 4": {"batch_size": 4},
    "half the learning rates": {"lr": FAST.lr / 2},
    "twice the learning rates": {"lr": FAST.lr * 2},
    "constant learning rates": {"cosine": False},
    "no warm-up": {"warmup_steps": 0},
    "PyTorch's default start": {"identity_start": False},
    "Adam alone, 1e-3": {"optimizer": "adam", "lr": 1e-3},
    "Adam alone, 2e-3": {"optimizer": "adam", "lr": 2e-3},
    "L1 loss": {"loss": l1_loss},
    "no average": {"average_share": 0.0},
    "average over 10 %": {"average_share": 0.1},
    "bf16 to the end": {"fp32_share": 0.0},
}


def measure(name: str, args: argparse.Namespace) -> None:
    """Train with one thing changed and print a line."""
    device = torch.device("cpu")
    changes = dict(IDEAS[name])
    loss = changes.pop("loss", trainer.mse_loss)
    recipe = replace(FAST, num_epochs=1, steps_per_epoch=args.steps, **changes)
    options = run_options(args.data_path, select="held-out", seed=args.seed)
    precision = choose_precision("auto", device, trial=False).value
    run = trainer.Trainer(options, recipe, World(device=device), precision)
    with patch.object(trainer, "mse_loss", loss), contextlib.redirect_stdout(io.StringIO()):
        _, step_seconds = run.train_epoch(0, 0, StopRequest())
    held_out, set5 = (run.psnr(run.weights(), pairs) for pairs in (run.held_out, run.eval_pairs))
    print(f"{name:26}{held_out:9.3f}{set5:8.3f}{1000 * step_seconds:9.1f}", flush=True)


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
    print(f"{'':26}{'held-out':>9}{'Set5':>8}{'ms/step':>9}")
    for name in args.only:
        measure(name, args)


if __name__ == "__main__":
    main()
