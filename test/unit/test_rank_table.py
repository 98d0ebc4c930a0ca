"""The hosts of an Ascend launch, read from the platform's rank table."""

import json
from pathlib import Path

import pytest
from clock import Clock

from runtime.errors import UserError
from runtime.rank_table import NAME, read_hosts


def server(address: str, *ranks: int, **more: object) -> dict:
    return {"server_id": address, "device": [{"rank_id": str(rank)} for rank in ranks], **more}


def by_servers(*servers: dict, **more: object) -> dict:
    return {"version": "1.0", "server_count": str(len(servers)), "server_list": servers, **more}


def by_instances(*addresses: str, status: str = "completed", **pods: str) -> dict:
    instances = [{"pod_name": f"pod{i}", "server_id": a} for i, a in enumerate(addresses)]
    instances += [{"pod_name": n.replace("_", "-"), "server_id": a} for n, a in pods.items()]
    group = {"group_name": "job", "instance_count": "2", "instance_list": instances}
    return {"status": status, "group_count": "1", "group_list": [group]}


FORMS = {
    "ids": (by_servers(server("10.0.0.7"), server("10.0.0.9")), ["10.0.0.7", "10.0.0.9"]),
    "addresses": (by_servers(server("node", host_ip="10.0.0.7")), ["10.0.0.7"]),
    "status": (by_servers(server("10.0.0.7", 0, 1), status="completed"), ["10.0.0.7"]),
    "ranks": (by_servers(server("10.0.0.9", 8, 9), server("10.0.0.7", 1, 0)),
              ["10.0.0.7", "10.0.0.9"]),
    "instances": (by_instances("10.0.0.7", "10.0.0.9"), ["10.0.0.7", "10.0.0.9"]),
    "pods": (by_instances(job_10="10.0.0.10", job_9="10.0.0.9", job_0="10.0.0.7"),
             ["10.0.0.7", "10.0.0.9", "10.0.0.10"]),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [NAME, "hccl.json"])
def test_hosts_of_every_form_in_a_folder_or_a_file(tmp_path: Path, form: str, name: str) -> None:
    table, hosts = FORMS[form]
    (tmp_path / name).write_text(json.dumps(table))
    assert read_hosts(tmp_path if name == NAME else tmp_path / name) == hosts


def test_a_table_that_is_not_completed_yet_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def write(status: str) -> None:
        (tmp_path / NAME).write_text(json.dumps(by_instances("first", status=status)))

    clock = Clock(lambda: write("initializing"), lambda: None, lambda: write("completed"))
    assert read_hosts(tmp_path, clock.monotonic, clock.sleep) == ["first"]
    assert clock.seconds > 0
    assert not clock.steps
    output = capsys.readouterr().err
    assert output.count("waiting") == 1
    assert str(tmp_path) in output


@pytest.mark.parametrize("status", ["initializing", ""])
def test_waiting_ends(tmp_path: Path, status: str) -> None:
    clock = Clock()
    if status:
        (tmp_path / NAME).write_text(json.dumps(by_instances("first", status=status)))
    with pytest.raises(UserError, match=r"after 600 s.*set MASTER_ADDR") as error:
        read_hosts(tmp_path, clock.monotonic, clock.sleep)
    assert clock.seconds == pytest.approx(600, abs=10)
    expected = repr(status) if status else "empty"
    assert f" is {expected} after" in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "it holds neither server_list nor group_list"),
        ('{"status": "completed"}', "it holds neither server_list nor group_list"),
        ('{"server_list": []}', "it lists no server"),
        ('{"server_list": [{"device": []}]}', "KeyError"),
        ('{"server_list": [null]}', "AttributeError"),
        ('{"server_list": [{"server_id": ""}]}', "it lists a server without an address"),
        ('{"status": "completed", "group_list": [{}]}', "KeyError"),
    ],
)
def test_a_table_that_tells_nothing(tmp_path: Path, text: str, why: str) -> None:
    table = tmp_path / "hccl.json"
    table.write_text(text)
    clock = Clock()
    with pytest.raises(UserError, match=rf"RANK_TABLE_FILE=.*hccl\.json.*{why}.*set MASTER_ADDR"):
        read_hosts(table, clock.monotonic, clock.sleep)
    assert not clock.seconds


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    clock = Clock()
    with pytest.raises(UserError, match=r"No such file or directory.*set MASTER_ADDR"):
        read_hosts(tmp_path / "none.json", clock.monotonic, clock.sleep)
    assert not clock.seconds


def test_a_folder_with_a_table_that_cannot_be_opened_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / NAME).symlink_to(NAME)  # as of a folder that may not be entered
    clock = Clock()
    with pytest.raises(UserError, match=r"Too many levels of symbolic links.*set MASTER_ADDR"):
        read_hosts(tmp_path, clock.monotonic, clock.sleep)
    assert not clock.seconds
