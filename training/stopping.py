"""SIGTERM, SIGHUP and Ctrl-C: training stops after a step that all processes agree on."""

import signal
from types import FrameType
from typing import TYPE_CHECKING

from runtime.errors import ending_signals, leave_terminal

if TYPE_CHECKING:
    from runtime.distributed import World

LOOK_EVERY = 16  # steps between two agreements of several processes


class Interrupted(Exception):
    """The run was asked to stop, and stands between two steps; its state can be saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_status = 128 + signum


class StopRequest:
    """Notes SIGTERM, SIGINT and, without nohup, SIGHUP; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.signum = 0
        for signum in ending_signals():
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if signum == signal.SIGHUP:
            leave_terminal()

    def agreed(self, world: "World", step: int) -> int:
        """Return the signal to stop for after `step`, or 0; all processes get the same answer."""
        if world.size > 1 and step % LOOK_EVERY:
            return 0
        return world.highest(self.signum)
