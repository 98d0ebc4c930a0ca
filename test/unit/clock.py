"""A clock for what sleeps until something happens."""


class Clock:
    """Time that passes by sleeping only; after each sleep the next step happens."""

    def __init__(self, *steps) -> None:
        self.seconds, self.steps = 0.0, list(steps)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.seconds += seconds
        if self.steps:
            self.steps.pop(0)()
