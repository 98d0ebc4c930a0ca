"""While a training runs: signals, the lock, the log on the screen and the platform's."""

import contextlib
import os
import signal
from pathlib import Path

import pytest
from commands import HANG, WITHOUT_OVERRIDE, wait_until


def test_second_training_in_the_same_folder_is_refused(repository):
    first = repository.start(repository.command("full_1p"))
    second = repository.run("full_1p")
    assert second.returncode == 1
    assert "another training is using" in second.stderr
    beside = repository.run("full_1p", ASCEND_DEVICE_ID="1")
    assert beside.returncode == 0
    first.terminate()
    assert first.wait(HANG) == 143
    first.communicate()
    assert repository.run("full_1p").returncode == 0


def test_a_file_system_that_cannot_lock_is_no_other_training(repository, tmp_path: Path):
    (tmp_path / "flock").write_text("#!/bin/sh\necho 'flock: 9: No locks available' >&2; exit 71\n")
    (tmp_path / "flock").chmod(0o755)
    done = repository.run("full_1p", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert f"warning: {repository.output()} cannot be locked; start no second" in done.stderr


def test_the_device_is_told_while_the_training_runs(repository):
    """Hours before its end, for those who want another."""
    process = repository.start(repository.command("full_1p"))
    shown = b""
    os.set_blocking(process.stdout.fileno(), False)

    def told() -> bool:
        nonlocal shown
        with contextlib.suppress(BlockingIOError):
            shown += os.read(process.stdout.fileno(), 4096)
        return b"device: " in shown

    wait_until(told, process)
    assert shown.decode() == (
        f"training log: {repository.output()}/train_0.log\n"
        "device: cpu (auto), precision: fp32 (as asked)\n"
    )
    os.set_blocking(process.stdout.fileno(), True)
    process.terminate()
    assert process.communicate(timeout=HANG)[0].count("device: ") == 0
    assert process.returncode == 143


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGHUP, 15)],
)
@pytest.mark.parametrize("platform", ["", "1"])
def test_signal_reaches_train_py_once(
    repository, sent: signal.Signals, arrives: int, platform: str
):
    process = repository.start(repository.command("full_1p"), MODELARTS_MODEL_PATH=platform)
    os.killpg(process.pid, sent)  # to the whole group, as a terminal sends Ctrl-C
    stdout, stderr = process.communicate(timeout=HANG)
    assert process.returncode == 128 + arrives, stderr
    assert (stdout + stderr).count(f"got signal {int(arrives)}") == 1
    assert "Final" not in stdout
    assert ("got signal" in stdout) == bool(platform)  # the screen's copy goes on to the end


@pytest.mark.parametrize("line", ["    set -m\n", "    child=$!\n"])
def test_a_signal_just_as_the_training_starts_ends_it(repository, line: str):
    """Before there is a process to pass it on to, and before its number is known."""
    script = repository.root / "test" / "common.sh"
    text = script.read_text()
    assert text.count(line) == 1
    script.write_text(text.replace(line, f"    kill -TERM $$\n{line}"))
    done = repository.run("full_1p", FAKE="wait")
    assert done.returncode == 143, done.stderr
    assert "ended with status 143" in done.stderr


@pytest.mark.parametrize("fake", ["wait", "wait, not begun"])
@pytest.mark.parametrize("options", [[], ["--nproc=2"]])
def test_how_to_go_on_is_told_where_there_is_a_checkpoint(repository, options: list, fake: str):
    """A training that is ended before it begins has left the checkpoint of an earlier one."""
    script = "full_8p" if options else "full_1p"
    results = f"--output_path={repository.elsewhere}"
    (repository.elsewhere / "x3").mkdir()
    (repository.elsewhere / "x3" / "checkpoint_5.pt").touch()
    command = repository.command(script, results, *options)
    process = repository.start(command, waiting=1 + len(options), FAKE=fake)
    process.terminate()
    _, stderr = process.communicate(timeout=HANG)
    assert process.returncode == 143, stderr
    told = "to go on from the checkpoint: the same command with --resume after --\n"
    assert stderr.endswith(told) == (fake == "wait")
    assert ("to go on" in stderr) == (fake == "wait")
    again = repository.run(script, results, *options, "--", "--resume")
    assert again.returncode == 0, again.stderr
    assert "moved" not in again.stdout


def test_platform_gets_the_log(repository, tmp_path: Path):
    logs = tmp_path / "platform logs"
    logs.mkdir()
    for rank in ("0", "1"):
        (logs / f"modelarts-job-proc-rank-{rank}-device-{rank}.txt").write_text("earlier\n")
    done = repository.run("full_1p", MODELARTS_MODEL_PATH="/m", MODELARTS_LOG_DIR=str(logs))
    assert done.returncode == 0, done.stderr
    log = (repository.output() / "train_0.log").read_text()
    assert "best epoch" in log
    assert log in done.stdout
    texts = [path.read_text() for path in sorted(logs.iterdir())]
    assert texts == ["earlier\n" + log, "earlier\n"]


def test_each_process_has_a_log_of_the_platform(repository, tmp_path: Path):
    for rank in ("0", "1"):
        (tmp_path / f"job-proc-rank-{rank}-device-{rank}.txt").touch()
    platform = {"RANK_TABLE_FILE": "/t", "RANK_SIZE": "2", "RANK_ID": "1", "ASCEND_DEVICE_ID": "1"}
    platform |= {"MODELARTS_MODEL_PATH": "/m", "MODELARTS_LOG_DIR": str(tmp_path)}
    assert repository.run("full_8p", **platform).returncode == 0
    assert not (tmp_path / "job-proc-rank-0-device-0.txt").read_text()
    assert "not rank 0" in (tmp_path / "job-proc-rank-1-device-1.txt").read_text()


def test_without_the_platform_the_log_is_not_on_the_screen(repository):
    assert "epoch0 :" not in repository.run("full_1p").stdout


def test_platform_without_a_log_of_its_own(repository, tmp_path: Path):
    gone = str(tmp_path / "gone")
    done = repository.run("full_1p", MODELARTS_MODEL_PATH="/m", MODELARTS_LOG_DIR=gone)
    assert done.returncode == 0
    assert "epoch2 : loss=0.166667" in done.stdout


def test_a_log_of_the_platform_that_may_not_be_written_is_none(repository, tmp_path: Path):
    for name, mode in (("a-proc-rank-0-device-0.txt", 0o444), ("b-proc-rank-0.txt", 0o644)):
        (tmp_path / name).touch(mode)
    repository.wrapper = WITHOUT_OVERRIDE
    done = repository.run("full_1p", MODELARTS_MODEL_PATH="/m", MODELARTS_LOG_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "best epoch" in (tmp_path / "b-proc-rank-0.txt").read_text()


def test_closed_screen_does_not_stop_the_training(repository):
    process = repository.start(repository.command("full_1p"), MODELARTS_MODEL_PATH="/m")
    process.stdout.close()
    process.terminate()
    process.stderr.read()
    assert process.wait(HANG) == 143
