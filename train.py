"""Train SRCNN: on an Ascend NPU, a GPU or a CPU, on one device or on several.

  python train.py --data_url=dataset --recipe=fast         minutes on a laptop
  python train.py --data_url=dataset                       as published: 500 epochs
  python train.py --data_url=dataset --resume              go on with an interrupted run
  torchrun --nproc_per_node=8 train.py --data_url=dataset  one process a card
  python train.py --check                                  what a run would use here, and a trial

Results in outputs/x3: best.pth, epoch_{n}.pth, checkpoints, metrics.csv, curve.png, pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
import runtime  # noqa: F401 - ends here on a Python that is too old

# isort: split
import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.errors import UserError, check_memory_limit, run_main
from runtime.files import check_writable
from training.options import parse_args
from training.recipes import RECIPES, Recipe, apply_overrides
from training.stopping import Interrupted, StopRequest
from training.timing import StepTimer

if TYPE_CHECKING:  # what loads torch is imported once the command line is known to be right
    import torch
    from torch import nn

    from runtime.distributed import World
    from training.batches import Batch, Batches
    from training.evaluation import Evaluator
    from training.loading import TrainingData
    from training.precision import Precision
    from training.profiling import StepProfiler
    from training.results import Results
    from training.state import TrainingState

    Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

LOOK_AT_LOSS_EVERY = 1000  # steps; each look waits for the device


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; return the exit status."""
    args = parse_args(__doc__, argv)
    if args.check:
        from ascend.check import check  # what it looks for may be missing

        recipe = apply_overrides(RECIPES[args.recipe], vars(args), processes=1, whole_images=True)
        return check(training_step, recipe, args.device, args.precision, args.loss_scale)
    check_memory_limit()
    from runtime.device import be_deterministic, choose_device
    from runtime.distributed import joined, read_environment

    launch = read_environment()
    device = choose_device(args.device, launch.local_rank)
    if args.deterministic:
        be_deterministic()
    with joined(launch, device.value) as world:
        return run(args, world, device.reason)


def run(args: argparse.Namespace, world: World, device_reason: str) -> int:
    """Set up, train, and leave the results; return the exit status."""
    from torch.nn.functional import mse_loss

    state, data, evaluator, results, profiler = set_up(args, world, device_reason)
    try:
        train(state, data.batches, mse_loss, evaluator, results, profiler)
    except Interrupted as interruption:
        if results:
            results.save_checkpoint(state)
            print(f"{interruption} at step {state.step:,}: the state is saved; "
                  f"go on with the same command and --resume", file=sys.stderr)  # fmt: skip
        return interruption.exit_status
    if results:
        results.wait()  # before success is told
    chosen_on = "held-out training images" if data.held_out else f"{evaluator.name} itself"
    print(f"best epoch: {state.best['epoch']}, psnr: {state.best['psnr']:.2f}")
    print(f"(chosen on {chosen_on})")
    if results:
        results.finish(evaluator)
    return 0


class Run(NamedTuple):
    """What `set_up` returns: what trains, on what, and where results go, on the main process."""

    state: TrainingState
    data: TrainingData
    evaluator: Evaluator
    results: Results | None
    profiler: StepProfiler | None


def set_up(args: argparse.Namespace, world: World, device_reason: str) -> Run:
    """Read what is asked for, build what trains, and say in the log what they are."""
    from datasets import EvalDataset, find_file, identity
    from runtime.device import describe
    from training import checkpoint
    from training.evaluation import Evaluator
    from training.loading import check_same_files, holds_whole_images, training_file
    from training.precision_choice import cost_of_determinism
    from training.profiling import StepProfiler
    from training.results import Results

    folder = args.outputs_dir / f"x{args.scale}"
    for path in (folder / "best.pth", args.profile and args.profile / "trace.json"):
        if path:
            world.by_main(partial(check_writable, path))
    trained_on = training_file(args.data_path, args.scale, RECIPES[args.recipe])
    measured_on = find_file(args.data_path, "val", args.scale)
    check_same_files([trained_on, measured_on], world)
    whole_images = holds_whole_images(trained_on)
    recipe = apply_overrides(RECIPES[args.recipe], vars(args), world.size, whole_images)
    resumed = checkpoint.find(args.resume, folder)
    checkpoint.check_together(resumed, world)
    precision, reason = decide_precision(args, recipe, world, resumed)
    print(f"device: {world.device} ({device_reason}), precision: {precision.name} ({reason})")
    if args.deterministic:
        print(f"deterministic: {cost_of_determinism(world.device, precision, training_step)}")
    profiler = StepProfiler(args.profile, world.device) if args.profile and world.is_main else None

    data = load_data(args, recipe, world)
    eval_set = EvalDataset(measured_on)
    evaluator = Evaluator(eval_set, data.held_out, world, precision, half=args.eval_half)
    steps = recipe.num_epochs * data.batches.steps_per_epoch
    weights = None if resumed else args.init_weights
    state = first_state(
        recipe, world, precision, min(steps, args.num_steps or steps), args.seed, weights
    )
    print(f"training set: {data.description}")
    print(f"evaluation set: {evaluator.description}")
    print(f"recipe: {state.description}")

    options = checkpoint.deciding_options(args, state, data.identity, identity(eval_set))
    if resumed:
        checkpoint.restore(resumed, options, state)
    results = world.by_main(
        lambda: Results(
            folder, options, args.save_every, args.tensorboard, resumed,
            elsewhere=checkpoint.is_elsewhere(args.resume, folder),
        )
    )  # fmt: skip
    if results:
        results.recorder.describe(
            vars(args),
            device=str(world.device),
            device_name=describe(world.device),
            device_reason=device_reason,
            precision=precision.name,
            precision_reason=reason,
            processes=world.size,
            recipe=asdict(recipe),
        )
    return Run(state, data, evaluator, results, profiler)


def decide_precision(
    args: argparse.Namespace, recipe: Recipe, world: World, resumed: dict[str, Any] | None
) -> tuple[Precision, str]:
    """Return the arithmetic of the run and the reason: that of an interrupted one unless asked."""
    from training.checkpoint import same_precision
    from training.precision_choice import choose_precision

    wanted = same_precision(resumed, args.precision)
    try:
        choice = choose_precision(
            wanted,
            world.device,
            training_step if world.size == 1 and not args.deterministic else None,
            loss_scale=args.loss_scale,
            combine_ddp=args.combine_ddp,
            processes=world.size,
            apex_wanted=not recipe.uses_muon,
        )
    except UserError as error:
        if wanted == args.precision:
            raise
        raise UserError(f"--resume goes on in the interrupted run's precision; {error}") from None
    return choice.value, choice.reason if wanted == args.precision else "as in the interrupted run"


def load_data(args: argparse.Namespace, recipe: Recipe, world: World) -> TrainingData:
    """Return the training data, on the device or in the host's memory where they have room."""
    from runtime.device import free_memory
    from training.batches import BatchPlan
    from training.loading import Place, load_training_data

    def memory_budget(device: torch.device) -> float:
        return args.memory_share * world.lowest(free_memory(device))

    plan = BatchPlan(recipe.batch_size, world.rank, world.size, args.seed)
    place = Place(world.device, memory_budget, args.num_workers)
    hold_out = args.select == "held-out"
    return load_training_data(args.data_path, args.scale, recipe, plan, place, hold_out=hold_out)


def first_state(
    recipe: Recipe,
    world: World,
    precision: Precision,
    total_steps: int,
    seed: int,
    weights: Path | None = None,
) -> TrainingState:
    """Return the state before the first step: network, optimizer, and weights of a file or none."""
    import torch

    from training.checkpoint import start_from
    from training.optimizers import build_optimizer
    from training.precision import Apex
    from training.state import TrainingState, new_model

    torch.manual_seed(seed)
    model = new_model(recipe, precision)
    if weights:
        start_from(weights, model)
    optimizer = build_optimizer(recipe, model, world.device, isinstance(precision, Apex))
    return TrainingState(model, optimizer, recipe, world, precision, total_steps)


def train(
    state: TrainingState,
    batches: Batches,
    loss_function: Loss,
    evaluator: Evaluator,
    results: Results | None = None,
    profiler: StepProfiler | None = None,
) -> None:
    """Train from where the state stands to the last step, and print the known lines.

    Raises:
        Interrupted: after SIGTERM or Ctrl-C; the state is that between two steps.
        RunError: the loss, the weights or the PSNR are not finite, or a process that reads the
            training set was killed.
    """
    from training.centring import centre

    stop, first = StopRequest(), True
    add_epoch = results.add_epoch if results else lambda *_: None
    while state.step < state.total_steps:
        epoch = state.step // batches.steps_per_epoch
        seconds, step_seconds = train_epoch(
            state, batches, loss_function, stop, warm_up=first, profiler=profiler if first else None
        )
        first = False
        if state.recipe.centred:
            centre(state, batches, epoch, evaluator.model)
        metrics = {
            "epoch": epoch,
            "step": state.step,
            "lr": state.recipe.lr * state.recipe.lr_factor(state.step - 1, state.total_steps),
            "loss": state.mean_loss(),
            **evaluator.scores(state),
            "skipped_steps": state.precision.skipped,
        }
        timing = {
            "epoch": epoch,
            "train_seconds": round(seconds, 3),
            "each_step_time": round(step_seconds, 6),
            "images_per_second": round(batches.plan.samples_per_step / step_seconds, 2),
        }
        state.end_epoch(metrics)
        state.world.by_main(partial(add_epoch, state, metrics, timing))
        print(f"epoch{epoch} : loss={metrics['loss']:.6f}, each_step_time={step_seconds:.6f}")
        print(f"eval psnr: {metrics['psnr']:.2f}")  # after all is kept: the terminal may be gone
        if results:
            evaluator.warn(metrics)


def train_epoch(
    state: TrainingState,
    batches: Batches,
    loss_function: Loss,
    stop: StopRequest | None = None,
    *,
    warm_up: bool = False,
    profiler: StepProfiler | None = None,
) -> tuple[float, float]:
    """Take the steps that are left of an epoch; return its seconds, and those of a step.

    Raises:
        Interrupted: `stop` notes a signal; without it signals do what they do elsewhere.
        RunError: the loss or the weights are not finite, or a process that reads the training set
            was killed.
    """
    from tqdm import tqdm

    epoch, start = divmod(state.step, batches.steps_per_epoch)
    steps = min(batches.steps_per_epoch - start, state.total_steps - state.step)
    timer = StepTimer(state.world.synchronize, steps if warm_up else 0)
    hidden = None if state.world.is_main else True  # None: tqdm shows on a terminal only
    with batches.reading(epoch, start) as whole:
        left: Iterator[Batch] = islice(whole, steps)
        if profiler:
            left = profiler.watch(left, steps)
        for low, high, weights in tqdm(left, f"epoch {epoch}", steps, leave=False, disable=hidden):
            signum = stop.agreed(state.world, state.step) if stop else 0
            if signum:  # here, as an epoch whose last step is taken has yet to be evaluated
                state.mean_loss()  # what is saved must be worth going on from
                state.gather_losses()
                raise Interrupted(signum)
            state.begin_step()
            loss, stepped = training_step(
                state.parallel_model,
                state.optimizer,
                state.precision,
                loss_function,
                low.contiguous(memory_format=state.precision.memory_format),
                high,
                weights,
            )
            state.advance(loss, stepped)
            timer.tick()
            if state.step % LOOK_AT_LOSS_EVERY == 0:
                state.mean_loss()  # ends the run when it is not finite
        return timer.stop()


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    loss_function: Loss,
    low: torch.Tensor,
    high: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, bool]:
    """Take one step of training, the only one that there is.

    Args:
        model: the network, or its parallel form.
        optimizer: of its parameters, with the learning rates of this step.
        precision: has prepared both.
        loss_function: of output and target, which come times the root of their weights: a mean
            square then has the weights themselves.
        low: bicubic pictures, n×1×H×W, 0–1, in the model's memory format.
        high: the originals.
        weights: of the samples in the loss, n×1×1×1, or of their pixels; None: all the same.

    Returns:
        The loss, on the device, and whether the optimizer stepped: not after an overflow.
    """
    with precision.autocast():
        output = model(low)
    output = output.float()
    if weights is not None:
        roots = weights.sqrt()
        output, high = roots * output, roots * high
    loss = loss_function(output, high)
    optimizer.zero_grad()
    precision.backward(loss, optimizer)
    return loss, precision.step(optimizer)


if __name__ == "__main__":
    sys.exit(run_main(main))
