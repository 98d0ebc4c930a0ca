"""How near training comes to the machine's limit, and how far ahead of the published loop it is.

    python benchmarks/training_speed.py [--data-path dataset] [--cores 1 2] [--seconds 4]

In one run, as absolute times differ between machines: the rate of matrix multiplication, the bare
step of the network in plain PyTorch, a piece of a real epoch of train.py, and the
published way: a DataLoader with 8 workers, the HDF5 file opened for every sample, fp32, and
`loss.item()` after each step. Reference recipe, batch 32, patches of 33×33. On one core, and on
all that this process may use.
"""

import itertools
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from datasets import EvalDataset, find_file
from inference.last_layer import in_layout
from model import SRCNN
from runtime.device import has_bf16, set_up_cpu
from runtime.distributed import World
from runtime.errors import run_main
from runtime.numbers import COUNT, POSITIVE
from runtime.options import Parser
from train import train_epoch, training_step
from training import checkpoint
from training.batches import BatchPlan
from training.evaluation import Evaluator
from training.loading import Place, TrainingData, load_training_data
from training.optimizers import build_optimizer
from training.precision_choice import choose_precision
from training.recipes import REFERENCE, Recipe
from training.state import TrainingState, new_model

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
BATCH, SIDE, T91_PATCHES = 32, 33, 21_884
ROUNDS, WORKERS = 8, 8
# Multiply-adds of a patch: 9·9·64 + 5·5·64·32 + 5·5·32 a pixel; forward, and twice that backward
# but for the first layer's input, whose gradient nobody needs.
FLOP_PER_PATCH = 2 * SIDE**2 * (2 * 81 * 64 + 3 * 25 * 64 * 32 + 3 * 25 * 32)


class PublishedDataset(Dataset):
    """The published way to read: open, take one patch, close."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with h5py.File(path) as file:
            self.count = len(file["lr"])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        with h5py.File(self.path) as file:
            return tuple(file[name][index][None] / np.float32(255) for name in ("lr", "hr"))


def published_step_seconds(path: Path, seconds: float) -> float:
    """Time a step of the published loop, data loading in it.

    While the workers start and read ahead, 2 batches each, they take the cores from the steps:
    those do not count.
    """
    model = SRCNN()
    optimizer = build_optimizer(REFERENCE, model, CPU, apex=False)
    warnings.filterwarnings("ignore", message="This DataLoader will create 8 worker processes")
    loader = DataLoader(
        PublishedDataset(path), BATCH, shuffle=True, num_workers=WORKERS, drop_last=True
    )
    started, steps, ahead = 0.0, 0, 3 * WORKERS
    for lr, hr in loader:
        loss = nn.functional.mse_loss(model(lr), hr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        steps += 1
        if steps == ahead:
            started = time.perf_counter()
        elif steps > ahead and time.perf_counter() - started > seconds:
            break
    return (time.perf_counter() - started) / (steps - ahead)


def multiply_rate(dtype: torch.dtype, seconds: float) -> float:
    """Return FLOP/s of 2048×2048 matrix products."""
    a = torch.rand(2048, 2048).to(dtype)
    return 2 * 2048**3 / timed(lambda: a @ a, seconds)


def timed(work: Callable[[], object], seconds: float) -> float:
    """Return the median seconds of a call, after two to warm up."""
    work(), work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def bare_step(name: str) -> Callable[[], object]:
    """Return a training step on one batch that is there already, to be called."""
    precision = choose_precision(name, CPU).value
    layout = precision.memory_format
    model = in_layout(SRCNN(), layout)
    optimizer = build_optimizer(REFERENCE, model, CPU, apex=False)
    x = torch.rand(BATCH, 1, SIDE, SIDE).contiguous(memory_format=layout)
    return partial(training_step, model, optimizer, precision, nn.functional.mse_loss, x, x)


def load(
    data_path: Path, recipe: Recipe, *, hold_out: bool = False, seed: int = 123
) -> TrainingData:
    """Return T91's training data at ×3, in memory, for one process on the CPU."""
    plan, place = BatchPlan(recipe.batch_size, seed=seed), Place(CPU, lambda _: math.inf, 0)
    return load_training_data(data_path, 3, recipe, plan, place, hold_out=hold_out)


class Epoch(NamedTuple):
    """Seconds of a step of a real epoch, and over a bare step; of evaluating, of a checkpoint."""

    step: float
    over_bare: float
    evaluation: float
    save: float


def real_epoch(data_path: Path, name: str, steps: int) -> Epoch:
    """Take bare steps and those of a real epoch in turns, as loads change: so many each time."""
    recipe = replace(REFERENCE, batch_size=BATCH, num_epochs=1)
    precision, world = choose_precision(name, CPU).value, World(CPU)
    data = load(data_path, recipe)
    eval_set = EvalDataset(find_file(data_path, "val", 3))
    evaluator = Evaluator(eval_set, [], world, precision)
    model = new_model(recipe, precision)
    optimizer = build_optimizer(recipe, model, CPU, apex=False)
    state = TrainingState(model, optimizer, recipe, world, precision, data.batches.steps_per_epoch)
    step = bare_step(name)
    bare, real = [], []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        for _ in range(steps):
            step()
        middle = time.perf_counter()
        state.total_steps = state.step + steps
        while state.step < state.total_steps:
            train_epoch(state, data.batches, nn.functional.mse_loss)
        bare.append((middle - start) / steps)
        real.append((time.perf_counter() - middle) / steps)
    times = [time.perf_counter()]
    evaluator.scores(state)
    times.append(time.perf_counter())
    checkpoint.pack(state.state_dict())
    times.append(time.perf_counter())
    over = median(r / b for r, b in zip(real[1:], bare[1:], strict=True)) - 1  # the first warms up
    return Epoch(median(real[1:]), over, times[1] - times[0], times[2] - times[1])


def random_dataset(folder: Path) -> None:
    """Write 4,096 random patches and one evaluation image, as large as Set5's mean."""
    rng = np.random.default_rng(0)
    for name in ("train", "val"):
        (folder / name).mkdir()
    with h5py.File(folder / "train/T91_x3.h5", "w") as file:
        for name in ("lr", "hr"):
            file[name] = rng.uniform(16, 235, (4096, SIDE, SIDE)).astype(np.float32)
    with h5py.File(folder / "val/Set5_x3.h5", "w") as file:
        for name in ("lr/0", "hr/0"):
            file[name] = rng.uniform(16, 235, (333, 333)).astype(np.float32)


def row(label: str, step_seconds: float, note: str = "") -> None:
    """Print a line of the table."""
    rate = BATCH / step_seconds
    print(f"{label:<38} {1000 * step_seconds:8.1f} ms {rate:8.0f} patches/s "
          f"{rate * FLOP_PER_PATCH / 1e9:7.0f} GFLOP/s  {note}")  # fmt: skip


def measure(data_path: Path, cores: int, seconds: float) -> None:
    """Measure everything on so many cores and print the table."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    torch.set_num_threads(cores)
    print(
        f"\n{cores} core(s), PyTorch {torch.__version__}, {FLOP_PER_PATCH / 1e6:.0f} MFLOP a patch"
    )
    rates, types = {}, {"fp32": torch.float32}
    if has_bf16():  # else it is computed in fp32, one number after the other
        types["bf16"] = torch.bfloat16
    for name, dtype in types.items():
        rates[name] = multiply_rate(dtype, seconds)
        print(f"matrix multiplication {name}: {rates[name] / 1e9:.0f} GFLOP/s")
    chosen = choose_precision("auto", CPU, training_step)
    print(f"auto: {chosen.value.name} ({chosen.reason})")
    bare = {}
    for name in ("fp32-contiguous", *types):
        bare[name] = timed(bare_step(name), seconds)
        share = BATCH * FLOP_PER_PATCH / bare[name] / rates[name[:4]]
        row(f"bare step {name}", bare[name], f"{share:.0%} of the multiply rate")
    path = find_file(data_path, "train", 3)
    published = published_step_seconds(path, seconds)
    samples = PublishedDataset(path)
    order = itertools.cycle(np.random.default_rng(0).permutation(samples.count))
    one = timed(lambda: samples[next(order)], 0.1)
    row("published way, fp32", published, f"reading takes {1000 * BATCH * one:.0f} ms of one core")
    set_up_cpu()  # as train.py does; plain PyTorch and the published way do not
    for name in types:
        epoch = real_epoch(data_path, name, max(8, int(seconds / bare[name] / ROUNDS)))
        note = f"{epoch.over_bare:+.1%} over bare, {published / epoch.step:.2f}× published"
        row(f"real epoch {name}", epoch.step, note)
    whole = epoch.step * T91_PATCHES / BATCH
    print(f"of an epoch of T91 like the last, {whole:.0f} s: evaluating "
          f"{epoch.evaluation / whole:.1%}, a checkpoint {epoch.save / whole:.2%}")  # fmt: skip


def main() -> None:
    """Measure on the dataset that is named, or on random patches; each number of cores afresh."""
    parser = Parser(__doc__)
    parser.add_argument("--data-path", type=Path, help="default: random patches")
    parser.add_argument("--cores", type=COUNT, nargs="+", help="default: 1 and all")
    parser.add_argument("--seconds", type=POSITIVE, default=4.0, help="per measurement")
    args = parser.parse_args()
    for kind in ("train", "val") if args.data_path else ():
        find_file(args.data_path, kind, 3)
    every = len(os.sched_getaffinity(0))
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        if args.data_path is None:
            random_dataset(Path(folder))
        for cores in args.cores or sorted({1, every}):
            job = (args.data_path or Path(folder), cores, args.seconds)
            process = spawn.Process(target=measure, args=job)
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(process.exitcode)
    start = time.perf_counter()
    subprocess.run([sys.executable, ROOT / "train.py", "--help"], stdout=-3, check=True)
    print(f"\ntrain.py --help: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    sys.exit(run_main(main))
