"""What graph capture is worth: a training step issued one by one, compiled, and as one graph.

    python benchmarks/accelerator.py [--device auto] [--batch 32 512] [--seconds 3] [--rows 8192]

The reference recipe's step on data that lies on the device. The network is so small that at batch
32 an accelerator waits for Python to launch its kernels; a graph launches all of a step at once.
Prints patches a second, what the published 500 epochs (341,500 steps of 32) would take, and the
share of the rate at which this device multiplies matrices in the same type.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.training_speed import BATCH, FLOP_PER_PATCH, SIDE, T91_PATCHES
from model import SRCNN
from runtime.device import choose_device, describe, module, synchronize
from runtime.errors import run_main
from runtime.numbers import COUNT, POSITIVE
from runtime.options import Parser, add_device
from train import training_step
from training.precision_choice import choose_precision

STEPS_OF_500_EPOCHS = 500 * (T91_PATCHES // BATCH)


def seconds_of(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the mean seconds of a call, once warm, waiting for the device at the end only."""
    for _ in range(3):
        work()
    synchronize(device)
    start, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - start < seconds:
        for _ in range(10):
            work()
        calls += 10
        synchronize(device)
    return (time.perf_counter() - start) / calls


def make_step(
    device: torch.device, batch: int, compiled: bool, capturable: bool = False
) -> Callable[[], object]:
    """Return a function that takes a training step on one batch, in the device's precision."""
    precision = choose_precision("auto", device, apex_wanted=False).value
    network = precision.to_device(SRCNN())
    adam = torch.optim.Adam(network.parameters(), lr=1e-4, capturable=capturable)
    model, optimizer = precision.prepare(network, adam)
    forward: Any = torch.compile(model) if compiled else model
    x = torch.rand(batch, 1, SIDE, SIDE, device=device).contiguous(
        memory_format=precision.memory_format
    )
    return partial(training_step, forward, optimizer, precision, nn.functional.mse_loss, x, x)


def as_graph(device: torch.device, batch: int) -> Callable[[], None]:
    """Return a function that replays a captured step: a CUDAGraph, on an NPU an NPUGraph.

    Raises:
        RuntimeError: a step waits for the device. A capture that comes to that fails half-way, and
            leaves a stream and a generator of random numbers behind in which nothing else runs.
    """
    if choose_precision("auto", device, apex_wanted=False).value.notices_overflow:
        raise RuntimeError("a loss scale waits for the gradients")
    kind = module(device)
    step = make_step(device, batch, compiled=False, capturable=True)
    side = kind.Stream()
    side.wait_stream(kind.current_stream())
    with kind.stream(side):  # what is captured must have run before, on another stream
        for _ in range(3):
            step()
    kind.current_stream().wait_stream(side)
    graph = kind.NPUGraph() if device.type == "npu" else kind.CUDAGraph()
    with kind.graph(graph):
        step()

    def replay(_: object = step) -> None:  # its tensors must stay where they are
        graph.replay()

    return replay


one_by_one = partial(make_step, compiled=False)
WAYS: dict[str, Callable[[torch.device, int], Callable[[], object]]] = {
    "one by one": one_by_one,
    "torch.compile": partial(make_step, compiled=True),
    "graph": as_graph,
}


def main() -> None:
    """Print the table."""
    parser = Parser(__doc__)
    add_device(parser.add_argument)
    parser.add_argument("--batch", type=COUNT, nargs="+", default=[BATCH, 512])
    parser.add_argument("--seconds", type=POSITIVE, default=3.0, help="per measurement")
    parser.add_argument("--rows", type=COUNT, help="of the matrices; default: 8192, on a CPU 1024")
    args = parser.parse_args()
    chosen = choose_device(args.device)
    device = chosen.value
    precision = choose_precision("auto", device, apex_wanted=False).value
    print(f"{describe(device)} ({chosen.reason}), {precision.name}, PyTorch {torch.__version__}")
    rows = args.rows or (1024 if device.type == "cpu" else 8192)
    a = torch.rand(rows, rows, device=device).to(precision.half or torch.float32)
    rate = 2 * rows**3 / seconds_of(lambda: a @ a, device, args.seconds)
    print(f"matrix multiplication: {rate / 1e12:.2f} TFLOP/s")
    print(f"{'':14}{'batch':>6}{'ms a step':>11}{'patches/s':>11}{'500 epochs':>12}{'of rate':>9}")
    for batch in args.batch:
        for name, way in WAYS.items():
            if name == "graph" and device.type == "cpu":
                continue
            try:
                step = seconds_of(way(device, batch), device, args.seconds)
            except Exception as error:  # whatever a compiler or a driver raises
                if way is one_by_one:
                    raise
                print(f"{name:14}{batch:6}   not here: {repr(error)[:60]}")
                continue
            share = batch * FLOP_PER_PATCH / step / rate
            minutes = step * STEPS_OF_500_EPOCHS * BATCH / batch / 60
            print(f"{name:14}{batch:6}{1000 * step:11.2f}{batch / step:11.0f}"
                  f"{minutes:8.0f} min{share:9.0%}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_main(main))
