"""Watch a run's memory and file handles for an hour: both must stay flat.

    python train.py --data_url=dataset --recipe=fast --num-epochs=80 &
    python benchmarks/soak.py $!

Counts the process and its children, from what Linux keeps of them under /proc; memory is what they
allocated, without the libraries' code. Prints a line a minute and then compares the second half
with the first; ends with status 1 when the second half needed 5 % more memory or more open files
at its peak. Ends early when the run does.
"""

import contextlib
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from runtime.errors import run_main
from runtime.numbers import COUNT, POSITIVE
from runtime.options import Parser

MAY_GROW = 1.05
ALLOCATED = ("Pss_Anon:", "Pss_Shmem:")  # a page that several share counts once in all


class Use(NamedTuple):
    """What a process and its children hold: MB allocated, open files, threads."""

    memory: float
    files: int
    threads: int


def use(pid: int) -> Use:
    """Look at a process and its children now; zeros when it has ended."""
    memory = files = threads = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error, OSError):  # it may end at any moment
                lines = Path(f"/proc/{member.pid}/smaps_rollup").read_text().splitlines()
                memory += sum(int(line.split()[1]) for line in lines if line.startswith(ALLOCATED))
                files += member.num_fds()
                threads += member.num_threads()
    return Use(memory / 1024, files, threads)


def watch(pid: int, minutes: float) -> list[Use]:
    """Look once a second; print a line a minute, the peak of that minute."""
    seen, last, end = [], 0, time.monotonic() + 60 * minutes
    print("minute     MB  files  threads")
    while time.monotonic() < end and (now := use(pid)).memory:
        seen.append(now)
        if len(seen) % 60 == 0:
            peak = Use(*map(max, zip(*seen[last:], strict=True)))
            print(f"{len(seen) // 60:6} {peak.memory:6.0f} {peak.files:6} {peak.threads:8}")
            last = len(seen)
        time.sleep(1)
    return seen


def main() -> int:
    """Watch, compare, return the exit status."""
    parser = Parser(__doc__)
    parser.add_argument("pid", type=COUNT, help="process to watch")
    parser.add_argument("--minutes", type=POSITIVE, default=60.0, help="default: %(default)s")
    args = parser.parse_args()
    seen = watch(args.pid, args.minutes)
    if len(seen) < 2:
        print(f"error: no process {args.pid} to watch, or it ended at once", file=sys.stderr)
        return 2
    half = len(seen) // 2
    first, second = (Use(*map(max, zip(*part, strict=True))) for part in (seen[:half], seen[half:]))
    flat = second.memory <= MAY_GROW * first.memory and second.files <= first.files
    print(f"{len(seen) / 60:.0f} minutes; peaks of the first half, and of the second:")
    for name, peak in (("first", first), ("second", second)):
        print(f"{name:6} {peak.memory:6.1f} {peak.files:6} {peak.threads:8}")
    print("flat" if flat else "error: it grows", file=sys.stdout if flat else sys.stderr)
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(run_main(main))
