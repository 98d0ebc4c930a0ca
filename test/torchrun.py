"""torchrun, ending with the status of the process that failed first instead of 1 and a traceback.

Called by the 8p scripts with torchrun's own arguments; a signal is passed on to every process.
"""

import sys

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def run() -> int:
    """Run torchrun on the command line's arguments and return the exit status."""
    try:
        main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        status = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        print(f"error: rank {rank} failed first, with status {status}", file=sys.stderr)
        return status
    except SignalException as stop:
        return 128 + stop.sigval
    return 0


if __name__ == "__main__":
    sys.exit(run())
