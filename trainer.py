"""What a training run consists of: an epoch of steps, its evaluation, its state."""

import argparse
import math
from itertools import islice

import torch
from torch.nn.functional import mse_loss
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from datasets import EvalDataset, Pair, find_file
from loading import load_training_data
from model import SRCNN, identity_init
from runtime.device import free_memory
from runtime.distributed import World
from runtime.errors import RunError
from runtime.last_layer import to_train
from runtime.optimizers import build_optimizer
from runtime.precision import Apex, Precision, memory_format
from runtime.profiling import StepProfiler
from runtime.recipes import Recipe
from runtime.stopping import Interrupted, StopRequest
from runtime.timing import WARM_UP_STEPS, StepWatch

LOOK_AT_LOSS_EVERY = 1000  # steps; each look waits for the device


class Trainer:
    """One run: what is trained and on what, how far it has come."""

    def __init__(
        self, args: argparse.Namespace, recipe: Recipe, world: World, precision: Precision
    ) -> None:
        self.recipe, self.world, self.precision = recipe, world, precision
        wanted = args.profile and world.is_main
        self.profiler = StepProfiler(args.profile, world.device) if wanted else None
        device, self.layout = world.device, memory_format(world.device, precision)
        self.data = load_training_data(
            args.data_path,
            args.scale,
            recipe,
            device,
            hold_out=args.select == "held-out",
            room=lambda place: args.memory_share * world.lowest(free_memory(place)),
            num_workers=args.num_workers,
            batch_size=recipe.batch_size,
            rank=world.rank,
            world_size=world.size,
            seed=args.seed,
        )
        self.eval_half = args.eval_half
        self.held_out = [(lr.to(device), hr.to(device)) for lr, hr in self.data.held_out]
        self.eval_set = EvalDataset(find_file(args.data_path, "val", args.scale))
        self.eval_pairs = [(lr[None].to(device), hr[None].to(device)) for lr, hr in self.eval_set]
        self.bicubic_psnr = mean_psnr(torch.nn.Identity(), self.eval_pairs, world)
        self.steps_per_epoch = self.data.batches.steps_per_epoch
        planned = recipe.num_epochs * self.steps_per_epoch
        self.total_steps = min(planned, args.num_steps or planned)

        torch.manual_seed(args.seed)
        model = SRCNN()
        if recipe.identity_start:
            identity_init(model)
        model = to_train(model, device, self.layout)
        self.eval_model = to_train(SRCNN(), device, self.layout).eval()
        apex = isinstance(precision, Apex)
        optimizer = build_optimizer(recipe, model, device, apex)
        self.model, self.optimizer = precision.prepare(model, optimizer)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        combined = apex and precision.combine_ddp  # apex averages the gradients itself
        self.parallel_model = self.model if combined else world.wrap(self.model)
        self.average = None
        if recipe.average_decay(self.total_steps):
            self.average = AveragedModel(self.model, multi_avg_fn=self._blend)
        self.step, self.steps_here = 0, 0
        self.loss_sums = torch.zeros(world.size, device=device)  # one a process, for checkpoints
        self.loss_sum, self.loss_count = self.loss_sums[world.rank], 0
        self.best = {"epoch": -1, "score": -math.inf, "psnr": -math.inf}

    def _blend(self, averaged: list, current: list, _: object) -> None:
        """Move the averaged weights towards the current ones; faster early, to forget the start."""
        decay = min(self.recipe.average_decay(self.total_steps), (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def train_epoch(self, epoch: int, start: int, stop: StopRequest) -> tuple[float, float]:
        """Take the steps of an epoch from `start` on; return its seconds, and those of a step.

        Raises:
            Interrupted: after SIGTERM or Ctrl-C; the position is that of the next step.
        """
        steps = min(self.steps_per_epoch - start, self.total_steps - self.step)
        batches = islice(self.data.batches.epoch(epoch, start), steps)
        if self.profiler and not self.steps_here:
            batches = self.profiler.watch(batches, steps)
        watch = StepWatch(self.world.device, warm_up=not self.steps_here and steps > WARM_UP_STEPS)
        hidden = None if self.world.is_main else True  # None: tqdm shows on a terminal only
        for lr, hr in tqdm(batches, f"epoch {epoch}", steps, leave=False, disable=hidden):
            factor = self.recipe.lr_factor(self.step, self.total_steps)
            for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
                group["lr"] = base_lr * factor
            with self.precision.autocast():
                output = self.parallel_model(lr.contiguous(memory_format=self.layout))
            loss = mse_loss(output.float(), hr)
            if self.precision.step(loss, self.optimizer):
                self.loss_sum += loss.detach()
                self.loss_count += 1
            if self.average:
                self.average.update_parameters(self.model)
            self.step, self.steps_here = self.step + 1, self.steps_here + 1
            watch.tick()
            if self.step % LOOK_AT_LOSS_EVERY == 0:
                self.mean_loss()
            if signum := stop.agreed(self.world, self.step):
                self.mean_loss()  # what is saved must be worth going on from
                self.world.sum(self.loss_sums)  # rank 0 saves those of all
                raise Interrupted(signum)
        return watch.stop()

    def mean_loss(self) -> float:
        """Return the mean loss of the epoch so far, over all processes; waits for the device.

        NaN when every step of it was skipped.

        Raises:
            RunError: it is not finite, or the weights are not.
        """
        sums = torch.stack([self.loss_sum, self.loss_sum.new_tensor(float(self.loss_count))])
        total, count = self.world.sum(sums).tolist()
        if not math.isfinite(total):
            raise self._diverged(f"the loss is {total}")
        finite = [torch.isfinite(weight).all() for weight in self.weights().values()]
        if not torch.stack(finite).all():  # the device is waited for once, not for each
            raise self._diverged("weights are not finite")
        return total / count if count else math.nan

    def _diverged(self, what: str) -> RunError:
        return RunError(
            f"{what} at step {self.step}; the checkpoints before it are kept; "
            f"lower --lr, or try --loss-scale dynamic or --precision fp32"
        )

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights that the run is for: averaged where the recipe averages."""
        if self.average:
            return dict(self.average.module.named_parameters())
        return self.precision.masters(self.model, self.optimizer)

    def psnr(self, weights: dict[str, torch.Tensor], pairs: list[Pair]) -> float:
        """Return the mean PSNR with these weights, in fp32 unless --eval-half asks otherwise."""
        self.eval_model.load_state_dict(weights)
        half = self.eval_half and self.precision.half
        autocast = torch.autocast(self.world.device.type, dtype=half or None, enabled=bool(half))
        with self.precision.evaluation(), autocast:
            return mean_psnr(self.eval_model, pairs, self.world)

    def finish_epoch(self, epoch: int, seconds: float, step_seconds: float) -> tuple[dict, dict]:
        """Evaluate after an epoch; return its rows of metrics and timing."""
        images = self.recipe.batch_size * self.world.size
        timing = {
            "epoch": epoch,
            "train_seconds": round(seconds, 3),
            "each_step_time": round(step_seconds, 6),
            "images_per_second": round(images / step_seconds, 2),
        }
        masters = self.precision.masters(self.model, self.optimizer)
        metrics = {
            "epoch": epoch,
            "step": self.step,
            "lr": self.recipe.lr * self.recipe.lr_factor(self.step - 1, self.total_steps),
            "loss": self.mean_loss(),
            "psnr": self.psnr(self.weights(), self.eval_pairs),
            "raw_psnr": self.psnr(masters, self.eval_pairs) if self.average else "",
            "held_out_psnr": self.psnr(self.weights(), self.held_out) if self.held_out else "",
            "skipped_steps": self.precision.skipped,
        }
        self.loss_sum.zero_()
        self.loss_count = 0
        score = metrics["held_out_psnr"] if self.held_out else metrics["psnr"]
        if math.isnan(score):
            raise self._diverged("the PSNR is nan")
        if score > self.best["score"]:
            self.best = {"epoch": epoch, "score": score, "psnr": metrics["psnr"]}
        return metrics, timing

    def state_dict(self) -> dict:
        """Return all that going on needs, as CPU tensors."""
        masters = self.precision.masters(self.model, self.optimizer)
        return {
            "weights": {name: weight.cpu() for name, weight in masters.items()},
            "optimizer": self.optimizer.state_dict(),
            "precision": self.precision.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "step": self.step,
            "loss": (self.loss_sums.cpu(), self.loss_count),
            "best": self.best,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was taken."""
        self.model.load_state_dict(state["weights"])
        masters = self.precision.masters(self.model, self.optimizer)
        for name, weight in masters.items():
            weight.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.load_state_dict(state["precision"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.step, self.best = state["step"], state["best"]
        self.loss_sum.copy_(state["loss"][0][self.world.rank])
        self.loss_count = state["loss"][1]


@torch.no_grad()
def mean_psnr(model: torch.nn.Module, pairs: list[Pair], world: World) -> float:
    """Return the mean over image pairs of the PSNR in dB of the output, clamped to 0–1.

    Each pair is n×1×H×W, 0–1. The images are shared out over the processes.
    """
    total = torch.zeros((), device=world.device)
    for lr, hr in pairs[world.rank :: world.size]:
        error = (model(lr).clamp(0.0, 1.0) - hr).square().mean()
        total += -10.0 * torch.log10(error)
    return world.sum(total).item() / len(pairs)
