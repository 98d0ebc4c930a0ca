"""What goes into the scripts: options, paths, working directories, the environment."""

import sys
from pathlib import Path

import pytest
from commands import WITHOUT_OVERRIDE

TRAINING = ["full_1p", "performance_1p", "full_8p", "performance_8p"]


def test_options_reach_train_py_and_paths_stay_whole(repository):
    done = repository.call(
        [
            "bash",
            str(repository.root / "test" / "train_full_1p.sh"),
            f"--data_path={repository.data.name}",  # relative to the working directory
            f"--output_path={repository.hostile}",
            "--train_epochs=2",
            "--train_steps=30",
            "--batch_size=4",
            "--",
            "--lr",
            "2e-4",
            repository.hostile,
        ],
        cwd=repository.data.parent,
    )
    assert done.returncode == 0, done.stderr
    (call,) = repository.calls()
    output = repository.data.parent / repository.hostile
    assert call["argv"] == [
        f"--data_url={repository.data}",
        f"--train_url={output}",
        "--num-epochs=2",
        "--num-steps=30",
        "--batch-size=4",
        "--lr=1e-4",
        "--lr",
        "2e-4",
        repository.hostile,
    ]
    assert (output / "x3" / "best.pth").is_file()
    assert (repository.output() / f"{repository.root.name}_bs4_1p_acc.log").is_file()
    assert not list(repository.root.parent.rglob("hacked"))


@pytest.mark.parametrize("script", [*TRAINING, "eval_1p"])
def test_help(repository, script: str):
    path = repository.root / "test" / f"train_{script}.sh"
    done = repository.call(["bash", str(path), "--help"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: bash test/{path.name} --data_path=FOLDER")
    assert ("--nproc=" in done.stdout) == ("8p" in script)
    assert not repository.output().exists()


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("full_1p", ["--trainepochs=3"], "unknown option --trainepochs=3"),
        ("full_1p", ["stray"], "unknown option stray"),
        ("full_1p", ["--data_path="], "--data_path=FOLDER is missing"),
        ("full_1p", ["--data_path=gone"], "no folder "),
        ("full_1p", ["--output_path="], "--output_path= is empty"),
        ("performance_1p", ["--batch_size=0"], "--batch_size=0 is no whole number from 1 up"),
        ("performance_1p", ["--train_epochs=x[$(touch hacked)]"], "is no whole number"),
        ("performance_1p", ["--train_steps=010"], "--train_steps=010 is no whole number"),
        ("full_1p", ["--nproc=2"], "--nproc is for the 8p scripts"),
        ("full_8p", ["--nproc=0"], "--nproc=0 is no whole number from 1 up"),
        ("eval_1p", [], "--pth_path=FILE is missing"),
        ("eval_1p", ["--pth=x"], "unknown option --pth=x"),
    ],
)
def test_wrong_options_end_at_once(repository, script: str, options: list[str], message: str):
    done = repository.run(script, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") - str(repository.data).count("\n") <= 1
    assert not repository.record.exists()
    assert not repository.output().exists()
    assert not list(repository.root.parent.rglob("hacked"))


@pytest.mark.parametrize(
    ("place", "rights"), [("", 0), ("", 0o400), ("train", 0), ("train", 0o400), ("train", 0o300)]
)
def test_data_that_may_not_be_read(repository, place: str, rights: int):
    locked = repository.data / place
    locked.chmod(rights)
    repository.wrapper = WITHOUT_OVERRIDE
    done = repository.run("full_1p")
    locked.chmod(0o700)
    assert done.returncode == 2
    assert done.stderr == f"error: cannot read {locked}: Permission denied\n"
    assert not repository.record.exists()


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_any_shell_any_directory(repository, shell: str):
    command = repository.command("full_1p")[1:]
    done = repository.call([shell, *command], cwd=Path("/proc"))  # nobody can write there
    assert done.returncode == 0, done.stderr


def test_folders_that_the_shell_looks_through_for_cd_are_not_ours(repository, tmp_path: Path):
    """Bash prints where it found one, and a folder `test` may be there, too."""
    (tmp_path / "test").mkdir()
    command = ["bash", "test/train_full_1p.sh", f"--data_path={repository.data}"]
    done = repository.call(command, cwd=repository.root, CDPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_working_directory_that_is_gone(repository):
    command = repository.command("full_1p", f"--output_path={repository.elsewhere}/o")
    script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    folder = repository.elsewhere / "gone"
    folder.mkdir()
    done = repository.call(["bash", "-c", script, "-", str(folder), *command])
    assert done.returncode == 0, done.stderr


def test_output_that_cannot_be_written(repository):
    done = repository.run("full_1p", "--output_path=/proc/no")
    assert done.returncode == 1
    assert done.stderr == "error: cannot make the folder /proc/no\n"
    assert not repository.record.exists()


def test_interpreter_that_is_missing(repository):
    done = repository.run("full_1p", PYTHON="no such python")
    assert done.returncode == 2
    assert "no Python interpreter no such python" in done.stderr


def test_environment_is_filled_in(repository):
    assert repository.run("full_1p").returncode == 0
    env = repository.calls()[0]["env"]
    expected = {
        "ASCEND_DEVICE_ID": "0",
        "NPU_CALCULATE_DEVICE": "0",
        "RANK_SIZE": "1",
        "RANK_ID": "0",
        "JOB_ID": "10087",
        "TASK_QUEUE_ENABLE": "1",
        "ASCEND_GLOBAL_LOG_LEVEL": "3",
        "ASCEND_SLOG_PRINT_TO_STDOUT": "0",
        "HCCL_WHITELIST_DISABLE": "1",
        "HCCL_CONNECT_TIMEOUT": "1800",
        "PYTHONUNBUFFERED": "1",
    }
    assert expected.items() <= env.items()


def test_performance_run_has_the_faster_queue(repository):
    assert repository.run("performance_1p").returncode == 0
    assert repository.calls()[0]["env"]["TASK_QUEUE_ENABLE"] == "2"


def test_environment_that_is_set_stays(repository):
    given = {
        "ASCEND_DEVICE_ID": "3",
        "NPU_CALCULATE_DEVICE": "5",
        "JOB_ID": "7",
        "TASK_QUEUE_ENABLE": "0",
        "ASCEND_RT_VISIBLE_DEVICES": "3,4",
        "HCCL_WHITELIST_DISABLE": "0",
        "HCCL_CONNECT_TIMEOUT": "300",
        "ASCEND_GLOBAL_LOG_LEVEL": "1",
        "ASCEND_SLOG_PRINT_TO_STDOUT": "1",
        "PYTHONUNBUFFERED": "2",
    }
    assert repository.run("performance_1p", **given).returncode == 0
    assert given.items() <= repository.calls()[0]["env"].items()
    assert (repository.output("3") / "train_3.log").is_file()


def test_card_falls_back_to_the_older_variable(repository):
    assert repository.run("full_1p", NPU_CALCULATE_DEVICE="2").returncode == 0
    assert repository.calls()[0]["env"]["ASCEND_DEVICE_ID"] == "2"


@pytest.mark.parametrize("card", ["../escape", "0,1", "ASCEND_DEVICE_ID"])
def test_card_that_is_no_number(repository, card: str):
    done = repository.run("full_1p", ASCEND_DEVICE_ID=card)
    assert done.returncode == 2
    assert f"ASCEND_DEVICE_ID={card} is no whole number" in done.stderr


def test_one_card_ignores_a_launch_for_many(repository):
    stale = {"RANK_SIZE": "8", "RANK_ID": "3", "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}
    stale |= {"NNODES": "2", "NODE_RANK": "1"}
    done = repository.run("full_1p", **stale, RANK_TABLE_FILE="/gone")
    assert done.returncode == 0
    assert "RANK_SIZE=8 ignored" in done.stderr
    env = repository.calls()[0]["env"]
    assert (env["RANK_SIZE"], env["RANK_ID"]) == ("1", "0")
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "RANK_TABLE_FILE"} & set(env)
    assert repository.figures("bs32_1p_acc")  # of card 0, not of a second machine


def test_the_environment_of_make_setup_is_taken_where_no_interpreter_is_named(repository):
    python = repository.root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nMINE=yes exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    done = repository.run("full_1p", PYTHON="")
    assert done.returncode == 0, done.stderr
    assert repository.calls()[0]["env"]["MINE"] == "yes"


def test_the_older_variable_names_the_same_card(repository):
    assert repository.run("full_1p", ASCEND_DEVICE_ID="3").returncode == 0
    assert repository.calls()[0]["env"]["NPU_CALCULATE_DEVICE"] == "3"
