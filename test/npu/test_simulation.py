"""The simulated NPUs themselves: that they compute, refuse and count as cards do.

The checks under inside/ run in the simulation, all of one simulation in one process.
"""

import sys
from pathlib import Path

import pytest
from fake_cann import build
from simulator import Simulator

INSIDE = Path(__file__).parent / "inside"
PATHS = f"pythonpath={INSIDE} test/unit"
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", PATHS]


def test_a_card_and_apex_on_it(each_npu: Simulator) -> None:
    result = each_npu.run([*PYTEST, *sorted(INSIDE.glob("check_*.py"))], devices=2).checked()
    assert " passed" in result.stdout
    assert " failed" not in result.stdout
    assert result.kernel_calls["convolution.default"] > 100
    assert result.kernel_calls["convolution_backward.default"] > 100
    assert {"O1", "O2"} <= {call["opt_level"] for call in result.apex_initialize}


@pytest.mark.parametrize("soc", ["Ascend910A", "Ascend910_9391"])
def test_other_chips(each_npu: Simulator, soc: str) -> None:
    """On 910A apex finds an overflow by the flag; convolutions are not the CPU's there."""
    checks = [INSIDE / "check_chip.py"]
    if soc == "Ascend910A":
        checks += [INSIDE / "check_apex.py", "-k", "not plain_twins and not static_scale"]
    result = each_npu.run([*PYTEST, *checks], devices=2, soc=soc).checked()
    assert " passed" in result.stdout
    assert result.kernel_calls["npu_get_float_status"] > 0 or soc != "Ascend910A"


def test_a_chip_that_nobody_knows(each_npu: Simulator) -> None:
    code = "import torch; torch.ones(1).npu()"
    result = each_npu.run([sys.executable, "-c", code], soc="Ascend910C")
    assert result.returncode != 0
    assert "Unsupported soc version" in result.stderr


def test_two_processes_over_hccl(each_npu: Simulator) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    here = ["--standalone", "--local-addr=127.0.0.1"]
    result = each_npu.run([*torchrun, *here, INSIDE / "two_ranks.py"], devices=2).checked()
    ranks = {process["rank"]: process for process in result.processes if process["rank"]}
    assert sorted(ranks) == ["0", "1"]
    for process in ranks.values():
        assert process["kernel_calls"]["convolution.default"] > 0
        assert process["collective_calls"]["allreduce"] > 0
        assert process["apex_initialize"][0]["combine_ddp"] is True


def test_no_card(npu: Simulator) -> None:
    code = """
import torch
print(torch.npu.is_available(), torch.npu.device_count())
torch.ones(1).npu()
"""
    result = npu.run([sys.executable, "-c", code], devices=0)
    assert result.stdout.splitlines()[0] == "False 0"
    assert result.returncode == 1
    assert not result.kernel_calls


def test_an_old_chip_without_apex_on_two_of_eight_cards(npu: Simulator) -> None:
    """Ascend 910A has no bfloat16; ASCEND_RT_VISIBLE_DEVICES numbers the cards anew."""
    code = """
import importlib.util, torch
print(torch.npu.device_count(), torch.npu.get_device_name(0), torch.npu.is_bf16_supported())
print(importlib.util.find_spec("apex"))
x = torch.ones(2, device="npu:1")
print((x + 1).tolist())
x.bfloat16() + 1
"""
    result = npu.run(
        [sys.executable, "-c", code],
        devices=8,
        soc="Ascend910A",
        apex=False,
        ASCEND_RT_VISIBLE_DEVICES="2,5",
    )
    assert result.stdout.splitlines()[:3] == ["2 Ascend910A False", "None", "[2.0, 2.0]"]
    assert result.returncode == 1
    assert "no kernel for bfloat16" in result.stderr


@pytest.mark.parametrize(
    ("visible", "count"),
    [("", 0), ("3,1", 0), ("1,1", 0), ("1, 2,3", 1), ("1,9,2", 1), ("1,2,", 2)],
)
def test_visible_cards_are_those_that_torch_npu_reads(
    each_npu: Simulator, visible: str, count: int
) -> None:
    """By torch_npu's own _parse_visible_devices and _device_count_ascend_hal."""
    code = "import torch, torch_npu; print(torch.npu.device_count())"
    command = [sys.executable, "-c", code]
    result = each_npu.run(command, devices=4, ASCEND_RT_VISIBLE_DEVICES=visible).checked()
    assert result.stdout == f"{count}\n"


def test_ci_insists_on_the_real_torch_npu(npu: Simulator) -> None:
    """Another run, forced onto the pure-Python device, says so, and fails under CI."""
    one_test = [*PYTEST, Path(__file__), "-k", "hangs"]
    for ci, status in (("", 0), ("true", 1)):
        result = npu.run(["env", "NPU_SIM_WAY=pure", f"CI={ci}", *one_test])
        assert result.returncode == status
        summary = "NPU tests ran on: the pure-Python device (NPU_SIM_WAY=pure)"
        assert summary in result.stdout


def test_a_torch_that_torch_npu_aborts_beside_gets_the_other_simulation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NPU_SIM_WAY", raising=False)
    monkeypatch.setattr(build, "cuda_version", lambda: "13.0")
    simulator = Simulator.best()
    assert simulator.way == "pure"
    assert simulator.reason == "torch_npu 2.13.0 aborts beside a torch for CUDA 13.0"


def test_the_simulation_stays_in_its_processes(npu: Simulator) -> None:
    import importlib.util  # noqa: PLC0415

    assert npu.run(["true"]).returncode == 0
    assert importlib.util.find_spec("torch_npu") is None


def test_a_command_that_hangs_is_ended_with_its_children(npu: Simulator) -> None:
    result = npu.run(["bash", "-c", "sleep 60 & wait"], timeout=0.5)
    assert result.returncode < 0
    assert "ended after 0.5 s" in result.stderr


def test_a_fork_is_like_a_process(npu: Simulator, tmp_path: Path) -> None:
    """With its own environment, output, status and counts, once for each command."""
    script = tmp_path / "script.py"
    script.write_text("""
import os, sys, torch
print(sys.argv[1:], os.environ.get("MORE"), torch.ones(2, device="npu").add(1).tolist())
sys.exit(int(sys.argv[1]) or "no number")
""")
    first = npu.fork(script, "3", MORE="a")
    second = npu.fork(script, "0")
    assert (first.returncode, second.returncode) == (3, 1)
    assert first.stdout == "['3'] a [2.0, 2.0]\n"
    assert second.stdout == "['0'] None [2.0, 2.0]\n"
    assert "no number" not in first.stderr
    assert second.stderr.endswith("no number\n")
    assert first.host_waits == second.host_waits == 1
