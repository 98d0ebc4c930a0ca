"""How much memory there is: the machine's, a container's, what `ulimit -v` leaves."""

import os
import resource
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from runtime import memory

GIGABYTE = 10**9


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for control groups, on a machine with 100 GB free."""
    free = psutil.virtual_memory()._replace(available=100 * GIGABYTE)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "own")
    return tmp_path / "groups"


def version_2(folder: Path, most: str, used: int, caches: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {caches}\nactive_file 7\n")


def test_a_machine_without_control_groups(groups: Path) -> None:
    assert memory.available_memory() == 100 * GIGABYTE


def test_a_container_is_its_own_root(groups: Path) -> None:
    memory.OWN_CGROUPS.write_text("0::/\n")
    version_2(groups, str(8 * GIGABYTE), 3 * GIGABYTE, caches=GIGABYTE)
    assert memory.available_memory() == 6 * GIGABYTE


def test_a_container_that_sees_its_name_on_the_host(groups: Path) -> None:
    memory.OWN_CGROUPS.write_text("0::/docker/4f2a\n")
    version_2(groups, str(8 * GIGABYTE), 3 * GIGABYTE)
    assert memory.available_memory() == 5 * GIGABYTE


@pytest.mark.parametrize("name", [b"J\xf6rg", b"docker:4f:2a"])
def test_the_name_of_a_group_may_be_any_bytes(groups: Path, name: bytes) -> None:
    memory.OWN_CGROUPS.write_bytes(b"0::/%b\n" % name)
    version_2(groups / os.fsdecode(name), str(8 * GIGABYTE), 3 * GIGABYTE)
    assert memory.available_memory() == 5 * GIGABYTE


def test_without_proc_it_is_all_that_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", missing)
    assert memory.available_memory() > GIGABYTE / 2


def test_the_tightest_of_nested_groups_counts(groups: Path) -> None:
    memory.OWN_CGROUPS.write_text("0::/user/session\n")
    version_2(groups / "user", str(8 * GIGABYTE), 6 * GIGABYTE)
    version_2(groups / "user/session", "max", GIGABYTE)
    assert memory.available_memory() == 2 * GIGABYTE


def test_control_groups_of_version_1(groups: Path) -> None:
    memory.OWN_CGROUPS.write_text("3:cpu,cpuacct:/b\n2:memory:/a\n1:name=systemd:/c\n")
    group = groups / "memory/a"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{4 * GIGABYTE}\n")
    (group / "memory.usage_in_bytes").write_text(f"{3 * GIGABYTE}\n")
    (group / "memory.stat").write_text("inactive_file 500\ntotal_inactive_file 900\n")
    assert memory.available_memory() == GIGABYTE + 500


def test_a_group_that_tells_nothing_is_left_out(groups: Path) -> None:
    memory.OWN_CGROUPS.write_text("0::/a\n")
    version_2(groups, str(8 * GIGABYTE), 3 * GIGABYTE)
    version_2(groups / "a", str(2 * GIGABYTE), GIGABYTE)
    (groups / "a/memory.stat").write_text("anon 5\n")
    assert memory.available_memory() == 5 * GIGABYTE


def test_more_used_than_allowed_leaves_nothing(groups: Path) -> None:
    memory.OWN_CGROUPS.write_text("0::/\n")
    version_2(groups, str(GIGABYTE), 2 * GIGABYTE)
    assert memory.available_memory() == 0


def test_ulimit_counts_what_the_process_holds(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = psutil.Process().memory_info()  # once: threads that end and garbage give some back
    process = SimpleNamespace(memory_info=lambda: held)
    monkeypatch.setattr(psutil, "Process", lambda: process)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (held.vms + GIGABYTE, -1))
    assert memory.available_memory() == GIGABYTE
