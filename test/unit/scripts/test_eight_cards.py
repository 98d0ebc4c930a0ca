"""The 8p scripts: torchrun, several machines, a platform that starts each card itself."""

import os
import shutil
from pathlib import Path

import pytest
from commands import HANG

from ascend import modelarts


@pytest.fixture
def launcher(repository, tmp_path: Path):
    """A repository whose torchrun only tells how it was started, and then is rank 0."""
    shutil.copy(repository.fake, repository.root / "test" / "torchrun.py")
    return repository


@pytest.mark.parametrize(
    ("script", "epochs", "batch"), [("full_8p", 500, 32), ("performance_8p", 10, 256)]
)
def test_eight_cards(launcher, script: str, epochs: int, batch: int):
    done = launcher.run(script)
    assert done.returncode == 0, done.stderr
    (call,) = launcher.calls()
    assert call["argv"] == [
        "--nproc-per-node=8",
        "--standalone",
        "--local-addr=127.0.0.1",
        str(launcher.root / "train.py"),
        f"--data_url={launcher.data}",
        f"--train_url={launcher.output() / 'ckpt'}",
        f"--num-epochs={epochs}",
        "--num-steps=0",
        f"--batch-size={batch}",
    ]
    assert call["env"]["RANK_SIZE"] == "8"
    assert int(call["env"]["OMP_NUM_THREADS"]) >= 1
    assert not {"ASCEND_DEVICE_ID", "NPU_CALCULATE_DEVICE", "RANK_ID"} & set(call["env"])
    kind = "acc" if script == "full_8p" else "perf"
    figures = launcher.figures(f"bs{batch}_8p_{kind}")
    assert (figures["RankSize"], figures["BatchSize"]) == ("8", str(batch))
    assert float(figures["ActualFPS"]) == batch * 8 / 0.004


@pytest.mark.parametrize(
    "nodes",
    [
        {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "ho st", "MASTER_PORT": "1234"},
        {"MA_NUM_HOSTS": "2", "VC_TASK_INDEX": "1", "VC_WORKER_HOSTS": "ho st,other"},
        {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "ho st",
         "MA_NUM_HOSTS": "3", "VC_TASK_INDEX": "2", "VC_WORKER_HOSTS": "a,b,c"},
    ],
)  # fmt: skip
def test_second_machine(launcher, nodes: dict[str, str]):
    done = launcher.run("full_8p", "--nproc=4", **nodes)
    assert done.returncode == 0, done.stderr
    (call,) = launcher.calls()
    port = nodes.get("MASTER_PORT", "29500")
    assert call["argv"][:5] == [
        "--nproc-per-node=4",
        "--nnodes=2",
        "--node-rank=1",
        "--master-addr=ho st",
        f"--master-port={port}",
    ]
    assert call["env"]["RANK_SIZE"] == "8"
    assert "Final" not in done.stdout  # the first machine has the figures
    assert (launcher.output("0_node1") / "train_0.log").is_file()


@pytest.mark.parametrize("options", [[], ["--nproc=2"]])
def test_the_number_of_cards_that_the_platform_gives(launcher, options: list[str]):
    done = launcher.run("full_8p", *options, MA_NUM_GPUS="4")
    assert done.returncode == 0, done.stderr
    (call,) = launcher.calls()
    cards = "2" if options else "4"
    assert call["argv"][0] == f"--nproc-per-node={cards}"
    assert call["env"]["RANK_SIZE"] == cards


def test_a_number_of_cards_that_is_none(launcher):
    done = launcher.run("full_8p", MA_NUM_GPUS="all")
    assert (done.returncode, done.stdout) == (2, "")
    assert "MA_NUM_GPUS=all is no whole number" in done.stderr


@pytest.mark.parametrize(
    ("platform", "cards"),
    [
        ({"RANK_SIZE": "2"}, "2"),
        ({"RANK_SIZE": "4", "NNODES": "2", "MASTER_ADDR": "a"}, "2"),
        ({"RANK_SIZE": "2", "MA_NUM_GPUS": "4"}, "4"),
        ({"RANK_SIZE": "1"}, "8"),
        ({"RANK_SIZE": "0"}, "8"),
    ],
)
def test_the_number_of_processes_that_the_platform_names(launcher, platform: dict, cards: str):
    done = launcher.run("full_8p", **platform)
    assert done.returncode == 0, done.stderr
    assert launcher.calls()[0]["argv"][0] == f"--nproc-per-node={cards}"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"NODE_RANK": "2"}, "NODE_RANK=2 with NNODES=2; machines count from 0"),
        ({"MASTER_PORT": "abc"}, "MASTER_PORT=abc is no whole number"),
        ({"MA_NUM_HOSTS": "x", "NNODES": ""}, "MA_NUM_HOSTS=x is no whole number"),
        ({"VC_TASK_INDEX": "x"}, "VC_TASK_INDEX=x is no whole number"),
        ({"NPU_CALCULATE_DEVICE": "x"}, "NPU_CALCULATE_DEVICE=x is no whole number"),
    ],
)
def test_what_the_platform_says_wrong(launcher, wrong: dict, message: str):
    done = launcher.run("full_8p", **({"NNODES": "2", "MASTER_ADDR": "a"} | wrong))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert not launcher.output().exists()


def test_torchrun_gets_no_rank_table(launcher):
    """torch_npu would build HCCL from it."""
    assert launcher.run("full_8p", RANK_TABLE_FILE="/t.json").returncode == 0
    assert "RANK_TABLE_FILE" not in launcher.calls()[0]["env"]


def test_first_machine(launcher):
    done = launcher.run("full_8p", NNODES="2", NODE_RANK="0", MASTER_ADDR="a")
    assert done.returncode == 0, done.stderr
    assert "--node-rank=0" in launcher.calls()[0]["argv"]
    assert launcher.final(done.stdout)
    assert launcher.figures("bs32_16p_acc")["RankSize"] == "16"  # in the folder of card 0


def test_one_machine_has_no_number(launcher):
    done = launcher.run("full_8p", NODE_RANK="1")
    assert launcher.final(done.stdout), done.stderr
    assert launcher.figures("bs32_8p_acc")


def test_threads_that_are_set_stay(launcher):
    assert launcher.run("full_8p", OMP_NUM_THREADS="3").returncode == 0
    assert launcher.calls()[0]["env"]["OMP_NUM_THREADS"] == "3"


def test_several_machines_need_the_first_ones_address(launcher):
    done = launcher.run("full_8p", NNODES="2")
    assert done.returncode == 2
    assert "needs MASTER_ADDR" in done.stderr


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("name", ["RANK_TABLE_FILE", "MASTER_ADDR", "VC_WORKER_HOSTS"])
def test_platform_starts_each_card_itself(launcher, rank: str, name: str):
    platform = {name: "/t.json", "RANK_SIZE": "2", "RANK_ID": rank}
    done = launcher.run("full_8p", ASCEND_DEVICE_ID=rank, **platform)
    assert done.returncode == 0, done.stderr
    (call,) = launcher.calls()
    assert call["argv"][0] == f"--data_url={launcher.data}"  # train.py, not torchrun
    assert call["argv"][1] == f"--train_url={launcher.output('0') / 'ckpt'}"
    assert platform.items() <= call["env"].items()
    assert call["env"]["ASCEND_DEVICE_ID"] == rank
    assert (launcher.output(rank) / f"train_{rank}.log").is_file()
    assert bool(launcher.final(done.stdout)) == (rank == "0")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_torchrun_starts_each_card_itself(launcher, rank: str):
    """As ModelArts does with MA_RUN_METHOD=torchrun, and MindCluster with one card a machine."""
    torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "a", "MASTER_PORT": "1234"}  # fmt: skip
    left = {"MA_NUM_GPUS": "2", "RANK_TABLE_FILE": "/t.json", "ASCEND_DEVICE_ID": "5"}
    done = launcher.run("full_8p", **torchrun, **left)
    assert done.returncode == 0, done.stderr
    (call,) = launcher.calls()
    assert call["argv"][0] == f"--data_url={launcher.data}"  # train.py, not another torchrun
    assert call["argv"][1] == f"--train_url={launcher.output('0') / 'ckpt'}"
    assert torchrun.items() <= call["env"].items()
    assert "RANK_TABLE_FILE" not in call["env"]
    assert (launcher.output(rank) / f"train_{rank}.log").is_file()
    assert bool(launcher.final(done.stdout)) == (rank == "0")
    if rank == "0":
        assert launcher.figures("bs32_2p_acc")["RankSize"] == "2"


def test_mindcluster_tells_machines_in_torchruns_words(launcher):
    """RANK is the machine's, and LOCAL_RANK a list."""
    told = {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "RANK": "1", "MASTER_PORT": "1234"}
    cards = ",".join("01234567")
    done = launcher.run("full_8p", **told, LOCAL_RANK=cards, MASTER_ADDR="a")
    assert done.returncode == 0, done.stderr
    (call,) = launcher.calls()
    assert call["argv"][:3] == ["--nproc-per-node=8", "--nnodes=2", "--node-rank=1"]
    assert call["argv"][3:5] == ["--master-addr=a", "--master-port=1234"]
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"} & set(call["env"])


def test_one_machine_of_mindcluster(launcher):
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a"}
    done = launcher.run("full_8p", **told, LOCAL_RANK="0,1")
    assert done.returncode == 0, done.stderr
    assert launcher.calls()[0]["argv"][:2] == ["--nproc-per-node=2", "--standalone"]


def test_cards_and_machines_of_0_are_not_told(launcher):
    """ModelArts documents 0 as the default."""
    done = launcher.run("full_8p", MA_NUM_GPUS="0", MA_NUM_HOSTS="0")
    assert done.returncode == 0, done.stderr
    assert launcher.calls()[0]["argv"][:2] == ["--nproc-per-node=8", "--standalone"]


def test_a_card_of_the_second_machine_logs_where_modelarts_looks(launcher, monkeypatch):
    platform = {"RANK_TABLE_FILE": "/t.json", "RANK_SIZE": "16", "RANK_ID": "8",
                "VC_TASK_INDEX": "1", "ASCEND_DEVICE_ID": "0"}  # fmt: skip
    assert launcher.run("full_8p", **platform).returncode == 0
    for name, value in platform.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(modelarts, "OUTPUT", launcher.output().parent)
    assert (modelarts._log_folder(Path("/results")) / "train_0.log").is_file()


def test_a_rank_that_was_left_over_beside_several_machines_is_none(launcher):
    left = {"RANK_ID": "0", "RANK_SIZE": "8"}
    done = launcher.run("full_8p", NNODES="2", NODE_RANK="1", MASTER_ADDR="a", **left)
    assert done.returncode == 0, done.stderr
    assert "--nnodes=2" in launcher.calls()[0]["argv"]


def test_torchrun_starts_the_processes(repository):
    done = repository.run("full_8p", "--nproc=2")
    assert done.returncode == 0, done.stderr
    calls = repository.calls()
    assert sorted(call["env"]["RANK"] for call in calls) == ["0", "1"]
    assert {call["env"]["WORLD_SIZE"] for call in calls} == {"2"}
    assert calls[0]["argv"] == calls[1]["argv"]
    assert calls[0]["argv"][0] == f"--data_url={repository.data}"
    assert repository.final(done.stdout).group(1) == "16000.00"


def test_one_start_of_several_needs_to_know_where_the_first_is(repository):
    """Else each would train with processes of its own."""
    done = repository.run("full_8p", RANK_ID="1", RANK_SIZE="2")
    assert done.returncode == 2
    assert done.stderr == (
        "error: RANK_ID=1, and neither RANK_TABLE_FILE nor MASTER_ADDR tells where the first "
        "process is; unset RANK_ID for a training by this start alone\n"
    )
    assert not repository.record.exists()


def test_status_of_the_failed_process_passes_through_torchrun(repository):
    done = repository.run("full_8p", "--nproc=2", FAKE="fail")
    assert done.returncode == 7, done.stderr
    assert "rank 0 failed first, with status 7" in done.stderr
    assert "Traceback" not in done.stderr


def test_signal_reaches_every_process(repository):
    process = repository.start(repository.command("full_8p", "--nproc=2"), waiting=2)
    process.terminate()
    process.communicate(timeout=HANG)
    assert process.returncode == 143
    log = repository.output() / "train_0.log"
    assert log.read_text().count("got signal 15") == 2


@pytest.mark.parametrize(("cores", "threads"), [(192, "24"), (8, "1"), (4, "1")])
def test_the_processes_share_the_cores(launcher, tmp_path: Path, cores: int, threads: str):
    (tmp_path / "nproc").write_text(f"#!/bin/sh\necho {cores}\n")
    (tmp_path / "nproc").chmod(0o755)
    assert launcher.run("full_8p", PATH=f"{tmp_path}:{os.environ['PATH']}").returncode == 0
    assert launcher.calls()[0]["env"]["OMP_NUM_THREADS"] == threads
