"""The rank table of an Ascend platform: which hosts take part in a launch.

RANK_TABLE_FILE names a JSON file, or on ModelArts the folder that holds it. HCCL's user guide knows
two forms: `server_list` with each device's rank, and `group_list` with `instance_list`.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from runtime.errors import UserError

NAME = "jobstart_hccl.json"
LONGEST_WAIT, PAUSE = 600, 5  # s


def file_of(path: Path) -> Path:
    """Return the file of a table that is named by its folder or by itself."""
    return path / NAME if path.is_dir() else path


def read_hosts(
    path: Path,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Return the hosts' addresses, that of rank 0 first.

    Waits for the platform to complete the table: to write it into its folder, and to say so.

    Args:
        path: the table, or its folder.
        now: tells the time, in s.
        sleep: waits, so many s.

    Raises:
        UserError: the table cannot be read, or is not completed after 600 s.
    """
    name, end, told = f"RANK_TABLE_FILE={path}", now() + LONGEST_WAIT, False
    try:
        while True:
            status, hosts = _read(path)
            if hosts:
                return hosts
            if now() >= end:
                raise UserError(
                    f"{name} is {status} after {LONGEST_WAIT} s; see the job's other machines, "
                    f"or set MASTER_ADDR"
                )
            if not told:
                print(f"waiting for {name}, which is {status}", file=sys.stderr)
                told = True
            sleep(PAUSE)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name} tells no first host ({error!r}); set MASTER_ADDR") from None


def _read(path: Path) -> tuple[str, list[str]]:
    """Return a table's status and hosts; none as long as it is not completed."""
    file = file_of(path)
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if file == path:
            raise
        return "empty", []
    if "server_list" in table:
        servers = sorted(table["server_list"], key=_lowest_rank)
    elif "group_list" in table:
        servers = [
            instance
            for group in table["group_list"]
            for instance in sorted(group["instance_list"], key=_pod_number)
        ]
    else:
        raise ValueError("it holds neither server_list nor group_list")
    status = table.get("status", "completed")
    if status != "completed":
        return repr(status), []
    if not servers:
        raise ValueError("it lists no server")
    hosts = [str(server.get("host_ip") or server["server_id"]) for server in servers]
    if not all(hosts):
        raise ValueError("it lists a server without an address")
    return status, hosts


def _lowest_rank(server: dict) -> int:
    ranks = (int(device["rank_id"]) for device in server.get("device", ()) if "rank_id" in device)
    return min(ranks, default=0)


def _pod_number(instance: dict) -> int:
    """Return the number that ends a pod's name, by which ModelArts' launcher counts the ranks."""
    number = str(instance.get("pod_name", "")).rpartition("-")[2]
    return int(number) if number.isdecimal() else 0
