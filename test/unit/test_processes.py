"""Which process and which card this is, by torchrun's variables and the platform's."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import types
import warnings
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
from commands import HANG, ROOT

from runtime import device, errors
from runtime.distributed import Launch, World, joined, read_environment
from runtime.errors import RunError, UserError

VARIABLES = [
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "RANK_ID", "RANK_SIZE", "RANK_TABLE_FILE",
    "VC_WORKER_HOSTS", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE", "ASCEND_DEVICE_ID",
    "NPU_CALCULATE_DEVICE", "ASCEND_RT_VISIBLE_DEVICES", "MA_NUM_GPUS", "MA_NUM_HOSTS",
]  # fmt: skip


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that afterwards it is again as it was
        monkeypatch.delenv(name)
    return monkeypatch


def set_all(variables: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        variables.setenv(name, value)


def test_deterministic_algorithms_and_what_libraries_read_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the user has set stays."""
    environment, asked, filling = {"HCCL_DETERMINISTIC": "strict"}, [], types.SimpleNamespace()
    filling.fill_uninitialized_memory = True
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setattr(torch.utils, "deterministic", filling, raising=False)
    device.be_deterministic()
    assert environment == {"HCCL_DETERMINISTIC": "strict", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    assert asked == [True]
    assert not filling.fill_uninitialized_memory


@pytest.mark.parametrize(
    ("built", "there", "why"),
    [
        (False, True, "this PyTorch was built without CUDA"),
        (True, False, "PyTorch finds no GPU or no driver"),
        (True, True, ""),
    ],
)
def test_why_there_is_no_gpu(
    built: bool,
    there: bool,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    def is_available() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return there

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert device.why_no_cuda() == why
    assert not recwarn


@pytest.mark.parametrize(
    ("made_for", "capabilities", "runs"),
    [
        ("sm_75 sm_80 sm_90", [(6, 1)], False),
        ("sm_75 sm_80 sm_90", [(7, 0)], False),
        ("sm_75 sm_80 sm_90", [(7, 5)], True),
        ("sm_75 sm_80 sm_90", [(8, 9)], True),
        ("sm_75 sm_80 sm_90", [(12, 0)], False),
        ("sm_80 sm_90a compute_90", [(12, 0)], True),
        ("sm_80 compute_90", [(7, 0)], False),
        ("sm_100 sm_120f", [(12, 1)], True),
        ("sm_80", [(6, 1), (8, 6)], True),
        ("", [(6, 1)], True),
    ],
)
def test_a_gpu_that_pytorch_has_no_code_for(
    made_for: str,
    capabilities: list[tuple[int, int]],
    runs: bool,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    """It counts as available, and the first operation on it fails."""

    def get_device_capability(gpu: int) -> tuple[int, int]:
        warnings.warn("Found GPU0 which is of compute capability (CC) 6.1.", stacklevel=1)
        return capabilities[gpu]

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", made_for.split)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", get_device_capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old GPU")
    major, minor = capabilities[0]
    version = torch.__version__
    why = f"PyTorch {version} has no code for Old GPU (sm_{major}{minor}), only for {made_for}"
    assert device.why_no_cuda() == ("" if runs else why)
    assert not recwarn


def test_a_gpu_of_amd_is_known_by_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which PyTorch for ROCm gives like those of NVIDIA: an MI250 has 9.0, an RX 6800 10.3."""
    monkeypatch.setattr(torch.version, "hip", "6.2.41133")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["gfx90a", "gfx1030"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=0: (10, 3))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert device.why_no_cuda() == ""
    assert not device.card_has_bf16(torch.device("cuda"))


@pytest.mark.parametrize(
    ("units", "bf16"),
    [({}, False), ({"avx512_bf16": True, "amx_bf16": False}, True), ({"amx_bf16": True}, True)],
)
def test_units_of_the_cpu_for_bf16(
    units: dict[str, bool], bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    assert device.has_bf16() == bf16
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not device.has_bf16()


def master() -> tuple[str, str]:
    return os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]


def test_alone(variables: pytest.MonkeyPatch) -> None:
    assert read_environment() == Launch(0, 1)
    set_all(variables, RANK_SIZE="1", RANK_ID="0")
    assert read_environment() == Launch(0, 1)
    set_all(variables, RANK="3")  # of another launcher: no WORLD_SIZE
    assert read_environment() == Launch(0, 1)
    assert "MASTER_PORT" not in os.environ


def test_torchrun_wins(variables: pytest.MonkeyPatch) -> None:
    set_all(variables, RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", RANK_SIZE="8", RANK_ID="7")
    set_all(variables, RANK_TABLE_FILE="/t.json", MASTER_ADDR="first", MASTER_PORT="29500")
    assert read_environment() == Launch(3, 4, 1)
    assert "RANK_TABLE_FILE" not in os.environ  # torch_npu would build HCCL from it


@pytest.mark.parametrize(
    ("values", "launch"), [(("0", "2", "0"), Launch(0, 2, 0)), (("", "", ""), Launch(0, 1, None))]
)
def test_the_first_process_of_torchrun(
    variables: pytest.MonkeyPatch, values: tuple[str, ...], launch: Launch
) -> None:
    set_all(variables, **dict(zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), values, strict=True)))
    set_all(variables, MASTER_ADDR="first", MASTER_PORT="29500")
    assert read_environment() == launch


TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "first", "MASTER_PORT": "29500"}
ASCEND = {"RANK_ID": "0", "RANK_SIZE": "2", "MASTER_ADDR": "first"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (TORCHRUN | {"RANK": "2"}, "RANK=2 with WORLD_SIZE=2; ranks count from 0"),
        (TORCHRUN | {"MASTER_ADDR": ""}, "MASTER_ADDR is not set, which WORLD_SIZE=2 needs"),
        (TORCHRUN | {"MASTER_PORT": ""}, "MASTER_PORT is not set, which WORLD_SIZE=2 needs"),
        (TORCHRUN | {"MASTER_PORT": "99999"}, "MASTER_PORT=99999 is no port; expected 1 to 65535"),
        (ASCEND | {"RANK_ID": "2"}, "RANK_ID=2 with RANK_SIZE=2; ranks count from 0"),
        ({"RANK_SIZE": "2"}, "RANK_ID is not set, which RANK_SIZE=2 needs"),
        (ASCEND | {"MASTER_PORT": "abc"}, "MASTER_PORT: 'abc' is not a whole number"),
        (ASCEND | {"MASTER_PORT": "0"}, "MASTER_PORT=0 is no port"),
    ],
)
def test_what_a_launcher_says_wrong(
    variables: pytest.MonkeyPatch, values: dict[str, str], message: str
) -> None:
    """Processes would wait half an hour for each other, or end in a traceback."""
    set_all(variables, **values)
    with pytest.raises(UserError, match=message):
        read_environment()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A folder with the rank table of two machines."""
    servers = [{"server_id": "10.1.2.3"}, {"server_id": "10.1.2.4"}]
    (tmp_path / "jobstart_hccl.json").write_text(json.dumps({"server_list": servers}))
    return tmp_path


@pytest.mark.parametrize("name", ["", "jobstart_hccl.json"])
def test_ascend_launch_with_a_rank_table(
    variables: pytest.MonkeyPatch, table: Path, name: str
) -> None:
    set_all(variables, RANK_SIZE="16", RANK_ID="9", RANK_TABLE_FILE=str(table / name))
    assert read_environment() == Launch(9, 16)
    assert master() == ("10.1.2.3", "29500")
    assert os.environ["LOCAL_WORLD_SIZE"] == "8"
    assert os.environ["RANK_TABLE_FILE"] == str(table / "jobstart_hccl.json")  # HCCL's own need


def test_an_address_that_is_set_makes_the_table_needless(variables: pytest.MonkeyPatch) -> None:
    set_all(variables, RANK_SIZE="16", RANK_ID="9", RANK_TABLE_FILE="/gone", MA_NUM_HOSTS="2")
    set_all(variables, MASTER_ADDR="my.host", VC_WORKER_HOSTS="first,second,third")
    assert read_environment() == Launch(9, 16)
    assert master() == ("my.host", "29500")
    assert os.environ["LOCAL_WORLD_SIZE"] == "8"
    assert "RANK_TABLE_FILE" not in os.environ


@pytest.mark.parametrize(("cards", "expected"), [("4", "4"), ("", "8")])
def test_the_number_of_cards_that_the_platform_gives(
    variables: pytest.MonkeyPatch, table: Path, cards: str, expected: str
) -> None:
    set_all(variables, RANK_SIZE="16", RANK_ID="9", RANK_TABLE_FILE=str(table), MA_NUM_GPUS=cards)
    read_environment()
    assert os.environ["LOCAL_WORLD_SIZE"] == expected


def test_ascend_launch_on_several_hosts(variables: pytest.MonkeyPatch) -> None:
    set_all(variables, RANK_SIZE="16", RANK_ID="0", VC_WORKER_HOSTS="first,second")
    set_all(variables, RANK_TABLE_FILE="/gone")
    read_environment()
    assert master()[0] == "first"
    assert os.environ["LOCAL_WORLD_SIZE"] == "8"
    assert "RANK_TABLE_FILE" not in os.environ  # nobody waits until it is complete


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is asked of torch.distributed as processes join and leave; nothing is joined."""
    asked: list[object] = []
    monkeypatch.setattr(dist, "init_process_group", lambda *kind, **how: asked.append((kind, how)))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: asked.append("left"))
    return asked


class Two(World):
    """One of two processes, with what the other says."""

    theirs = 0

    def highest(self, value: int) -> int:
        return max(value, self.theirs)


def test_what_the_first_process_does_alone_ends_all_where_it_fails() -> None:
    """The others would wait for it: half an hour, where the platform starts each by itself."""

    def fail() -> None:
        raise UserError("the folder cannot be written")

    first, second = (Two(torch.device("cpu"), rank, 2) for rank in (0, 1))
    assert first.by_main(lambda: 7) == 7
    assert second.by_main(fail) is None
    with pytest.raises(UserError, match="the folder cannot be written"):
        first.by_main(fail)
    Two.theirs = 1
    with pytest.raises(RunError, match="the first process of the training ended, see its log"):
        second.by_main(fail)
    assert World(torch.device("cpu")).by_main(lambda: 7) == 7


class Asked(World):
    """Notes what it is asked to agree on."""

    values: ClassVar[list[int]] = []

    def highest(self, value: int) -> int:
        self.values.append(value)
        return value


def test_texts_are_told_apart_by_numbers_that_every_device_holds_exactly() -> None:
    world = Asked(torch.device("cpu"))
    assert all(world.same(text) for text in ("T91 (5 bytes)", "T91 (6 bytes)", "T91 (5 bytes)"))
    first, second, again = world.values
    assert first == again != second
    assert max(world.values) < 2**24


def test_a_port_that_another_training_has(variables: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        set_all(variables, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        with (
            pytest.raises(RunError) as error,
            joined(Launch(0, 2), torch.device("cpu")),
        ):
            pass
    start, end = str(error.value).split(" (", 1)
    assert start == f"cannot meet the other processes at 127.0.0.1:{port}"
    assert end.endswith("); is another training using this port? MASTER_PORT names one")
    assert "\n" not in end


@pytest.mark.command
def test_a_process_that_waits_for_others_says_so_and_ends_at_ctrl_c() -> None:
    """PyTorch waits in C++, where Python hears of no signal, and for half an hour."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    alone = {"RANK_ID": "0", "RANK_SIZE": "2", "MASTER_PORT": str(port)}
    command = [sys.executable, ROOT / "train.py", "--data_url=dataset", "--device=cpu"]
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *command],  # what runs in the background ignores it
        env={**os.environ, **alone}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr.readline() == (
            f"waiting for the other processes at 127.0.0.1:{port}, 2 in all\n"
        )
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=HANG)[1] == ""
        assert process.returncode == -signal.SIGINT
    finally:
        process.kill()


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_join_and_leave_and_the_first_alone_prints(
    group: list[object], capsys: pytest.CaptureFixture, rank: int
) -> None:
    """They wait half an hour for each other: the first compilation on a card may take long."""

    class StopError(Exception):
        pass

    with pytest.raises(StopError), joined(Launch(rank, 2), torch.device("cpu")) as world:
        assert world == World(torch.device("cpu"), rank, 2)
        assert world.is_main == (rank == 0)
        how = {"rank": rank, "world_size": 2, "timeout": timedelta(minutes=30)}
        assert group == [(("gloo",), how)]
        print("said")
        raise StopError
    assert group[1:] == ["left"]
    print("afterwards")
    assert capsys.readouterr().out.split() == ["said", "afterwards"][rank:]


@pytest.mark.parametrize(
    ("fails", "can_abort", "leaves"),
    [(True, True, ["aborted"]), (True, False, []), (False, True, ["left"])],
    ids=["a failure", "an older PyTorch", "the end"],
)
def test_a_process_that_fails_alone_does_not_wait_for_the_others(
    group: list[object],
    monkeypatch: pytest.MonkeyPatch,
    fails: bool,
    can_abort: bool,
    leaves: list[str],
) -> None:
    """NCCL's communicators are destroyed together, and the others wait for gradients."""
    abort = {"abort": lambda: group.append("aborted")} if can_abort else {}
    everyone = types.SimpleNamespace(WORLD=types.SimpleNamespace(**abort))
    monkeypatch.setattr(dist, "group", everyone)
    with (
        pytest.raises(RuntimeError) if fails else contextlib.nullcontext(),
        joined(Launch(1, 2), torch.device("cuda", 1)),
    ):
        if fails:
            raise RuntimeError("CUDA out of memory")
    assert group[0][0] == ("nccl",)
    assert group[1:] == leaves


def test_one_process_joins_none(group: list[object], capsys: pytest.CaptureFixture) -> None:
    with joined(Launch(), torch.device("meta")) as world:
        print("said")
    assert (world, group) == (World(torch.device("meta"), 0, 1), [])
    assert capsys.readouterr().out == "said\n"
    value, model = torch.ones(1), torch.nn.Linear(1, 1)
    assert (world.sum(value), world.highest(3), world.lowest(3)) == (value, 3, 3)
    assert world.wrap(model) is model


def test_what_two_processes_agree_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_reduce(values: torch.Tensor, operation: object = dist.ReduceOp.SUM) -> None:
        """Combine with what the other process has."""
        combine = {
            dist.ReduceOp.SUM: torch.add,
            dist.ReduceOp.MAX: torch.maximum,
            dist.ReduceOp.MIN: torch.minimum,
        }[operation]
        values.copy_(combine(values, torch.full_like(values, 5)))

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    world = World(torch.device("cpu"), 1, 2)
    values = torch.tensor([1.0, 2.0])
    assert world.sum(values) is values
    assert values.tolist() == [6, 7]
    assert [world.highest(value) for value in (3, 7)] == [5, 7]
    assert [world.lowest(value) for value in (3, 7)] == [3, 5]

    def refuse(values: torch.Tensor, _: object) -> None:
        raise NotImplementedError(values.device)

    monkeypatch.setattr(dist, "all_reduce", refuse)
    with pytest.raises(NotImplementedError, match="meta"):  # NCCL and HCCL take no other device's
        World(torch.device("meta"), 1, 2).highest(3)


@pytest.mark.parametrize(("kind", "ids"), [("cpu", None), ("cuda:3", [3])])
def test_gradients_are_averaged_on_the_card_of_the_process(
    monkeypatch: pytest.MonkeyPatch, kind: str, ids: list[int] | None
) -> None:
    monkeypatch.setattr(
        torch.nn.parallel, "DistributedDataParallel", lambda model, device_ids: (model, device_ids)
    )
    model = torch.nn.Linear(1, 1)
    assert World(torch.device(kind), 1, 4).wrap(model) == (model, ids)


def test_a_process_waits_for_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    for kind in ("cpu", "cuda:2"):
        World(torch.device(kind)).synchronize()
    assert waited == [torch.device("cuda:2")]


def test_cards_that_the_machines_do_not_share_evenly(variables: pytest.MonkeyPatch) -> None:
    set_all(variables, RANK_SIZE="9", RANK_ID="8", VC_WORKER_HOSTS="first,second")
    assert read_environment() == Launch(8, 9)
    assert os.environ["LOCAL_WORLD_SIZE"] == "5"


def test_one_machine_without_any_address(variables: pytest.MonkeyPatch) -> None:
    set_all(variables, RANK_SIZE="2", RANK_ID="1")
    assert read_environment() == Launch(1, 2)
    assert master() == ("127.0.0.1", "29500")
    assert os.environ["LOCAL_WORLD_SIZE"] == "2"


def test_what_is_set_beforehand_stays(variables: pytest.MonkeyPatch) -> None:
    set_all(variables, RANK_SIZE="4", RANK_ID="0", MASTER_PORT="1234", LOCAL_WORLD_SIZE="3")
    set_all(variables, MASTER_ADDR="my.host")
    assert read_environment() == Launch(0, 4)
    assert master() == ("my.host", "1234")
    assert os.environ["LOCAL_WORLD_SIZE"] == "3"


def test_what_is_set_to_nothing_is_not_set(variables: pytest.MonkeyPatch) -> None:
    empty = dict.fromkeys(("MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE"), "")
    set_all(variables, RANK_SIZE="4", RANK_ID="0", VC_WORKER_HOSTS="first,second", **empty)
    assert read_environment() == Launch(0, 4)
    assert master() == ("first", "29500")
    assert os.environ["LOCAL_WORLD_SIZE"] == "2"


def test_contradictions_are_errors(variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_all(variables, RANK_SIZE="2", RANK_ID="2")
    with pytest.raises(UserError, match="RANK_ID=2 with RANK_SIZE=2"):
        read_environment()
    set_all(variables, RANK_SIZE="0", RANK_ID="0")
    with pytest.raises(UserError, match="RANK_ID=0 with RANK_SIZE=0"):
        read_environment()
    set_all(variables, RANK_SIZE="2", RANK_ID="1", RANK_TABLE_FILE=str(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"none.json.*set MASTER_ADDR"):
        read_environment()
    set_all(variables, RANK_SIZE="two")
    with pytest.raises(UserError, match="RANK_SIZE: 'two' is not a whole number, 0 or more"):
        read_environment()


@pytest.mark.parametrize(
    ("values", "card"),
    [
        ({}, 0),
        ({"ASCEND_DEVICE_ID": "5"}, 5),
        ({"NPU_CALCULATE_DEVICE": "3"}, 3),
        ({"ASCEND_DEVICE_ID": "5", "NPU_CALCULATE_DEVICE": "3"}, 5),
        ({"ASCEND_RT_VISIBLE_DEVICES": "5,6", "ASCEND_DEVICE_ID": "5"}, 0),
        ({"ASCEND_RT_VISIBLE_DEVICES": "5,6", "ASCEND_DEVICE_ID": "6"}, 1),
        ({"ASCEND_RT_VISIBLE_DEVICES": "5,6", "ASCEND_DEVICE_ID": "0"}, 0),
        ({"ASCEND_RT_VISIBLE_DEVICES": "4,5,6,7", "ASCEND_DEVICE_ID": "2"}, 2),
        ({"ASCEND_RT_VISIBLE_DEVICES": "1,2,3", "ASCEND_DEVICE_ID": "1"}, 1),
        ({"ASCEND_RT_VISIBLE_DEVICES": "5,6"}, 0),
        ({"ASCEND_RT_VISIBLE_DEVICES": "5", "ASCEND_DEVICE_ID": "2"}, 0),
    ],
)
def test_the_card_that_the_platform_names(
    variables: pytest.MonkeyPatch, values: dict[str, str], card: int
) -> None:
    set_all(variables, **values)
    assert device._npu_index() == card


def test_a_card_that_is_not_visible(variables: pytest.MonkeyPatch) -> None:
    set_all(variables, ASCEND_RT_VISIBLE_DEVICES="5,6", ASCEND_DEVICE_ID="7")
    with pytest.raises(UserError, match=r"names card 7, which is neither .*_DEVICES=5,6$"):
        device._npu_index()


def test_a_card_that_is_no_number(variables: pytest.MonkeyPatch) -> None:
    set_all(variables, NPU_CALCULATE_DEVICE="ASCEND_DEVICE_ID")
    with pytest.raises(UserError, match="NPU_CALCULATE_DEVICE: 'ASCEND_DEVICE_ID' is not"):
        device._npu_index()


@pytest.mark.parametrize(
    ("kind", "variable"), [("npu", "ASCEND_DEVICE_ID"), ("cuda", "CUDA_VISIBLE_DEVICES")]
)
def test_more_processes_than_cards(
    monkeypatch: pytest.MonkeyPatch, kind: str, variable: str
) -> None:
    monkeypatch.setattr(device, f"why_no_{kind}", lambda: "")
    monkeypatch.setattr(torch, "device", lambda *words: ":".join(map(str, words)))
    monkeypatch.setattr(device, "module", lambda _: types.SimpleNamespace(device_count=lambda: 2))
    with pytest.raises(UserError) as error:
        device.choose_device(kind, local_rank=2)
    assert str(error.value) == (
        f"{kind}:2 is not there, this machine shows 2; see {variable} and the number of processes"
    )


def test_a_card_that_fails_at_its_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def set_device(_: str) -> None:
        raise RuntimeError("NPU function error: aclrtSetDevice, error code is 507033\n[ERROR] more")

    card = types.SimpleNamespace(device_count=lambda: 1, set_device=set_device)
    monkeypatch.setattr(device, "why_no_npu", lambda: "")
    monkeypatch.setattr(torch, "device", lambda *words: ":".join(map(str, words)))
    monkeypatch.setattr(device, "module", lambda _: card)
    with pytest.raises(RunError) as error:
        device.choose_device("npu", local_rank=0)
    why = "NPU function error: aclrtSetDevice, error code is 507033"
    assert str(error.value) == f"npu:0 cannot be used ({why}); see train.py --check"


@pytest.mark.parametrize(
    ("there", "taken", "reason"),
    [
        ("npu cuda", "npu", "auto"),
        ("cuda", "cuda", "auto; no npu: why npu"),
        ("", "cpu", "auto; no npu: why npu; no cuda: why cuda"),
    ],
)
def test_the_first_device_that_can_be_used_is_taken(
    monkeypatch: pytest.MonkeyPatch, there: str, taken: str, reason: str
) -> None:
    for kind in ("npu", "cuda"):
        why = "" if kind in there else f"why {kind}"
        monkeypatch.setattr(device, f"why_no_{kind}", lambda why=why: why)
    monkeypatch.setattr(device, "_use", lambda *words: words)
    assert device.choose_device("auto", 5) == device.Choice((taken, 5), reason)


@pytest.mark.usefixtures("handlers")
def test_nohup_keeps_a_command_alive() -> None:
    every = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    assert errors.ending_signals() == every
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert errors.ending_signals() == every[:2]


@pytest.mark.parametrize(("capability", "units"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_that_emulates_bf16_has_none(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], units: bool
) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert device.card_has_bf16(torch.device("cuda")) == units


@pytest.mark.parametrize(
    ("kind", "units", "fastest"),
    [
        ("npu", True, torch.bfloat16),
        ("npu", False, torch.float16),
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float32),
        ("cpu", True, torch.float32),
    ],
)
def test_the_type_that_small_matrices_are_multiplied_in(
    monkeypatch: pytest.MonkeyPatch, kind: str, units: bool, fastest: torch.dtype
) -> None:
    monkeypatch.setattr(device, "card_has_bf16", lambda _: units)
    assert device.matrix_type(types.SimpleNamespace(type=kind)) == fastest


@pytest.mark.parametrize(("kind", "allowed"), [("npu", False), ("cuda", True)])
def test_an_npu_stores_what_comes_to_it_plainly(
    monkeypatch: pytest.MonkeyPatch, kind: str, allowed: bool
) -> None:
    config = types.SimpleNamespace(allow_internal_format=True)
    monkeypatch.setattr(device, "module", lambda _: types.SimpleNamespace(config=config))
    device.keep_plain_formats(types.SimpleNamespace(type=kind))
    assert config.allow_internal_format == allowed


def test_an_overflow_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [True]
    card = types.SimpleNamespace(
        utils=types.SimpleNamespace(is_support_inf_nan=lambda: False),
        get_npu_overflow_flag=lambda: flags[0],
        clear_npu_overflow_flag=lambda: flags.insert(0, False),
    )
    monkeypatch.setattr(device, "module", lambda _: card)
    npu = types.SimpleNamespace(type="npu")
    assert [device.overflowed(npu) for _ in range(2)] == [True, False]


def test_the_cpu_is_always_there() -> None:
    chosen = device.choose_device("cpu")
    assert (chosen.value, chosen.reason) == (torch.device("cpu"), "as asked")
    assert device.free_memory(torch.device("cpu")) > 1e6


def test_the_threads_that_are_told_are_those_that_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all that the machine has: OMP_NUM_THREADS may be lower."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert device.describe(torch.device("cpu")) == "CPU, 7 threads"


def test_only_the_memory_that_is_free_on_a_card_counts(variables: pytest.MonkeyPatch) -> None:
    free, total = 3 << 30, 80 << 30  # another program has the rest
    variables.setattr(torch.cuda, "mem_get_info", lambda *_: (free, total))
    set_all(variables, LOCAL_WORLD_SIZE="8")  # each process has its own card
    assert device.free_memory(torch.device("cuda")) == free


def test_torch_npu_that_would_abort_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a torch for CUDA; the process would end without a word that helps."""
    imported: list[str] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: types.SimpleNamespace())
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.13.0")
    monkeypatch.setattr(importlib, "import_module", imported.append)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert device.why_no_npu() == (
        "torch_npu 2.13.0 aborts beside a torch for CUDA 13.0; see train.py --check"
    )
    assert not imported


@pytest.mark.parametrize("kind", [ImportError, OSError, RuntimeError])
@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("libhccl.so: cannot open shared object file", "source CANN's set_env.sh first"),
        ("libtorch_npu.so: undefined symbol: _ZN2at4_ops", "see train.py --check"),
    ],
)
def test_why_torch_npu_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, reason: str, remedy: str, kind: type[Exception]
) -> None:
    def load(_: str) -> None:
        raise kind(f"{reason}\nand more")

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: types.SimpleNamespace())
    monkeypatch.setattr(importlib, "import_module", load)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert device.why_no_npu() == f"torch_npu cannot be loaded ({reason}); {remedy}"


@pytest.mark.parametrize(
    ("visible", "shown"),
    [({}, ""), ({"ASCEND_RT_VISIBLE_DEVICES": ""}, " and ASCEND_RT_VISIBLE_DEVICES=")],
    ids=["as they are", "all hidden"],
)
def test_cards_that_a_variable_hides(
    variables: pytest.MonkeyPatch, visible: dict[str, str], shown: str
) -> None:
    set_all(variables, **visible)
    card = types.SimpleNamespace(is_available=lambda: False)
    variables.setattr(importlib.util, "find_spec", lambda _: types.SimpleNamespace())
    variables.setattr(importlib, "import_module", lambda _: None)
    variables.setattr(torch.version, "cuda", None)
    variables.setattr(torch, "device", lambda name: name)
    variables.setattr(device, "module", lambda _: card)
    assert device.why_no_npu() == f"torch_npu finds no card; see npu-smi info{shown}"


def test_processes_share_the_memory_of_their_machine(variables: pytest.MonkeyPatch) -> None:
    variables.setattr(device, "available_memory", lambda: 1_000_000)
    cpu = torch.device("cpu")
    assert device.free_memory(cpu) == 1e6
    set_all(variables, LOCAL_WORLD_SIZE="8")
    assert device.free_memory(cpu) == 1e6 / 8
    set_all(variables, LOCAL_WORLD_SIZE="all")
    with pytest.raises(UserError, match="LOCAL_WORLD_SIZE: 'all' is not a whole number"):
        device.free_memory(cpu)


PAGE_FAULTS = """
import resource, torch
from runtime import device
{}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        maps = [torch.ones(2_000_000) for _ in range(4)]
        del maps
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def test_a_cpu_keeps_the_memory_that_a_step_frees() -> None:
    """Or each step takes its activations from the system anew, page by page."""
    returning = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}  # glibc's own first value
    plain, kept = (
        int(subprocess.check_output(
            [sys.executable, "-c", PAGE_FAULTS.format(line)], cwd=ROOT, env=returning
        ))
        for line in ("", "device.choose_device('cpu')")
    )  # fmt: skip
    assert plain > 10_000  # 4 times 8 MB in pages of 4 KB are 7,813
    assert kept < 100


DENORMALS = """
import torch
from runtime import device
torch.set_num_threads(2)
{}
print(int((torch.full((2_000_000,), 1e-30) * 1e-10).count_nonzero()))
"""


def test_a_cpu_takes_what_has_faded_for_nothing_on_every_thread() -> None:
    """Or what is left of a map's gradients after it died slows each step."""
    plain, flushed = (
        int(subprocess.check_output([sys.executable, "-c", DENORMALS.format(line)], cwd=ROOT))
        for line in ("", "device.choose_device('cpu')")
    )
    assert (plain, flushed) == (2_000_000, 0)
