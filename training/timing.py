"""Wall time of training steps, with data loading in it."""

import time
from collections.abc import Callable

WARM_UP_STEPS = 5  # compiling, first-use costs


class StepTimer:
    """Times the steps of an epoch; the first steps of a process are told apart.

    The device is waited for at the end of the warm-up and of the epoch only.

    Args:
        synchronize: waits until the device has done what it was given.
        warm_up_of: the steps of an epoch whose first 5 are left out of the mean; what they took is
            printed. An epoch of no more than these has no warm-up.
        clock: returns seconds.
    """

    def __init__(
        self,
        synchronize: Callable[[], None],
        warm_up_of: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.synchronize, self.clock = synchronize, clock
        self.warm_up = warm_up_of > WARM_UP_STEPS
        self.steps, self.earlier, self.started = 0, 0.0, clock()

    def tick(self) -> None:
        """Count a step."""
        self.steps += 1
        if self.warm_up and self.steps == WARM_UP_STEPS:
            self.earlier, self.steps, self.warm_up = self._lap(), 0, False
            print(
                f"first {WARM_UP_STEPS} steps: {self.earlier:.6f} s "
                f"(compilation and warm-up, not in each_step_time)"
            )

    def stop(self) -> tuple[float, float]:
        """Return (seconds of the epoch, mean seconds of a step without the warm-up)."""
        seconds = self._lap()
        return self.earlier + seconds, seconds / max(1, self.steps)

    def _lap(self) -> float:
        self.synchronize()
        now = self.clock()
        seconds, self.started = now - self.started, now
        return seconds
