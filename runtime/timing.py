"""Wall time of training steps, with data loading in it."""

import time

import torch

from runtime.device import synchronize

WARM_UP_STEPS = 5  # compiling, first-use costs


class StepWatch:
    """Times the steps of an epoch; the first steps of a process are told apart.

    The device is waited for at the end of the warm-up and of the epoch only.

    Args:
        device: where the steps run.
        warm_up: leave the first 5 steps out of the mean and print what they took.
    """

    def __init__(self, device: torch.device, warm_up: bool) -> None:
        self.device, self.warm_up = device, warm_up
        self.seconds, self.steps = 0.0, 0
        self.started = time.perf_counter()
        self.earlier = 0.0

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
        synchronize(self.device)
        now = time.perf_counter()
        seconds, self.started = now - self.started, now
        return seconds
