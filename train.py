"""Train SRCNN: on an Ascend NPU, a GPU or a CPU, on one device or on several.

  python train.py --data_url=dataset --recipe=fast         minutes on a laptop
  python train.py --data_url=dataset                       as published: 500 epochs
  python train.py --data_url=dataset --resume              go on with an interrupted run
  torchrun --nproc_per_node=8 train.py --data_url=dataset  one process a card
  python train.py --check                                  what a run would use here, and a trial

Results in outputs/x3: best.pth, epoch_{n}.pth, checkpoints, metrics.csv, curve.png, pictures.
"""

import sys

from runtime.check import check
from runtime.errors import UserError, run_main
from runtime.options import parse_args

if __name__ == "__main__":
    ARGS = parse_args(__doc__)  # first, so that --help and a wrong option answer before torch loads
    if ARGS.check:  # before what may be missing is imported
        sys.exit(run_main(lambda: check(ARGS)))

import argparse
import math
from dataclasses import asdict, replace
from pathlib import Path

from loading import has_whole_images
from runtime import checkpoint, determinism
from runtime.device import choose_device, describe
from runtime.distributed import World, joined, read_environment
from runtime.precision_choice import choose_precision
from runtime.recipes import MUON, RECIPES, Recipe
from runtime.results import Results
from runtime.stopping import Interrupted, StopRequest
from runtime.text import printable
from trainer import Trainer

BELOW_BICUBIC_AFTER = 3  # epochs after which a PSNR below bicubic's is worth a warning


def settle(recipe: Recipe, args: argparse.Namespace, world: World) -> Recipe:
    """Put the command line's wishes into the recipe.

    Several processes make larger batches: the default rate then grows by the square root of
    their number, as suits Adam (Malladi et al., 2022, arXiv:2205.10287).
    """
    batch_size = recipe.batch_size
    if recipe.crop_size and not has_whole_images(args.data_path, args.scale):
        batch_size *= 8  # the 33×33 patches in their place have an eighth of the pixels
    return replace(
        recipe,
        num_epochs=args.num_epochs or recipe.num_epochs,
        batch_size=args.batch_size or batch_size,
        lr=args.lr or recipe.lr * math.sqrt(world.size),
        optimizer=args.optimizer or recipe.optimizer,
    )


def find_checkpoint(args: argparse.Namespace, folder: Path) -> dict | None:
    """Return what --resume names, or None; says which file it is."""
    if args.resume is None:
        return None
    if args.resume != "auto":
        print(f"resuming from {printable(args.resume)}", file=sys.stderr)
        return whole(checkpoint.load(args.resume))
    found = checkpoint.load_newest(folder)
    if found is None:
        print(
            f"warning: no checkpoint in {printable(folder)} to resume from; starting",
            file=sys.stderr,
        )
        return None
    print(f"resuming from {printable(found[0])}", file=sys.stderr)
    return whole(found[1])


def whole(state: dict) -> dict:
    """Return the state of a checkpoint, which must have the parts that results.py puts in."""
    if not all(isinstance(state.get(name), dict) for name in ("options", "trainer", "recorder")):
        raise UserError("--resume: the checkpoint holds no state of a run")
    return state


def deciding_options(args: argparse.Namespace, trainer: Trainer) -> dict:
    """Return what decides the mathematics of a run, for its checkpoints."""
    return {
        **asdict(trainer.recipe),
        "scale": args.scale,
        "seed": args.seed,
        "select": args.select,
        "precision": trainer.precision.name,
        "loss_scale": args.loss_scale,
        "processes": trainer.world.size,
        "total_steps": trainer.total_steps,
    }


def check_same(options: dict, earlier: dict) -> None:
    """Refuse to go on with options that would change the mathematics of the run."""
    for name, value in options.items():
        if value != earlier.get(name):
            raise UserError(
                f"--resume: {name} is {value}, in the checkpoint {earlier.get(name)}; "
                f"use the same, or start anew without --resume"
            )


def run(args: argparse.Namespace, world: World, device_reason: str) -> int:
    """Train, evaluate and record; return the exit status."""
    recipe = settle(RECIPES[args.recipe], args, world)
    folder = args.outputs_dir / f"x{args.scale}"
    resumed = find_checkpoint(args, folder)
    wanted = args.precision
    if resumed and wanted == "auto":
        wanted = resumed["options"].get("precision", wanted)
    precision, precision_reason = choose_precision(
        wanted,
        world.device,
        args.loss_scale,
        args.combine_ddp,
        world.size,
        apex_wanted=recipe.optimizer != MUON,
        trial=world.size == 1 and not args.deterministic,
    )
    print(f"device: {world.device} ({device_reason}), "
          f"precision: {precision.name} ({precision_reason})")  # fmt: skip
    if args.deterministic:
        print(f"deterministic: {determinism.cost(world.device, precision)}")
    trainer = Trainer(args, recipe, world, precision)
    print_plan(trainer)
    options = deciding_options(args, trainer)
    if resumed:
        check_same(options, resumed["options"])
        try:
            trainer.load_state_dict(resumed["trainer"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError):
            raise UserError("--resume: the checkpoint is of another kind of run") from None
    results = None
    if world.is_main:
        results = Results(
            folder,
            options,
            save_every=args.save_every,
            tensorboard=args.tensorboard,
            resumed=resumed,
        )
        results.recorder.describe(
            vars(args),
            device=str(world.device),
            device_name=describe(world.device),
            device_reason=device_reason,
            precision=precision.name,
            precision_reason=precision_reason,
            processes=world.size,
            recipe=asdict(recipe),
        )
    try:
        train(trainer, results)
    except Interrupted as interruption:
        if results:
            results.save_checkpoint(trainer)
            print(f"{interruption} at step {trainer.step:,}: the state is saved; "
                  f"go on with the same command and --resume", file=sys.stderr)  # fmt: skip
        return interruption.exit_status
    if results:
        results.finish(trainer)
    return 0


def print_plan(trainer: Trainer) -> None:
    """Print what will be trained on what."""
    recipe, eval_set = trainer.recipe, trainer.eval_set
    print(f"training set: {trainer.data.description}")
    print(f"evaluation set: {printable(eval_set.path)}, {len(eval_set)} images, "
          f"bicubic {trainer.bicubic_psnr:.2f} dB (modelzoo protocol)")  # fmt: skip
    print(f"recipe: {recipe.name}, {trainer.total_steps:,} steps of {recipe.batch_size} samples "
          f"on {trainer.world.size} process(es), {recipe.optimizer}, learning rate {recipe.lr:.6g} "
          f"(the recipe's times √processes, or --lr)")  # fmt: skip


def train(trainer: Trainer, results: Results | None) -> None:
    """Train from where the trainer stands to the last step, and print the known lines."""
    stop = StopRequest()
    while trainer.step < trainer.total_steps:
        epoch, start = divmod(trainer.step, trainer.steps_per_epoch)
        seconds, step_seconds = trainer.train_epoch(epoch, start, stop)
        metrics, timing = trainer.finish_epoch(epoch, seconds, step_seconds)
        print(f"epoch{epoch} : loss={metrics['loss']:.6f}, each_step_time={step_seconds:.6f}")
        print(f"eval psnr: {metrics['psnr']:.2f}", flush=True)
        if results:
            warn(metrics, trainer.bicubic_psnr)
            results.add_epoch(trainer, metrics, timing)
    best, chosen_on = trainer.best, f"{trainer.eval_set.path.stem} itself"
    print(f"best epoch: {best['epoch']}, psnr: {best['psnr']:.2f}")
    print(f"(chosen on {'held-out training images' if trainer.held_out else chosen_on})")


def warn(metrics: dict, bicubic_psnr: float) -> None:
    """Say on standard error what should not pass unnoticed."""
    if metrics["skipped_steps"]:
        print(f"steps skipped so far, as they overflowed: {metrics['skipped_steps']}",
              file=sys.stderr)  # fmt: skip
    if metrics["epoch"] >= BELOW_BICUBIC_AFTER and metrics["psnr"] < bicubic_psnr:
        print(
            f"warning: PSNR {metrics['psnr']:.2f} dB is below bicubic's {bicubic_psnr:.2f} dB "
            f"after {metrics['epoch'] + 1} epochs; see README.md, Troubleshooting",
            file=sys.stderr,
        )


def main() -> int:
    """Find processes and device, then run."""
    world = read_environment()
    device, reason = choose_device(ARGS.device, world.local_rank)
    if ARGS.deterministic:
        determinism.be_deterministic()
    with joined(world, device) as joined_world:
        return run(ARGS, joined_world, reason)


if __name__ == "__main__":
    sys.exit(run_main(main))
