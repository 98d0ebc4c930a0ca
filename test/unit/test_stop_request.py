"""A request to stop, in this process: which signals are noted, and when processes agree."""

import os
import pty
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from training.stopping import LOOK_EVERY, Interrupted, StopRequest

NOTED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
pytestmark = pytest.mark.usefixtures("handlers")


class Ranks:
    """So many processes, one of which was asked to stop by a signal of its own."""

    def __init__(self, size: int, elsewhere: int = 0) -> None:
        self.size, self.elsewhere = size, elsewhere
        self.asked: list[int] = []

    def highest(self, value: int) -> int:
        self.asked.append(value)
        return max(value, self.elsewhere)


@pytest.mark.parametrize("signum", NOTED)
def test_each_signal_is_noted_and_agreed_on(signum: int) -> None:
    request = StopRequest()
    assert request.agreed(Ranks(1), 7) == 0
    os.kill(os.getpid(), signum)
    assert request.signum == signum
    assert request.agreed(Ranks(1), 7) == signum


def test_one_process_looks_after_each_step_and_several_after_some() -> None:
    request = StopRequest()
    one, two = Ranks(1, elsewhere=15), Ranks(2, elsewhere=15)
    assert [request.agreed(one, step) for step in range(1, 4)] == [15, 15, 15]
    stops = [step for step in range(1, 3 * LOOK_EVERY) if request.agreed(two, step)]
    assert stops == [LOOK_EVERY, 2 * LOOK_EVERY]
    assert two.asked == [0, 0], "an agreement costs time and is made at these steps alone"


def test_a_signal_to_this_process_reaches_the_agreement() -> None:
    request = StopRequest()
    os.kill(os.getpid(), signal.SIGTERM)
    ranks = Ranks(2)
    assert request.agreed(ranks, LOOK_EVERY) == signal.SIGTERM
    assert ranks.asked == [signal.SIGTERM]


def test_the_second_ctrl_c_ends_at_once() -> None:
    StopRequest()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_nohup_stays_in_force() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request = StopRequest()
    os.kill(os.getpid(), signal.SIGHUP)
    assert request.signum == 0


@contextmanager
def terminal_that_is_gone() -> Iterator[None]:
    """Standard output and error on a terminal whose window was closed."""
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    master, slave = pty.openpty()
    try:
        for descriptor in (1, 2):
            os.dup2(slave, descriptor)
        os.close(slave)
        os.close(master)
        yield
    finally:
        for descriptor, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)


def test_what_is_printed_after_a_hangup_costs_nothing() -> None:
    StopRequest()
    with terminal_that_is_gone():
        with pytest.raises(OSError):
            os.write(1, b"before")
        os.kill(os.getpid(), signal.SIGHUP)
        written = [os.write(descriptor, b"after") for descriptor in (1, 2)]
    assert written == [5, 5]


def test_a_terminal_that_is_there_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    StopRequest()
    os.kill(os.getpid(), signal.SIGHUP)
    os.write(1, b"to the terminal")
    assert capfd.readouterr().out == "to the terminal"


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_names_its_signal_and_ends_with_its_status(
    signum: int, status: int
) -> None:
    error = Interrupted(signum)
    assert str(error) == signal.Signals(signum).name
    assert error.exit_status == status
