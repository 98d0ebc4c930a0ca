"""Training runs in the background, to be signalled, killed and resumed."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from commands import ROOT

from training import checkpoint

SMALL = ("--batch-size=8", "--precision=fp32", "--device=cpu")
STEPS = 5  # of an epoch of 44 patches, 8 a step
HELD_AT = Path(__file__).with_name("held_at.py")
# By the host's name, where that cannot be resolved, torchrun waits for many minutes.
LAUNCHER = (ROOT / "test/torchrun.py", "--standalone", "--local-addr=127.0.0.1")
TWO = (*LAUNCHER, "--nproc_per_node=2")
THREE = (*LAUNCHER, "--nproc_per_node=3")


def start(*words: object, wrapper: Sequence[str] = (), **options: object) -> subprocess.Popen:
    """Start `wrapper… python words…`; its output goes to pipes."""
    command = [*wrapper, sys.executable, *map(str, words)]
    options.setdefault("preexec_fn", default_signals)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **(pipes | options))


def default_signals() -> None:
    """Let a process take the signals that the tests' own may ignore, under nohup or behind `&`."""
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def training(dataset: Path, out: Path, epochs: int, *options: str) -> list[object]:
    """Return the command line of a small run."""
    names = (f"--data_url={dataset}", f"--train_url={out}", f"--num-epochs={epochs}")
    return [ROOT / "train.py", *names, "--save-every=1000", *SMALL, *options]


def training_by_two(dataset: Path, out: Path, epochs: int) -> list[object]:
    """Return the command line of the same run on two processes."""
    return [*TWO, *training(dataset, out, epochs, "--batch-size=4")]


def training_by_three(dataset: Path, out: Path, epochs: int) -> list[object]:
    """Return that of three: the order in which they add up, unlike that of two, changes sums."""
    return [*THREE, *training(dataset, out, epochs, "--batch-size=3")]


def held(words: list[object], step: int) -> list[object]:
    """Return the command line of a run that waits at a step of its own for a signal."""
    place = words.index(ROOT / "train.py")
    return [*words[:place], HELD_AT, step, *words[place:]]


def wait_for_epochs(process: subprocess.Popen, count: int) -> None:
    """Return when a run has printed the PSNR of so many epochs."""
    for line in process.stdout:
        count -= line.startswith("eval psnr")
        if count <= 0:
            return
    raise AssertionError(process.stderr.read())


def newest_step(out: Path) -> int:
    """Return the step of the newest checkpoint, 0 when there is none."""
    steps = [int(path.stem.split("_")[1]) for path in (out / "x3").glob("checkpoint_*.pt")]
    return max(steps, default=0)


def assert_same_end(one: Path, other: Path) -> None:
    """The newest checkpoints hold the same state, and the tables say the same."""
    (_, first), (_, second) = (checkpoint.load_newest(out / "x3") for out in (one, other))
    assert first["training"]["step"] == second["training"]["step"]
    for name, weight in first["training"]["weights"].items():
        assert torch.equal(weight, second["training"]["weights"][name])
    best = [torch.load(out / "x3/best.pth", weights_only=True) for out in (one, other)]
    assert all(torch.equal(best[0][key], best[1][key]) for key in best[0])
    assert (one / "x3/metrics.csv").read_text() == (other / "x3/metrics.csv").read_text()


def log_lines(output: str) -> list[str]:
    """Return the lines of epochs and their PSNR, without the time of a step."""
    lines = [
        line for line in output.splitlines() if line.startswith(("epoch", "eval psnr", "best"))
    ]
    return [line.partition(", each_step_time")[0] for line in lines]
