"""Run train.py, which waits at its Nth step for the SIGTERM that it is told to stop by, or its end.

    python held_at.py N train.py --data_url=…

However late the signal is sent, the run has not ended by then; however early, it is heard there.
"""

import runpy
import signal
import sys
from pathlib import Path

import torch

left = int(sys.argv[1])
sys.argv = sys.argv[2:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
backward = torch.Tensor.backward


def held(*args: object, **options: object) -> None:
    """Count the steps by their backward passes."""
    global left  # noqa: PLW0603 - a method's stand-in is a plain function
    left -= 1
    if not left:
        signal.sigwait({signal.SIGTERM})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        signal.raise_signal(signal.SIGTERM)
    backward(*args, **options)


torch.Tensor.backward = held
runpy.run_path(sys.argv[0], run_name="__main__")
