"""Running the project's command lines as a user does."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HANG = 1800  # s; the only limit of time in the tests, which a loaded machine must not reach
# Root may read and write what others may not, unless these rights are taken from it.
RIGHTS = "--bounding-set=-dac_override,-dac_read_search"
WITHOUT_OVERRIDE = ["setpriv", RIGHTS] if os.geteuid() == 0 else []
SMALL = ("--batch-size=8", "--num-epochs=2", "--precision=fp32")  # a run of seconds


def run(*words: str | Path, **options) -> subprocess.CompletedProcess:
    """Run `python words…` of the project; return status and output as text.

    `env` adds variables.
    """
    environment = {**os.environ, **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, ROOT / words[0], *map(str, words[1:])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
        **options,
    )


def train(
    dataset: str | Path, out: Path, *options: str, **more: object
) -> subprocess.CompletedProcess:
    """Run train.py on a dataset folder."""
    return run("train.py", f"--data_url={dataset}", f"--train_url={out}", *options, **more)


def wait_until(happened: Callable[[], object], process: subprocess.Popen) -> None:
    """Return when something has happened that a process does; fail when that ends before."""
    deadline = time.monotonic() + HANG
    while not happened():
        assert process.poll() is None, "the process ended before"
        assert time.monotonic() < deadline, f"did not happen in {HANG} s"
        time.sleep(0.01)


def assert_one_line_error(
    result: subprocess.CompletedProcess, *parts: str, status: int = 2
) -> None:
    """The last line of standard error tells what is wrong; no traceback, no usage."""
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    assert "usage:" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert "error: " in last, result.stderr
    for part in parts:
        assert part in last
