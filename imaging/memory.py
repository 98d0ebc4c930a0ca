"""How much memory a picture takes, and how much there is."""

import os
import resource
from contextlib import suppress
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
# Bytes a pixel of the result: the picture, and what its encoder needs beside it, as measured.
RESULT_BYTES = {"PNG": 5, "JPEG": 6, "TIFF": 5, "BMP": 4, "WEBP": 14, "AVIF": 16, "HEIF": 16}
DEEP_BYTES = 4  # a pixel and channel of 16 bits, and its copy in the file's byte order


def needed(width: int, height: int, scale: int, saved_as: str, deep_channels: int = 0) -> int:
    """Return about how many bytes it takes to enlarge a picture, without the network's share.

    Args:
        width: in pixels, of the picture as it is.
        height: in pixels.
        scale: by which it is enlarged.
        saved_as: a format, as Pillow names it.
        deep_channels: of 16 bits; 0 for a picture of 8 bits.
    """
    source = 8 + 6 * deep_channels
    result = deep_channels * DEEP_BYTES or RESULT_BYTES[saved_as]
    return width * height * (source + scale**2 * result)


def available() -> int:
    """Return how many bytes this process may still take: the machine's, container's, ulimit's.

    Without Linux' /proc it is all memory of the machine.
    """
    with suppress(OSError, ValueError, IndexError):
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
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            least = min(least, _of_group(CGROUP, path, "memory.max", "memory.current"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            least = min(least, _of_group(CGROUP / "memory", path, *names))
    return least


def _of_group(root: Path, path: str, limit: str, usage: str) -> int:
    """Return what a group and those above it leave; in a container its own may be the root."""
    least, folder = 2**63, root / path.strip("/")
    for group in [folder, *folder.parents]:
        if root not in (group, *group.parents):
            break
        with suppress(OSError, ValueError):  # no such group, or "max"
            most = int((group / limit).read_text(encoding="ascii"))
            used = int((group / usage).read_text(encoding="ascii"))
            caches = (group / "memory.stat").read_text(encoding="ascii").split("inactive_file ")
            least = min(least, most - used + int(caches[1].split()[0]))
    return least
