"""What a run changes as it trains, and a checkpoint holds."""

import math
from typing import Any

import torch
from torch import nn

from inference.last_layer import in_layout
from model import SRCNN, identity_init
from runtime.device import keep_plain_formats, optimizer_options, overflowed
from runtime.distributed import World
from runtime.errors import RunError
from training.growth import SMALL, Growing, growing
from training.precision import Apex, Precision, advice
from training.recipes import Recipe


def new_model(recipe: Recipe, precision: Precision, plain: bool = False) -> SRCNN:
    """Return the network with the first weights of a recipe, as the global seed decides them.

    Args:
        recipe: says how to start.
        precision: what it will be trained in, and where.
        plain: leave the last layer as it is, see `Precision.to_device`.
    """
    if recipe.uses_muon or recipe.small_share:
        keep_plain_formats(precision.device)  # as Muon sees matrices, growth.py a part of weights
    model = SRCNN(kernel_sizes=(9, SMALL, 5)) if recipe.small_share else SRCNN()
    if recipe.identity_start:
        identity_init(model)
    if recipe.small_share:
        model = growing(model)
    if plain:
        return in_layout(model.to(precision.device), precision.memory_format)
    return precision.to_device(model)


class TrainingState:
    """Weights, optimizer, moving average, position and best score of a run.

    Args:
        model: on its device, as `new_model` returns it.
        optimizer: of its parameters.
        recipe: tells learning rates and moving average.
        world: the processes of the run.
        precision: the arithmetic; it converts model and optimizer.
        total_steps: steps of the whole run.

    Attributes:
        model: what is trained.
        parallel_model: the same, averaging gradients over the processes: call this one.
        optimizer: its learning rates are those of the last step.
        base_lrs: of each group of parameters, the learning rate that the schedule scales.
        ema: exponential moving average of the fp32 weights by name, or None.
        step: steps done.
        best: epoch, step, score and PSNR of the best evaluation so far.
        best_weights: a copy of that epoch's, on the CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        world: World,
        precision: Precision,
        total_steps: int,
    ) -> None:
        self.recipe, self.world, self.precision = recipe, world, precision
        self.total_steps = total_steps
        self.model, self.optimizer = precision.prepare(model, optimizer)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        combined = isinstance(precision, Apex) and precision.combine_ddp
        self.parallel_model = self.model if combined else world.wrap(self.model)
        if self.parallel_model is not self.model:
            self._arrange_gradients()
        self.step = 0
        self.ema: dict[str, torch.Tensor] | None = None
        if recipe.ema_decay(self.step, total_steps):
            self.ema = {name: weight.clone() for name, weight in self.master_params().items()}
        self.loss_sums = torch.zeros(world.size, device=world.device)  # one a process
        self.loss_sum, self.loss_count = self.loss_sums[world.rank], 0
        self.best: dict[str, Any] = {"score": -math.inf}  # before the first epoch
        self.best_weights: dict[str, torch.Tensor] | None = None

    def _arrange_gradients(self) -> None:
        """Let DistributedDataParallel arrange the gradients, as it does after a first step.

        It sums them in the order in which they arrived then; before, and so in the first step of a
        resumed run, in another, whose sums of more than two processes are others.
        """
        for _ in range(2):
            black = torch.zeros(1, 1, 33, 33, device=self.world.device)
            with self.precision.autocast():
                output = self.parallel_model(black.to(memory_format=self.precision.memory_format))
            output.float().sum().backward()
        for parameter in self.model.parameters():
            parameter.grad = None

    @property
    def description(self) -> str:
        """Return a line for the log."""
        recipe = self.recipe
        return (f"{recipe.name}, {self.total_steps:,} steps of {recipe.batch_size} samples "
                f"on {self.world.size} process(es), {recipe.optimizer}, learning rate "
                f"{recipe.lr:.6g} (the recipe's times √processes, or --lr)")  # fmt: skip

    def begin_step(self) -> None:
        """Take the learning rates, and the size of conv2's kernel, of the step that comes."""
        for layer in self.model.children():
            if isinstance(layer, Growing):
                small = self.recipe.is_small(self.step, self.total_steps)
                layer.size = SMALL if small else layer.weight.shape[-1]
        factor = self.recipe.lr_factor(self.step, self.total_steps)
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * factor

    def advance(self, loss: torch.Tensor, stepped: bool) -> None:
        """Count a step: its loss, unless it was skipped, the moving average, the position."""
        if stepped:
            self.loss_sum += loss.detach()
            self.loss_count += 1
        if self.ema:
            decay = 0.0  # the weights before the first step count for nothing
            if self.step:
                decay = self.recipe.ema_decay(self.step, self.total_steps)
            for name, weight in self.master_params().items():
                self.ema[name].lerp_(weight, 1 - decay)
        self.step += 1

    def mean_loss(self) -> float:
        """Return the mean loss of the epoch so far, over all processes; waits for the device.

        NaN when every step of it was skipped.

        Raises:
            RunError: it is not finite, or the weights are not.
        """
        unseen = overflowed(self.world.device) and not self.precision.notices_overflow
        counts = self.loss_sum.new_tensor([float(self.loss_count), float(unseen)])
        total, count, unseen = self.world.sum(torch.cat([self.loss_sum[None], counts])).tolist()
        if not math.isfinite(total):
            raise self.diverged(f"the loss is {total}")
        if unseen:
            raise self.diverged("numbers overflowed, which this card hides,")
        finite = [torch.isfinite(weight).all() for weight in self.weights().values()]
        if not torch.stack(finite).all():  # the device is waited for once, not for each
            raise self.diverged("weights are not finite")
        return total / count if count else math.nan

    def end_epoch(self, metrics: dict[str, Any]) -> None:
        """Note the score of an epoch, and begin a new mean of the loss.

        The score is the PSNR on held-out images where there are any, else on the evaluation set.

        Raises:
            RunError: it is not a number.
        """
        overflowed(self.world.device)  # what evaluation did is not training's
        self.loss_sum.zero_()
        self.loss_count = 0
        score = metrics["psnr" if metrics["held_out_psnr"] is None else "held_out_psnr"]
        if math.isnan(score):
            raise self.diverged("the PSNR is nan")
        if score > self.best["score"]:
            epoch, psnr = metrics["epoch"], metrics["psnr"]
            self.best = {"epoch": epoch, "step": self.step, "score": score, "psnr": psnr}
            weights = self.weights().items()
            self.best_weights = {name: weight.detach().cpu().clone() for name, weight in weights}

    def gather_losses(self) -> None:
        """Let each process know the losses of all, which the checkpoint of one is to hold."""
        self.world.sum(self.loss_sums)

    def diverged(self, what: str) -> RunError:
        """Return the error of a run whose numbers are of no use any more."""
        return RunError(
            f"{what} at step {self.step}; the checkpoints before it are kept; "
            f"{advice(self.world.device)}"
        )

    def master_params(self) -> dict[str, torch.Tensor]:
        """Return the trained fp32 weights by name, sharing memory with what is trained."""
        return self.precision.master_params(self.model, self.optimizer)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights that the run is for: averaged where the recipe averages."""
        return self.ema or self.master_params()

    def state_dict(self) -> dict[str, Any]:
        """Return all that going on needs, as CPU tensors.

        Within an epoch of several processes, after `gather_losses` on all of them.
        """
        return _on_cpu(
            {
                "weights": self.master_params(),
                "optimizer": self.optimizer.state_dict(),
                "precision": self.precision.state_dict(),
                "ema": self.ema,
                "step": self.step,
                "loss": (self.loss_sums, self.loss_count),
                "best": self.best,
                "best_weights": self.best_weights,
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.model.load_state_dict(state["weights"])
        for name, weight in self.master_params().items():
            weight.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:  # a card's may be saved
            group.update(optimizer_options(self.world.device))
        if self.world.device.type == "npu":
            self._count_in_numbers()
        self.precision.load_state_dict(state["precision"])
        if self.ema:
            for name, weight in self.ema.items():
                weight.copy_(state["ema"][name])
        self.step = state["step"]
        self.best, self.best_weights = state["best"], state["best_weights"]
        self.loss_sum.copy_(state["loss"][0][self.world.rank])
        self.loss_count = state["loss"][1]

    def _count_in_numbers(self) -> None:
        """Turn PyTorch's counts of steps, which are tensors, into what fused optimizers count in.

        They raise the count of a parameter and that of its block, which would be one tensor.
        """
        for values in self.optimizer.state.values():
            if "step" in values:
                values["step"] = int(values["step"])


def _on_cpu(value: Any) -> Any:
    """Copy the tensors in nested dicts, lists and tuples to the CPU where they are elsewhere."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(item) for item in value)
    return value
