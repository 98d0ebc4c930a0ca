"""Which arithmetic a run trains in: as asked, or what is fastest on its device."""

import importlib
import importlib.util
import time

import torch

from runtime.device import Choice, has_bf16, module
from runtime.errors import UserError
from runtime.precision import (
    FP32_CONTIGUOUS,
    STATIC_SCALE,
    Apex,
    Autocast,
    Precision,
)
from runtime.probe import Probe

NOT_WITH_APEX = "this recipe's optimizer does not go with apex"
PROBE_SECONDS = 0.8


def choose_precision(
    name: str,
    device: torch.device,
    loss_scale: float | str = STATIC_SCALE,
    combine_ddp: bool = False,
    processes: int = 1,
    apex_wanted: bool = True,
    trial: bool = True,
) -> Choice:
    """Choose the arithmetic of training.

    "auto" takes apex O2, else fp16 on an NPU; bf16, else fp16 on a GPU; on a CPU what a trial of
    less than a second finds fastest, or what its units promise.

    Args:
        name: "auto", "fp32", "bf16", "fp16", "apex-O1" or "apex-O2".
        device: where training runs.
        loss_scale: a number, or "dynamic"; for fp16 and apex.
        combine_ddp: let apex average the gradients of several processes.
        processes: how many there are.
        apex_wanted: whether "auto" may take apex; a recipe with its own optimizer can't use it.
        trial: whether "auto" may try what is fastest on a CPU; the clock decides then, which may
            do so otherwise in the next run, and in another process of the same run.

    Returns:
        The Precision and why it was chosen.

    Raises:
        UserError: the device or the machine has not got it.
    """
    why_not = why_no_apex(device)
    if name.startswith("apex-"):
        why_not = why_not or ("" if apex_wanted else NOT_WITH_APEX)
        if why_not:
            raise UserError(f"--precision {name}: {why_not}")
        precision = _apex(name.removeprefix("apex-"), loss_scale, combine_ddp, processes)
        return Choice(precision, "as asked")
    if combine_ddp and (name != "auto" or why_not or not apex_wanted):
        raise UserError("--combine-ddp is apex's own averaging of gradients; use it with apex")
    if name != "auto":
        return Choice(_native(name, device, loss_scale), "as asked")
    if device.type == "npu":
        if not why_not and apex_wanted:
            precision = _apex("O2", loss_scale, combine_ddp, processes)
            return Choice(precision, "auto: Ascend's apex is installed")
        reason = why_not or NOT_WITH_APEX
        return Choice(_native("fp16", device, loss_scale), f"auto: {reason}")
    if device.type == "cuda":
        name = "bf16" if module(device).is_bf16_supported() else "fp16"
        return Choice(_native(name, device, loss_scale), "auto: what this GPU has")
    return _fastest_on_cpu(device) if trial else _likely_fastest_on_cpu(device)


def why_no_apex(device: torch.device) -> str:
    """Return why Ascend's apex can't be used, or nothing when it can."""
    if device.type != "npu":
        return f"Ascend's apex runs on an NPU, not on {device.type}"
    if importlib.util.find_spec("apex") is None:
        return "Ascend's apex is not installed; see README.md, Ascend NPU"
    try:
        optimizers = importlib.import_module("apex.optimizers")
        importlib.import_module("apex.amp")
    except ImportError as error:
        return f"apex cannot be loaded ({error}); is it Ascend's?"
    if not hasattr(optimizers, "NpuFusedAdam"):
        return "the apex that is installed is not Ascend's (it has no NpuFusedAdam)"
    return ""


def _apex(opt_level: str, loss_scale: float | str, combine_ddp: bool, processes: int) -> Apex:
    if combine_ddp and processes == 1:
        raise UserError("--combine-ddp averages the gradients of several processes, and this run "
                        "has one; leave it out")  # fmt: skip
    return Apex(opt_level, loss_scale, combine_ddp)


def _native(name: str, device: torch.device, loss_scale: float | str) -> Precision:
    if name in ("fp32", FP32_CONTIGUOUS):
        return Precision(name)
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs an NPU or a GPU; a CPU trains in fp32 or bf16")
    if name == "bf16" and device.type != "cpu" and not module(device).is_bf16_supported():
        raise UserError(f"--precision bf16: {device} has no bf16 units; use fp16 or fp32")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[name]
    return Autocast(device, dtype, loss_scale)


def _fastest_on_cpu(device: torch.device) -> Choice:
    """Time training steps in each way, in turns, and choose the fastest.

    Other work on the machine disturbs all ways alike then; the best time of each counts.
    """
    candidates = [_native(n, device, STATIC_SCALE) for n in (FP32_CONTIGUOUS, "fp32", "bf16")]
    probes = [Probe(device, precision) for precision in candidates]
    start, rounds = time.perf_counter(), 0
    while rounds < 3 or (rounds < 10 and time.perf_counter() - start < PROBE_SECONDS):
        for probe in probes:
            probe.step()
        rounds += 1
    timings = ", ".join(
        f"{precision.name} {1000 * probe.seconds:.1f} ms"
        for precision, probe in zip(candidates, probes, strict=True)
    )
    fastest = min(range(len(probes)), key=lambda i: probes[i].seconds)
    return Choice(candidates[fastest], f"auto: fastest here, 8 patches take {timings}")


def _likely_fastest_on_cpu(device: torch.device) -> Choice:
    name, units = ("bf16", "bf16 units") if has_bf16() else ("fp32", "no bf16 units")
    return Choice(_native(name, device, STATIC_SCALE), f"auto: this CPU has {units}")
