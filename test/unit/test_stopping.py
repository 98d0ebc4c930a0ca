"""Runs that are killed, starved of disk space or robbed of their folder, and what is left then."""

import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import ROOT, assert_one_line_error, run

from runtime import checkpoint

SMALL = ("--batch-size=8", "--precision=fp32", "--device=cpu")
STEPS = 5  # of an epoch of 44 patches
KILLED_AT = Path(__file__).with_name("killed_at.py")


def start(*words: object, **options: object) -> subprocess.Popen:
    command = [sys.executable, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **(pipes | options))


def training(dataset: Path, out: Path, epochs: int, *options: str) -> list[object]:
    names = (f"--data_url={dataset}", f"--train_url={out}", f"--num-epochs={epochs}")
    return [ROOT / "train.py", *names, "--save-every=1000", *SMALL, *options]


def wait_for_epochs(process: subprocess.Popen, count: int) -> None:
    for line in process.stdout:
        count -= line.startswith("eval psnr")
        if count <= 0:
            return
    raise AssertionError(process.stderr.read())


def newest_step(out: Path) -> int:
    steps = [int(path.stem.split("_")[1]) for path in (out / "x3").glob("checkpoint_*.pt")]
    return max(steps, default=0)


def assert_same_end(one: Path, other: Path) -> None:
    """The newest checkpoints hold the same state, and the tables say the same."""
    (_, first), (_, second) = (checkpoint.load_newest(out / "x3") for out in (one, other))
    assert first["trainer"]["step"] == second["trainer"]["step"]
    for name, weight in first["trainer"]["weights"].items():
        assert torch.equal(weight, second["trainer"]["weights"][name])
    best = [torch.load(out / "x3/best.pth", weights_only=True) for out in (one, other)]
    assert all(torch.equal(best[0][key], best[1][key]) for key in best[0])
    assert (one / "x3/metrics.csv").read_text() == (other / "x3/metrics.csv").read_text()


def kill_and_resume(dataset: Path, folder: Path, kills: int, epochs: int, seed: int) -> None:
    """Kill a run again and again; half of the times while it saves."""
    rng, out = random.Random(seed), folder / "killed"
    words = training(dataset, out, epochs)
    reference = run(*training(dataset, folder / "whole", epochs), timeout=900)
    assert reference.returncode == 0, reference.stderr
    torn = 0
    for number in range(kills):
        before = newest_step(out)
        resume = ["--resume"] if number else []
        if number % 2:
            process = start(KILLED_AT, rng.randint(1, 40), *words, *resume)
        else:
            process = start(*words, *resume)
            if number % 4 == 0:
                wait_for_epochs(process, rng.randint(1, 2))
                time.sleep(rng.uniform(0.0, 0.1))
            else:
                time.sleep(rng.uniform(0.0, 8.0))
            process.kill()
        printed, errors = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, errors
        torn += any((out / "x3").glob(".*.tmp"))
        if before and "resuming from" in errors:
            assert f"checkpoint_{before}.pt" in errors, "the newest checkpoint is intact"
        done = [int(number) for number in re.findall(r"^epoch(\d+) :", printed, re.MULTILINE)]
        assert newest_step(out) >= before
        assert not done or newest_step(out) >= STEPS * done[-1], "more than an epoch is repeated"
    assert torn, "no kill met a save"
    result = run(*words, "--resume", timeout=900)
    assert result.returncode == 0, result.stderr
    assert_same_end(folder / "whole", out)
    assert not list((out / "x3").glob(".*.tmp"))


def test_killed_4_times(dataset: Path, tmp_path: Path) -> None:
    kill_and_resume(dataset, tmp_path, kills=4, epochs=24, seed=1)


@pytest.mark.slow
def test_killed_50_times(dataset: Path, tmp_path: Path) -> None:
    kill_and_resume(dataset, tmp_path, kills=50, epochs=250, seed=2)


def test_the_second_ctrl_c_ends_at_once() -> None:
    code = "import os, signal, sys; sys.path.insert(0, sys.argv.pop(1)); sys.argv = sys.argv[:]\n"
    code += "from runtime.errors import run_main\nfrom runtime.stopping import StopRequest\n"
    code += "def main():\n stop = StopRequest()\n os.kill(os.getpid(), signal.SIGINT)\n"
    code += " assert stop.signum == 2\n print('noted', flush=True)\n"
    code += " os.kill(os.getpid(), signal.SIGINT)\n while True: signal.pause()\n"
    code += "sys.exit(run_main(main))"
    process = start("-c", code, ROOT)
    printed, errors = process.communicate(timeout=120)
    assert (process.returncode, printed, errors) == (130, "noted\n", "interrupted\n")


def test_ctrl_c_saves_the_state(dataset: Path, tmp_path: Path) -> None:
    process = start(*training(dataset, tmp_path, 100000))
    wait_for_epochs(process, 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert re.search(r"SIGINT at step \d+: the state is saved; go on with .* --resume", errors)
    assert checkpoint.load_newest(tmp_path / "x3")


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """Mount a tmpfs, where that is permitted; tell whether it is."""
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    mount = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False)
    done = bool(mount) and mount.returncode == 0
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def assert_kept(out: Path) -> None:
    assert checkpoint.load_newest(out / "x3")
    assert not list((out / "x3").glob(".*.tmp"))


def test_a_full_disk(dataset: Path, tmp_path: Path) -> None:
    """A file system of 4 MB, filled during the run; without mounts, a limit on a file's size."""
    with mounted(tmp_path, "size=4m") as small:
        words = training(dataset, tmp_path, 3)
        assert run(*words).returncode == 0
        step = newest_step(tmp_path)
        if small:
            with contextlib.suppress(OSError), (tmp_path / "filler").open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
            limit = None
        else:
            limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))  # noqa: E731
        process = start(*training(dataset, tmp_path / "more", 3), preexec_fn=limit)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert errors.startswith(f"error: cannot write {tmp_path}/more/x3/"), errors
        assert len(errors.splitlines()) == 1
        assert newest_step(tmp_path) == step
        assert_kept(tmp_path)


def test_a_folder_moved_away_during_the_run(dataset: Path, tmp_path: Path) -> None:
    process = start(*training(dataset, tmp_path, 100000))
    wait_for_epochs(process, 2)
    (tmp_path / "x3").rename(tmp_path / "elsewhere")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "was removed or replaced during the run" in errors.splitlines()[-1]
    assert checkpoint.load_newest(tmp_path / "elsewhere")


def test_nothing_secret_is_written(dataset: Path, tmp_path: Path) -> None:
    """Neither values of the environment nor paths but those given."""
    shutil.copytree(dataset, tmp_path / "data")
    words = ["--data_url=data", "--train_url=out", *SMALL, "--num-epochs=1"]
    result = run("train.py", *words, cwd=tmp_path, env={"MY_TOKEN": "hunter2secret"})
    assert result.returncode == 0, result.stderr
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    texts = [result.stdout.encode(), result.stderr.encode(), *(path.read_bytes() for path in files)]
    for secret in ("hunter2secret", str(tmp_path), str(ROOT)):
        assert not any(secret.encode() in text for text in texts), secret


def test_the_same_seed_gives_the_same_weights(dataset: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        result = run(*training(dataset, tmp_path / name, 2))
        assert result.returncode == 0, result.stderr
    assert_same_end(tmp_path / "one", tmp_path / "two")


def test_a_wrong_checkpoint_is_named(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.pt").write_bytes(b"nothing")
    result = run(*training(dataset, tmp_path, 1, f"--resume={tmp_path / 'wrong.pt'}"))
    assert_one_line_error(result, "wrong.pt is no whole checkpoint")
