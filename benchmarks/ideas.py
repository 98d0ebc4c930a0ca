"""What each part of the fast recipe is worth: the recipe with one thing changed, on equal steps.

    python benchmarks/ideas.py --data-path dataset [--steps 2500] [--seed 1] [--precision bf16]
        [--only NAME …]

Trains once per line and prints PSNR by the `modelzoo` protocol on the held-out training images,
which choices are made by, and on Set5, which is reported only; and the milliseconds of a step.
One seed a line: differences below about 0.02 dB mean little.
"""

import math
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import l1_loss, mse_loss

from benchmarks.training_speed import CPU, load
from datasets import EvalDataset, find_file
from runtime.device import set_up_cpu
from runtime.distributed import World
from runtime.errors import run_main
from runtime.numbers import COUNT, SEED
from runtime.options import Parser
from train import train_epoch
from training.evaluation import Evaluator
from training.muon import MuonAdam
from training.optimizers import build_optimizer, muon_layers
from training.precision_choice import choose_precision
from training.recipes import FAST, MUON, POLISH, Recipe
from training.state import TrainingState, new_model


def log_error(output: torch.Tensor, target: torch.Tensor, least: float = 1e-4) -> torch.Tensor:
    """Mean over crops of the logarithm of their mean squared error, as PSNR is one."""
    return ((output - target).square().mean((1, 2, 3)) + least).log().mean()


class PlainMuon(MuonAdam):
    """Muon as it was published, whose rows go as they come."""

    def even(self, update: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
        """Return the step as it is."""
        return update


class Cosine(Recipe):
    """Learning rates times a cosine down to 0 (Loshchilov and Hutter, arXiv:1608.03983)."""

    def lr_factor(self, step: int, total_steps: int) -> float:
        """Return what the learning rate is multiplied with at `step`, counted from 0."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / total_steps))
        return super().lr_factor(step, total_steps) * cosine


@dataclass(frozen=True)
class Idea:
    """What is changed: settings of the recipe, and what stands elsewhere.

    Attributes:
        recipe: settings.
        steps: steps over those of the others.
        schedule: of the learning rates.
        muon: arguments of its optimizer.
        optimizer: that one, for Muon.
        loss: of output and target.
        plain_last_layer: compute conv3 as PyTorch does.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    steps: float = 1
    schedule: type[Recipe] = Recipe
    muon: dict[str, Any] = field(default_factory=dict)
    optimizer: type[MuonAdam] = MuonAdam
    loss: Any = mse_loss
    plain_last_layer: bool = False


WHOLE = {"small_share": 0.0}
CONSTANT = {"decay_share": 0.0}
LARGER = {"crop_size": 96, "batch_size": 2}
IDEAS = {
    "the recipe": Idea(),
    "5×5 from the start": Idea(WHOLE),
    "the same, 3/4 of the steps": Idea(WHOLE, steps=0.75),
    "3×3 for 45 %": Idea({"small_share": 0.45}),
    "3×3 for 75 %": Idea({"small_share": 0.75}),
    "cosine": Idea(CONSTANT, schedule=Cosine),
    "as it was: 96×96, 5×5, cosine": Idea(
        {**WHOLE, **LARGER, **CONSTANT}, steps=0.5, schedule=Cosine
    ),
    "96×96, batch 2, half the steps": Idea(LARGER, steps=0.5),
    "33×33, batch 8": Idea({"crop_size": 33, "batch_size": 8}),
    "batch 2, twice the steps": Idea({"batch_size": 2}, steps=2),
    "batch 8, half the steps": Idea({"batch_size": 8}, steps=0.5),
    "half the learning rates": Idea({"lr": FAST.lr / 2}),
    "twice the learning rates": Idea({"lr": FAST.lr * 2}),
    "half of Muon's rate": Idea({"muon_factor": FAST.muon_factor / 2}),
    "twice Muon's rate": Idea({"muon_factor": FAST.muon_factor * 2}),
    "Muon's rows as they come": Idea(optimizer=PlainMuon),
    "Muon's momentum 0.9": Idea(muon={"momentum": 0.9}),
    "Muon's momentum 0.98": Idea(muon={"momentum": 0.98}),
    "3 iterations of Muon's, not 5": Idea(muon={"ns_steps": 3}),
    "Muon for conv2 alone": Idea(muon={"layers": {"conv2": 1.0}}),
    "Adam for conv3": Idea(muon={"layers": {"conv1": 1.0, "conv2": 1.0}}),
    "conv3 at half of its rate": Idea({"last_layer_factor": FAST.last_layer_factor / 2}),
    "conv3 at twice its rate": Idea({"last_layer_factor": FAST.last_layer_factor * 2}),
    "crops drawn evenly": Idea({"by_error": 0.0}),
    "all crops drawn by error": Idea({"by_error": 1.0}),
    "Adam alone, 1e-3": Idea({"optimizer": "adam", "lr": 1e-3}),
    "Adam alone, 2e-3": Idea({"optimizer": "adam", "lr": 2e-3}),
    "constant learning rates": Idea(CONSTANT),
    "linear over the last 20 %": Idea({"decay_share": 0.2}),
    "linear over the last 60 %": Idea({"decay_share": 0.6}),
    "PyTorch's default start": Idea({"identity_start": False}),
    "L1 loss": Idea({"by_error": 0.0}, loss=l1_loss),
    "logarithm of each crop's error": Idea({"by_error": 0.0}, loss=log_error),
    "the same, softened": Idea({"by_error": 0.0}, loss=partial(log_error, least=1e-3)),
    "borders of crops count as images' do": Idea({"border": POLISH.border}),
    "no average": Idea({"ema_share": 0.0}),
    "average over 10 %": Idea({"ema_share": 0.1}),
    "conv3 in bf16, too": Idea(plain_last_layer=True),
}


def measure(name: str, data_path: Path, steps: int, seed: int, precision_name: str) -> None:
    """Train with one thing changed and print a line."""
    idea, world = IDEAS[name], World(CPU)
    steps = int(steps * idea.steps)
    settings = {**asdict(FAST), "num_epochs": 1, "steps_per_epoch": steps, **idea.recipe}
    recipe = idea.schedule(**settings)
    precision = choose_precision(precision_name, CPU).value
    data = load(data_path, recipe, hold_out=True, seed=seed)
    eval_set = EvalDataset(find_file(data_path, "val", 3))
    evaluator = Evaluator(eval_set, data.held_out, world, precision)
    torch.manual_seed(seed)
    model = new_model(recipe, precision, plain=idea.plain_last_layer)
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == MUON:
        muon = {"layers": muon_layers(recipe), **idea.muon}
        optimizer = idea.optimizer(model, recipe.lr, recipe.muon_factor * recipe.lr, **muon)
    else:
        optimizer = build_optimizer(recipe, model, CPU, apex=False)
    state = TrainingState(model, optimizer, recipe, world, precision, steps)
    _, step_seconds = train_epoch(state, data.batches, idea.loss)
    scores = evaluator.scores(state)
    print(f"{name:32}{scores['held_out_psnr']:9.3f}{scores['psnr']:8.3f}"
          f"{1000 * step_seconds:9.1f}")  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = Parser(__doc__)
    parser.add_argument("--data-path", type=Path, required=True, help="with T91 at ×3")
    parser.add_argument("--steps", type=COUNT, default=2500)
    parser.add_argument("--seed", type=SEED, default=1)
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="of the steps (default: %(default)s); without units for bf16 it is emulated, slowly",
    )
    parser.add_argument("--only", nargs="+", choices=IDEAS, default=list(IDEAS), metavar="NAME")
    args = parser.parse_args()
    set_up_cpu()
    precision = choose_precision(args.precision, CPU).value.name
    print(f"{args.steps:,} steps, seed {args.seed}, {precision}, "
          f"{torch.get_num_threads()} thread(s); PSNR in dB, modelzoo protocol")  # fmt: skip
    print(f"{'':32}{'held-out':>9}{'Set5':>8}{'ms/step':>9}")
    for name in args.only:
        measure(name, args.data_path, args.steps, args.seed, precision)


if __name__ == "__main__":
    sys.exit(run_main(main))
