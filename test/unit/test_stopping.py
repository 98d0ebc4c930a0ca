"""Runs that are killed or told to stop, and go on as if nothing had been."""

import os
import pty
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import HANG, assert_one_line_error, run, wait_until
from runs import (
    STEPS,
    TWO,
    assert_same_end,
    held,
    log_lines,
    newest_step,
    start,
    training,
    training_by_three,
    training_by_two,
    wait_for_epochs,
)
from samples import network

from training import checkpoint

KILLED_AT = Path(__file__).with_name("killed_at.py")
IMPORTS = 1500  # before a run takes its first step; there are 2100


def kill_and_resume(dataset: Path, folder: Path, kills: int, epochs: int, seed: int) -> None:
    """Kill a run again and again; half of the times while it saves."""
    rng, out = random.Random(seed), folder / "killed"
    words = training(dataset, out, epochs)
    reference = run(*training(dataset, folder / "whole", epochs))
    assert reference.returncode == 0, reference.stderr
    torn = 0
    for number in range(kills):
        before = newest_step(out)
        resume = ["--resume"] if number else []
        if number % 2:
            process = start(KILLED_AT, "save", rng.randint(1, 40), *words, *resume)
        elif number % 4:
            process = start(KILLED_AT, "import", rng.randint(1, IMPORTS), *words, *resume)
        else:
            process = start(*held(words, 4 * STEPS), *resume)
            wait_for_epochs(process, rng.randint(1, 2))
            time.sleep(rng.uniform(0.0, 0.1))  # anywhere in an epoch
            process.kill()
        printed, errors = process.communicate(timeout=HANG)
        assert process.returncode == -signal.SIGKILL, errors
        torn += any((out / "x3").glob(".*.tmp"))
        if before and "resuming from" in errors:
            assert f"checkpoint_{before}.pt" in errors, "the newest checkpoint is intact"
        done = [int(number) for number in re.findall(r"^epoch(\d+) :", printed, re.MULTILINE)]
        assert newest_step(out) >= before
        assert not done or newest_step(out) >= STEPS * (done[-1] - 1), "saved one epoch later"
    assert torn, "no kill met a save"
    result = run(*words, "--resume")
    assert result.returncode == 0, result.stderr
    assert_same_end(folder / "whole", out)
    assert not list((out / "x3").glob(".*.tmp"))


def test_killed_4_times(dataset: Path, tmp_path: Path) -> None:
    kill_and_resume(dataset, tmp_path, kills=4, epochs=24, seed=1)


@pytest.mark.slow
def test_killed_50_times(dataset: Path, tmp_path: Path) -> None:
    kill_and_resume(dataset, tmp_path, kills=50, epochs=250, seed=2)


@pytest.mark.parametrize("command", [training, training_by_three], ids=["alone", "three processes"])
def test_stopped_in_an_epoch_and_resumed_is_as_never_stopped(
    dataset: Path, tmp_path: Path, command: Callable
) -> None:
    whole = run(*command(dataset, tmp_path / "whole", 12))
    assert whole.returncode == 0, whole.stderr
    words = command(dataset, tmp_path / "stopped", 12)
    process = start(*held(words, 2 * STEPS + 3))
    wait_for_epochs(process, 2)
    process.terminate()
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 143, errors
    step = int(re.search(r"SIGTERM at step (\d+): the state is saved; .* --resume", errors)[1])
    assert newest_step(tmp_path / "stopped") == step
    resumed = run(*words, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_end(tmp_path / "whole", tmp_path / "stopped")
    assert "deterministic" not in whole.stdout
    lines = log_lines(resumed.stdout)
    assert lines
    assert log_lines(whole.stdout)[-len(lines) :] == lines


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_hangup_save_the_state(dataset: Path, tmp_path: Path, signum: int) -> None:
    process = start(*training(dataset, tmp_path, 100000))
    wait_for_epochs(process, 1)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 128 + signum, errors
    assert re.search(r"SIG\w+ at step \d+: the state is saved; go on with .* --resume", errors)
    assert checkpoint.load_newest(tmp_path / "x3")


def test_nohup_goes_on_after_a_hangup(dataset: Path, tmp_path: Path) -> None:
    process = start(*training(dataset, tmp_path, 100000), wrapper=["nohup"])
    wait_for_epochs(process, 1)
    process.send_signal(signal.SIGHUP)
    wait_for_epochs(process, 2)
    process.kill()
    process.communicate()


def test_a_terminal_that_is_closed_saves_the_state(dataset: Path, tmp_path: Path) -> None:
    """Its own and its only terminal: what is printed from then on fails."""
    terminal, side = pty.openpty()
    process = start(
        *training(dataset, tmp_path, 100000),
        wrapper=["setsid", "--ctty", "--wait"],
        **dict.fromkeys(("stdin", "stdout", "stderr"), side),
    )
    os.close(side)
    printed = b""
    while printed.count(b"eval psnr") < 2:
        printed += os.read(terminal, 1024)
    os.close(terminal)
    assert process.wait(timeout=HANG) == 128 + signal.SIGHUP
    found = checkpoint.load_newest(tmp_path / "x3")
    assert found
    assert found[1]["training"]["step"] >= 2 * STEPS


def test_a_finished_run_goes_on_longer(dataset: Path, tmp_path: Path) -> None:
    """The reference's rate does not depend on the length, so it is as if it had been that long."""
    assert run(*training(dataset, tmp_path / "whole", 4)).returncode == 0
    assert run(*training(dataset, tmp_path / "longer", 2)).returncode == 0
    result = run(*training(dataset, tmp_path / "longer", 4, "--resume"))
    assert result.returncode == 0, result.stderr
    assert "epoch2 :" in result.stdout
    assert "epoch1 :" not in result.stdout
    assert_same_end(tmp_path / "whole", tmp_path / "longer")
    shorter = run(*training(dataset, tmp_path / "longer", 3, "--resume"))
    assert_one_line_error(shorter, "num_epochs is 3, in the checkpoint 4; use the same")


def test_the_fast_recipe_says_how_to_go_on(dataset: Path, tmp_path: Path) -> None:
    fast = ("--recipe=fast", "--batch-size=1")
    assert run(*training(dataset, tmp_path, 1, *fast, "--num-steps=2")).returncode == 0
    result = run(*training(dataset, tmp_path, 1, *fast, "--num-steps=3", "--resume"))
    assert_one_line_error(
        result, "total_steps is 3, ", "planned for", "best.pth with --init-weights"
    )


def test_weights_are_started_from_not_resumed(dataset: Path, tmp_path: Path) -> None:
    weights = tmp_path / "earlier.pth"
    torch.save({"state_dict": network().state_dict()}, weights)
    words = training(dataset, tmp_path / "out", 1, "--num-steps=1", "--lr=1e-12")
    result = run(*words, f"--resume={weights}")
    assert_one_line_error(result, f"{weights} holds weights", f"--init-weights {weights}")
    result = run(*words, f"--init-weights={weights}")
    assert result.returncode == 0, result.stderr
    assert f"start: the weights of {weights}\n" in result.stdout
    tuned = torch.load(tmp_path / "out/x3/best.pth", weights_only=True)
    for name, weight in network().state_dict().items():
        torch.testing.assert_close(tuned[name], weight)
    _, state = checkpoint.load_newest(tmp_path / "out/x3")
    assert state["options"]["init_weights"] == str(weights)
    weights.unlink()
    assert run(*words, f"--init-weights={weights}", "--resume").returncode == 0
    assert_one_line_error(run(*words, "--resume"), "init_weights is None, in the checkpoint")
    torch.save(network(kernel_sizes=(9, 1, 5)).state_dict(), weights)
    result = run(*words, f"--init-weights={weights}")
    assert_one_line_error(result, "conv2.weight of shape (32, 64, 1, 1)", "(32, 64, 5, 5)")


# Ctrl-C, so often, in the middle of the first step.
INTERRUPTED = """
import runpy, signal, sys
from pathlib import Path
import torch
times, sys.argv = int(sys.argv[1]), sys.argv[2:]
backward = torch.Tensor.backward

def interrupted(*args, **options):
    torch.Tensor.backward = backward
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)
    backward(*args, **options)

torch.Tensor.backward = interrupted
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("times", [1, 2])
def test_the_second_ctrl_c_ends_at_once(dataset: Path, tmp_path: Path, times: int) -> None:
    """After the first, the step is finished and the state is saved."""
    process = start("-c", INTERRUPTED, times, *training(dataset, tmp_path, 1))
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 130, errors
    assert newest_step(tmp_path) == (1 if times == 1 else 0)
    assert ("the state is saved" in errors) == (times == 1)
    assert (errors.splitlines()[-1] == "interrupted") == (times == 2)


def children(process: subprocess.Popen) -> list[int]:
    """Return the process numbers of the training processes under a launcher."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in path.read_text().split()]


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_to_one_of_two_processes(dataset: Path, tmp_path: Path, signum: int) -> None:
    """A killed one ends the job; one that was told to stop stops all with their state saved."""
    process = start(*training_by_two(dataset, tmp_path, 100000))
    wait_for_epochs(process, 1)
    os.kill(children(process)[-1], signum)
    try:
        _, errors = process.communicate(timeout=HANG)
    finally:
        process.kill()
    assert process.returncode == 128 + signum, errors
    assert newest_step(tmp_path) >= STEPS
    if signum == signal.SIGTERM:
        assert "SIGTERM at step" in errors
        assert "Traceback" not in errors


# Rank 1 is killed and rank 0 fails before the launcher, which stands still, looks at either.
BOTH_FAILED = """
import os, signal, time
from pathlib import Path
if os.environ["RANK"] == "1":
    os.kill(os.getppid(), signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGKILL)
while ") T" not in Path(f"/proc/{os.getppid()}/stat").read_text():
    time.sleep(0.01)
raise SystemExit("the connection is lost")
"""


def test_a_process_that_was_killed_is_the_one_that_failed_first(tmp_path: Path) -> None:
    """The others fail for want of it, within the same second, and with a status that tells less."""
    (tmp_path / "both.py").write_text(BOTH_FAILED)
    process = start(*TWO, tmp_path / "both.py")

    def have_ended() -> bool:
        states = [Path(f"/proc/{child}/stat").read_text() for child in children(process)]
        return sum(") Z" in state for state in states) == 2

    wait_until(have_ended, process)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 128 + signal.SIGKILL, errors
    assert errors.endswith("error: rank 1 failed first, with status 137\n")


def test_the_same_seed_gives_the_same_weights(dataset: Path, tmp_path: Path) -> None:
    """So do runs without --deterministic: those above, which are resumed."""
    for name in ("one", "two"):
        options = ("--deterministic", "--precision=auto")
        result = run(*training(dataset, tmp_path / name, 2, *options))
        assert result.returncode == 0, result.stderr
    assert_same_end(tmp_path / "one", tmp_path / "two")
    cost = r"deterministic: a step of 8 patches takes [\d.]+ ms, without it [\d.]+ ms"
    assert re.search(cost, result.stdout)


def test_a_wrong_checkpoint_is_named(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.pt").write_bytes(b"nothing")
    result = run(*training(dataset, tmp_path, 1, f"--resume={tmp_path / 'wrong.pt'}"))
    assert_one_line_error(result, "wrong.pt is no whole checkpoint")
