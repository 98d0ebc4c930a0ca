"""How much memory there is."""

import os
import resource
from contextlib import suppress
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def available_memory() -> int:
    """Return how many bytes this process may still take: the machine's, container's, ulimit's.

    Without Linux' /proc it is all memory of the machine.
    """
    with suppress(OSError):
        return max(min(psutil.virtual_memory().available, _of_container(), _of_process()), 0)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_process() -> int:
    """What `ulimit -v` leaves."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    unlimited = limit == resource.RLIM_INFINITY
    return 2**63 if unlimited else limit - psutil.Process().memory_info().vms


def _of_container() -> int:
    """What the control groups leave, of version 2 or 1; file caches count as free."""
    least = 2**63
    own = os.fsdecode(OWN_CGROUPS.read_bytes()) if OWN_CGROUPS.exists() else ""
    for line in own.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            least = min(least, _of_group(CGROUPS, path, "memory.max", "memory.current"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            least = min(least, _of_group(CGROUPS / "memory", path, *names))
    return least


def _of_group(root: Path, path: str, limit: str, usage: str) -> int:
    """Return what a group and those above it leave; in a container its own may be the root."""
    least, folder = 2**63, root / path.strip("/")
    for group in [folder, *folder.parents]:
        if root not in (group, *group.parents):
            break
        with suppress(OSError, ValueError, IndexError):  # no such group, or "max"
            most = int((group / limit).read_bytes())
            used = int((group / usage).read_bytes())
            caches = (group / "memory.stat").read_bytes().split(b"inactive_file ")
            least = min(least, most - used + int(caches[1].split()[0]))
    return least
