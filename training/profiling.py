"""`train.py --profile`: a trace of a handful of training steps, and where their time went."""

import csv
import importlib
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from runtime.errors import UserError, printable
from training.timing import WARM_UP_STEPS

Batch = TypeVar("Batch")
PREPARING_STEPS = 2  # the profiler runs and its records are dropped: its own first-use costs
RECORDED_STEPS = 5
ROWS = 10


class Operator(NamedTuple):
    """An operator's own time in the recorded steps, without that of operators called by it."""

    name: str
    calls: int
    host: float  # µs
    device: float  # µs


class StepProfiler:
    """Records steps of the first epoch of a process, after the warm-up.

    Args:
        folder: takes the trace; made where it is not there.
        device: where training runs; an NPU has a profiler of its own.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder = folder
        name = "torch_npu.profiler" if device.type == "npu" else "torch.profiler"
        self.profiler = importlib.import_module(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--profile {folder}: {error.strerror}; name a folder") from None

    def watch(self, batches: Iterable[Batch], steps: int) -> Iterator[Batch]:
        """Hand on the batches of an epoch; a step lasts until the next batch is asked for.

        In an epoch of fewer than 12 steps the warm-up is cut first, then what is recorded.
        """
        recorded = min(RECORDED_STEPS, steps)
        preparing = min(PREPARING_STEPS, steps - recorded)
        waiting = min(WARM_UP_STEPS, steps - recorded - preparing)
        batches, before = iter(batches), set(self._traces())
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Profiler won't be using warmup"
            )  # there are no steps
            schedule = self.profiler.schedule(
                wait=waiting, warmup=preparing, active=recorded, repeat=1
            )
        with self.profiler.profile(
            schedule=schedule,
            on_trace_ready=self.profiler.tensorboard_trace_handler(str(self.folder)),
        ) as profile:
            for batch in islice(batches, waiting + preparing + recorded):
                yield batch
                profile.step()
        traces = sorted(set(self._traces()) - before)
        if not traces:  # the profiler itself says nothing
            for half in self.folder.glob("*.pt.trace.json.tmp"):
                half.unlink()
            print(f"warning: no trace could be written to {printable(self.folder)}; "
                  f"is the disk full?", file=sys.stderr)  # fmt: skip
        for trace in traces:
            place = printable(trace)
            print(f"profile: {recorded} steps in {place}; the times of this epoch include it")
            print_table(read_operators(profile, trace))
        yield from batches

    def _traces(self) -> Iterator[Path]:
        yield from self.folder.glob("*.pt.trace.json")
        yield from self.folder.glob("*_ascend_pt/ASCEND_PROFILER_OUTPUT/trace_view.json")


def read_operators(profile: Any, trace: Path) -> list[Operator]:
    """Return the operators of a finished profile; torch_npu's come from the file by its trace.

    A GPU's kernels, and what is between two marks there, are events of their own beside the
    operators that launched them, whose time on the device is that of these very kernels.
    """
    if hasattr(profile, "key_averages"):
        return [
            Operator(e.key, e.count, e.self_cpu_time_total, _device_time(e))
            for e in profile.key_averages()
            if e.device_type.name == "CPU" and not e.key.startswith("ProfilerStep")
        ]
    table = trace.with_name("operator_details.csv")
    if not table.is_file():
        return []
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            row_sums = sums[row["Name"]]
            row_sums[0] += 1
            row_sums[1] += float(row["Host Self Duration(us)"] or 0)
            row_sums[2] += float(row["Device Self Duration(us)"] or 0)
    return [Operator(name, int(calls), *times) for name, (calls, *times) in sums.items()]


def _device_time(event: Any) -> float:
    """Return an operator's own time on the device in µs; torch 2.4 gave it this name."""
    if hasattr(event, "self_device_time_total"):
        return event.self_device_time_total
    return event.self_cuda_time_total


def print_table(operators: list[Operator]) -> None:
    """Print the operators that took longest: on the device, or on the host where all is there."""
    host, device = (sum(getattr(o, place) for o in operators) for place in ("host", "device"))
    place, total = ("device", device) if device else ("host", host)
    operators = sorted(operators, key=lambda o: getattr(o, place), reverse=True)
    print(f"{'share':>6} {'device ms':>10} {'host ms':>10} {'calls':>6}  operator")
    for o in operators[:ROWS]:
        share = getattr(o, place) / total if total else 0.0
        print(f"{share:6.1%} {o.device / 1000:10.3f} {o.host / 1000:10.3f} {o.calls:6}  {o.name}")
