"""torchrun, ending with the status of the process that failed first instead of 1 and a traceback.

Called by the 8p scripts with torchrun's own arguments; a signal is passed on to every process.
"""

import os
import signal
import sys

os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # as train.py has it, which tells why

# isort: split
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import main


def run() -> int:
    """Run torchrun on the command line's arguments and return the exit status."""
    try:
        main()
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=_order)
        status = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        print(f"error: rank {rank} failed first, with status {status}", file=sys.stderr)
        return status
    except SignalException as stop:
        return 128 + stop.sigval
    return 0


def _order(failed: tuple[int, ProcessFailure]) -> tuple[int, bool]:
    """Sort by when it was found, in seconds: within one, what was killed before what missed it."""
    failure = failed[1]
    return failure.timestamp, failure.exitcode != -signal.SIGKILL


if __name__ == "__main__":
    sys.exit(run())
