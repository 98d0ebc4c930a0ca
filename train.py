"""Train SRCNN: on an Ascend NPU, a GPU or a CPU, on one device or on several.

  python train.py --data_url=dataset --recipe=fast         minutes on a laptop
  python train.py --data_url=dataset                       as published: 500 epochs
  python train.py --data_url=dataset --resume              go on with an interrupted run
  torchrun --nproc_per_node=8 train.py --data_url=dataset  one process a card
  python train.py --check                                  what a run would use here, and a trial

Results in outputs/x3: best.pth, epoch_{n}.pth, checkpoints, metrics.csv, curve.png, pictures.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from runtime.errors import printable, run_main
from training.options import parse_args
from training.recipes import MUON, RECIPES, apply_overrides
from training.stopping import Interrupted, StopRequest
from training.timing import StepTimer

if TYPE_CHECKING:  # what loads torch is imported once the command line is known to be right
    import torch
    from torch import nn

    from runtime.distributed import World
    from training.batches import Batches
    from training.evaluation import Evaluator
    from training.precision import Precision
    from training.profiling import StepProfiler
    from training.results import Results
    from training.state import TrainingState

    Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

LOOK_AT_LOSS_EVERY = 1000  # steps; each look waits for the device
BELOW_BICUBIC_AFTER = 3  # epochs after which a PSNR below bicubic's is worth a warning


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; return the exit status."""
    args = parse_args(__doc__, argv)
    if args.check:
        from ascend.check import check  # what it looks for may be missing

        return check(
            training_step, RECIPES[args.recipe], args.device, args.precision, args.loss_scale
        )
    from runtime.device import be_deterministic, choose_device
    from runtime.distributed import joined, read_environment

    launch = read_environment()
    device = choose_device(args.device, launch.local_rank)
    if args.deterministic:
        be_deterministic()
    with joined(launch, device.value) as world:
        return run(args, world, device.reason)


def run(args: argparse.Namespace, world: "World", device_reason: str) -> int:
    """Set up what trains on what, train, and leave the results; return the exit status."""
    import torch
    from torch.nn.functional import mse_loss

    from datasets import EvalDataset, find_file
    from runtime.device import describe, free_memory
    from training import checkpoint
    from training.batches import BatchPlan
    from training.evaluation import Evaluator
    from training.loading import Place, has_whole_images, load_training_data
    from training.precision_choice import choose_precision, cost_of_determinism
    from training.profiling import StepProfiler
    from training.results import Results
    from training.state import TrainingState

    recipe = apply_overrides(
        RECIPES[args.recipe],
        processes=world.size,
        whole_images=has_whole_images(args.data_path, args.scale),
        num_epochs=args.num_epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        optimizer=args.optimizer,
    )
    folder = args.outputs_dir / f"x{args.scale}"
    resumed = checkpoint.find(args.resume, folder)
    precision = choose_precision(
        checkpoint.same_precision(resumed, args.precision),
        world.device,
        training_step if world.size == 1 and not args.deterministic else None,
        loss_scale=args.loss_scale,
        combine_ddp=args.combine_ddp,
        processes=world.size,
        apex_wanted=recipe.optimizer != MUON,
    )
    print(f"device: {world.device} ({device_reason}), "
          f"precision: {precision.value.name} ({precision.reason})")  # fmt: skip
    if args.deterministic:
        print(f"deterministic: {cost_of_determinism(world.device, precision.value, training_step)}")
    profiler = StepProfiler(args.profile, world.device) if args.profile and world.is_main else None

    def memory_budget(device: torch.device) -> float:
        return args.memory_share * world.lowest(free_memory(device))

    data = load_training_data(
        args.data_path,
        args.scale,
        recipe,
        BatchPlan(recipe.batch_size, world.rank, world.size, args.seed),
        Place(world.device, memory_budget, args.num_workers),
        hold_out=args.select == "held-out",
    )
    eval_set = EvalDataset(find_file(args.data_path, "val", args.scale))
    evaluator = Evaluator(
        [(lr[None], hr[None]) for lr, hr in eval_set],
        data.held_out,
        world,
        precision.value,
        half=args.eval_half,
    )
    planned = recipe.num_epochs * data.batches.steps_per_epoch
    torch.manual_seed(args.seed)
    state = TrainingState(recipe, world, precision.value, min(planned, args.num_steps or planned))
    print(f"training set: {data.description}")
    print(f"evaluation set: {printable(eval_set.path)}, {len(eval_set)} images, "
          f"bicubic {evaluator.bicubic_psnr:.2f} dB (modelzoo protocol)")  # fmt: skip
    print(f"recipe: {recipe.name}, {state.total_steps:,} steps of {recipe.batch_size} samples "
          f"on {world.size} process(es), {recipe.optimizer}, learning rate {recipe.lr:.6g} "
          f"(the recipe's times √processes, or --lr)")  # fmt: skip

    options = {  # what decides the mathematics of a run
        **asdict(recipe),
        "scale": args.scale,
        "seed": args.seed,
        "select": args.select,
        "precision": precision.value.name,
        "loss_scale": args.loss_scale,
        "processes": world.size,
        "total_steps": state.total_steps,
    }
    if resumed:
        checkpoint.restore(resumed, options, state)
    results = None
    if world.is_main:
        results = Results(folder, options, args.save_every, args.tensorboard, resumed)
        results.recorder.describe(
            vars(args),
            device=str(world.device),
            device_name=describe(world.device),
            device_reason=device_reason,
            precision=precision.value.name,
            precision_reason=precision.reason,
            processes=world.size,
            recipe=asdict(recipe),
        )
    try:
        train(state, data.batches, mse_loss, evaluator, results, profiler)
    except Interrupted as interruption:
        if results:
            results.save_checkpoint(state)
            print(f"{interruption} at step {state.step:,}: the state is saved; "
                  f"go on with the same command and --resume", file=sys.stderr)  # fmt: skip
        return interruption.exit_status
    chosen_on = "held-out training images" if data.held_out else f"{eval_set.path.stem} itself"
    print(f"best epoch: {state.best['epoch']}, psnr: {state.best['psnr']:.2f}")
    print(f"(chosen on {chosen_on})")
    if results:
        results.finish(eval_set, evaluator)
    return 0


def train(
    state: "TrainingState",
    batches: "Batches",
    loss_function: "Loss",
    evaluator: "Evaluator",
    results: "Results | None" = None,
    profiler: "StepProfiler | None" = None,
) -> None:
    """Train from where the state stands to the last step, and print the known lines.

    Raises:
        Interrupted: after SIGTERM or Ctrl-C; the state is that between two steps.
        RunError: the loss, the weights or the PSNR are not finite.
    """
    stop, first = StopRequest(), True
    while state.step < state.total_steps:
        epoch = state.step // batches.steps_per_epoch
        seconds, step_seconds = train_epoch(
            state, batches, loss_function, stop, warm_up=first, profiler=profiler if first else None
        )
        first = False
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
        print(f"epoch{epoch} : loss={metrics['loss']:.6f}, each_step_time={step_seconds:.6f}")
        print(f"eval psnr: {metrics['psnr']:.2f}", flush=True)
        if results:
            warn(metrics, evaluator.bicubic_psnr)
            results.add_epoch(state, metrics, timing)


def train_epoch(
    state: "TrainingState",
    batches: "Batches",
    loss_function: "Loss",
    stop: StopRequest,
    *,
    warm_up: bool = False,
    profiler: "StepProfiler | None" = None,
) -> tuple[float, float]:
    """Take the steps that are left of an epoch; return its seconds, and those of a step."""
    epoch, start = divmod(state.step, batches.steps_per_epoch)
    steps = min(batches.steps_per_epoch - start, state.total_steps - state.step)
    pairs = islice(batches.epoch(epoch, start), steps)
    if profiler:
        pairs = profiler.watch(pairs, steps)
    timer = StepTimer(state.world.synchronize, steps if warm_up else 0)
    hidden = None if state.world.is_main else True  # None: tqdm shows on a terminal only
    for low, high in tqdm(pairs, f"epoch {epoch}", steps, leave=False, disable=hidden):
        state.set_learning_rates()
        loss, stepped = training_step(
            state.parallel_model,
            state.optimizer,
            state.precision,
            loss_function,
            low.contiguous(memory_format=state.memory_format),
            high,
        )
        state.advance(loss, stepped)
        timer.tick()
        if state.step % LOOK_AT_LOSS_EVERY == 0:
            state.mean_loss()  # ends the run when it is not finite
        if signum := stop.agreed(state.world, state.step):
            state.mean_loss()  # what is saved must be worth going on from
            state.gather_losses()
            raise Interrupted(signum)
    return timer.stop()


def training_step(
    model: "nn.Module",
    optimizer: "torch.optim.Optimizer",
    precision: "Precision",
    loss_function: "Loss",
    low: "torch.Tensor",
    high: "torch.Tensor",
) -> "tuple[torch.Tensor, bool]":
    """Take one step of training, the only one that there is.

    Args:
        model: the network, or its parallel form.
        optimizer: of its parameters, with the learning rates of this step.
        precision: has prepared both.
        loss_function: of output and target.
        low: bicubic pictures, n×1×H×W, 0–1, in the model's memory format.
        high: the originals.

    Returns:
        The loss, on the device, and whether the optimizer stepped: not after an overflow.
    """
    with precision.autocast():
        output = model(low)
    loss = loss_function(output.float(), high)
    optimizer.zero_grad()
    precision.backward(loss, optimizer)
    return loss, precision.step(optimizer)


def warn(metrics: dict[str, Any], bicubic_psnr: float) -> None:
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


if __name__ == "__main__":
    sys.exit(run_main(main))
