"""What grows with the training set and with the number of processes, and what does not.

    python benchmarks/scale.py --data-path dataset [--times 1 10 50] [--processes 1 2 4]

Repeats the dataset's patches and images 1, 10 and 50 times, into a temporary folder (17 GB for 50
times T91), and starts train.py on each: both recipes, the set in memory and read from disk.
`start` is from the command to the training loop, `peak` what the run and its workers allocate,
shared pages once. Then 1, 2 and 4 processes, each with one thread and its own batch of 32:
`efficiency` is what a core gives, compared with one process on one core.
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import h5py

from benchmarks.soak import use
from datasets import find_file
from runtime.errors import end_at_signals, run_main
from runtime.numbers import COUNT
from runtime.options import Parser

ROOT = Path(__file__).resolve().parents[1]
STEPS = 200
FROM_DISK = ("--memory-share=1e-9", "--num-workers=2")
BLOCK = 4096  # patches copied at a time


class Run(NamedTuple):
    """What a short run showed: seconds to the training loop and of a step, images/s, peak MB."""

    start: float
    step: float
    rate: float
    peak: float


def enlarge(source: Path, target: Path, times: int) -> None:
    """Write a dataset folder with the training files' content so many times."""
    patches, whole = (find_file(source, "train", 3, suffix) for suffix in ("", "_images"))
    measured = find_file(source, "val", 3)
    (target / "train").mkdir(parents=True)
    (target / "val").symlink_to(measured.parent.resolve())
    with h5py.File(patches) as old, \
            h5py.File(target / "train/T91_x3.h5", "w") as new:  # fmt: skip
        for name in ("lr", "hr"):
            count, *sides = old[name].shape
            copies = new.create_dataset(name, (count * times, *sides), "float32")
            for start in range(0, count, BLOCK):
                block = old[name][start : start + BLOCK]
                for first in range(start, count * times, count):
                    copies[first : first + len(block)] = block
    with h5py.File(whole) as old, \
            h5py.File(target / "train/T91_x3_images.h5", "w") as new:  # fmt: skip
        for name in ("lr", "hr"):
            count = len(old[name])
            for number in range(count * times):
                new[f"{name}/{number}"] = old[f"{name}/{number % count}"][:]


def train(data: Path, *options: str, processes: int = 1, threads: int = 0) -> Run:
    """Start train.py and look at it until it ends."""
    launcher = [str(ROOT / "test/torchrun.py"), "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    with tempfile.TemporaryDirectory() as out:
        words = [f"--data_url={data}", f"--train_url={out}", f"--num-steps={STEPS}", *options]
        command = [sys.executable, *(launcher if processes > 1 else []), str(ROOT / "train.py")]
        begin = time.perf_counter()
        with subprocess.Popen(
            [*command, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        ) as process:
            assert process.stdout
            os.set_blocking(process.stdout.fileno(), False)
            start, peak, printed, next_look = 0.0, 0.0, "", begin
            while process.poll() is None:
                printed += "".join(process.stdout.readlines())  # lines may come in pieces
                if not start and "recipe: " in printed:
                    start = time.perf_counter() - begin
                if (now := time.perf_counter()) >= next_look:
                    peak = max(peak, use(process.pid).memory)
                    next_look = now + 20 * (time.perf_counter() - now)  # a look takes a core
                time.sleep(0.05)
        if process.returncode:
            sys.exit(f"error: {command} ended with status {process.returncode}")
        with Path(out, "x3/timing.csv").open(encoding="utf-8") as file:
            row = next(csv.DictReader(file))
    return Run(start, float(row["each_step_time"]), float(row["images_per_second"]), peak)


def against_size(source: Path, times: list[int]) -> None:
    """Print a line for each size, recipe and place."""
    print(f"{'patches':>9}{'file':>9}  {'recipe':10}{'from':8}{'start':>7}{'step':>10}{'peak':>9}")
    for factor in times:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder, "data")
            enlarge(source, data, factor)
            os.sync()  # or the system writes it during the first runs
            with h5py.File(data / "train/T91_x3.h5") as file:
                patches = len(file["lr"])
            for recipe, name in (("reference", "T91_x3.h5"), ("fast", "T91_x3_images.h5")):
                path = data / "train" / name
                for place, options in (("memory", ()), ("disk", FROM_DISK)):
                    run = train(data, f"--recipe={recipe}", "--precision=bf16", *options)
                    print(
                        f"{patches:9,}{path.stat().st_size / 1e9:6.2f} GB  {recipe:10}{place:8}"
                        f"{run.start:5.1f} s{1000 * run.step:7.1f} ms{run.peak:6.0f} MB"
                    )


def against_processes(source: Path, processes: list[int]) -> None:
    """Print a line for each number of processes; the first is what the others compare with."""
    cores = len(os.sched_getaffinity(0))
    print(f"\n{cores} cores\n{'processes':>9}{'patches/s':>11}{'efficiency':>12}")
    alone = None
    for count in processes:
        run = train(source, "--precision=bf16", processes=count, threads=1)
        alone = alone or run.rate / min(count, cores)
        efficiency = run.rate / min(count, cores) / alone
        print(f"{count:9}{run.rate:11.0f}{efficiency:12.0%}")


def main() -> None:
    """Print both tables."""
    parser = Parser(__doc__)
    parser.add_argument("--data-path", type=Path, required=True, help="with T91 at ×3")
    parser.add_argument("--times", type=COUNT, nargs="*", default=[1, 10, 50])
    parser.add_argument("--processes", type=COUNT, nargs="*", default=[1, 2, 4])
    args = parser.parse_args()
    against_size(args.data_path, args.times)
    against_processes(args.data_path, args.processes)


if __name__ == "__main__":
    end_at_signals()
    sys.exit(run_main(main))
