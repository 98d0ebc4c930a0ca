"""One training step on the device of a run against the same step on the CPU, in fp32."""

from dataclasses import replace

import torch
from torch.nn import functional

from model import SRCNN
from runtime.device import choose_device, describe, keep_plain_formats, matrix_type
from runtime.numbers import from_environment
from training.optimizers import build_optimizer
from training.precision import Apex, Precision
from training.precision_choice import TrainingStep, choose_precision
from training.recipes import MUON, WHITENED_MUON, Recipe

CPU = torch.device("cpu")
# How far loss and change of the weights may lie from the CPU's, relative to it. Adam's first step
# has the same length whatever a gradient's size: where that is near 0, rounding turns it around.
# fp32 allows for what GPUs and NPUs make of it in convolutions by default (TF32, HF32). Muon's
# iterations are in half precision where a card has it, in training in fp32, too.
ALLOWED = {"fp32": (1e-3, 0.1), "half": (1e-2, 0.4)}


def compare(
    training_step: TrainingStep,
    recipe: Recipe,
    device_name: str,
    precision_name: str,
    loss_scale: float | str,
) -> tuple[bool, str]:
    """Print device, precision and the result of a step in them; tell whether it is right.

    Args:
        training_step: of train.py.
        recipe: whose optimizer takes the step.
        device_name: as --device takes it.
        precision_name: as --precision takes it.
        loss_scale: a number, or "dynamic"; for fp16 and apex.

    Returns:
        Whether the step is the CPU's within the tolerance, and a sentence on what would train.

    Raises:
        UserError: the device or precision that was asked for is not there.
    """
    chosen = choose_device(device_name, from_environment("LOCAL_RANK"))
    device = chosen.value
    print(f"{'device':<11}{device}, {describe(device)} ({chosen.reason})")
    choice = choose_precision(
        precision_name,
        device,
        training_step,
        loss_scale=loss_scale,
        apex_wanted=not recipe.uses_muon,
    )
    precision = choice.value
    print(f"{'precision':<11}{precision.name} ({choice.reason})")
    if recipe.optimizer == WHITENED_MUON:  # makes rounding as large as all else in one step
        recipe = replace(recipe, optimizer=MUON)
    expected_loss, expected_change = take_step(training_step, recipe, Precision())
    # Second: apex O1 changes torch for good.
    loss, change = take_step(training_step, recipe, precision)
    differences = (
        abs(loss - expected_loss) / expected_loss,
        float((change - expected_change).norm() / expected_change.norm()),
    )
    half_muon = recipe.uses_muon and matrix_type(device) != torch.float32
    in_fp32 = precision.name.startswith("fp32") and not half_muon
    allowed = ALLOWED["fp32" if in_fp32 else "half"]
    agrees = all(d <= limit for d, limit in zip(differences, allowed, strict=True))  # NaN: False
    print(f"{'one step':<11}loss {loss:.6f}, on the CPU in fp32 {expected_loss:.6f}; off by "
          f"{differences[0]:.1e} of it (allowed: {allowed[0]:.0e}),\n{'':<11}the weights' change "
          f"by {differences[1]:.1e} of it (allowed: {allowed[1]:.0e})"
          f"{'' if agrees else ': problem, this device computes something else'}")  # fmt: skip
    alone = device_name == "auto" and device == CPU
    only = ", as this machine has no NPU and no GPU that can be used" if alone else ""
    return agrees, f"training would run on {device} in {precision.name}{only}"


def take_step(
    training_step: TrainingStep, recipe: Recipe, precision: Precision
) -> tuple[float, torch.Tensor]:
    """Take the first step of a recipe on random patches, the same whatever the device.

    A step that overflows is repeated with the smaller loss scale, as in training.

    Returns:
        The loss, and the change of all weights as one fp32 vector on the CPU.
    """
    if recipe.uses_muon:
        keep_plain_formats(precision.device)
    random_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    hr = torch.rand(16, 1, 33, 33)
    lr = functional.avg_pool2d(hr, 3, stride=1, padding=1)
    model = SRCNN()
    torch.random.set_rng_state(random_state)
    before = _flat(dict(model.named_parameters()))
    model = precision.to_device(model)
    optimizer = build_optimizer(recipe, model, precision.device, isinstance(precision, Apex))
    trained, optimizer = precision.prepare(model, optimizer)
    low = lr.to(precision.device).contiguous(memory_format=precision.memory_format)
    high = hr.to(precision.device)
    stepped = False
    while not stepped:
        loss, stepped = training_step(trained, optimizer, precision, functional.mse_loss, low, high)
    return loss.item(), _flat(precision.master_params(trained, optimizer)) - before


def _flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weight.detach().cpu().flatten() for weight in weights.values()])
