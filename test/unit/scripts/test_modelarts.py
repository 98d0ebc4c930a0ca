"""The ModelArts entries, run for real around a stand-in for train.py."""

import re
import signal
import sys
from pathlib import Path

import pytest
from commands import HANG, WITHOUT_OVERRIDE

from runtime.errors import printable

MOXING = '''
import os, shutil
from pathlib import Path


class file:
    """Copies between folders; obs://… lies in the folder $BUCKETS."""

    @staticmethod
    def copy_parallel(source, target):
        if os.environ.get("REFUSE", "nothing") in target:
            raise Exception("403 Forbidden")
        shutil.copytree(local(source), local(target), dirs_exist_ok=True)


def local(path):
    return Path(path.replace("obs://", os.environ["BUCKETS"] + "/"))
'''


@pytest.fixture
def entry(repository, tmp_path: Path):
    """Return a function that gives an entry's command line."""
    for name in ("baby", repository.hostile):
        (repository.data / "val" / name).mkdir(parents=True)
        (repository.data / "val" / name / "Set5_x3.h5").write_text("12345")
    results = tmp_path / f"results {repository.hostile}"

    def command(kind: str = "acc", data: str = "", train: str = "") -> list[str]:
        return [
            sys.executable,
            str(repository.root / f"modelarts_entry_{kind}.py"),
            f"--data_url={data or repository.data}",
            f"--train_url={train or results}",
        ]

    command.results = results
    return command


@pytest.fixture
def buckets(repository, tmp_path: Path) -> Path:
    """Give the entries a moxing package; return the folder that stands for object storage."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "moxing.py").write_text(MOXING)
    bucket = tmp_path / "buckets" / "b"
    (bucket / "data" / "train").mkdir(parents=True)
    (bucket / "data" / "train" / "T91_x3.h5").write_text("123")
    repository.env |= {"PYTHONPATH": str(tmp_path / "packages"), "BUCKETS": str(bucket.parent)}
    return bucket


def listing(folder: Path) -> list[str]:
    """Return the paths of all files in a folder."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_only_results_are_left_in_train_url(repository, entry):
    done = repository.call(entry())
    assert done.returncode == 0, done.stderr
    assert repository.final(done.stdout.rsplit("[CANN-Modelzoo]", 1)[0])
    (call,) = repository.calls()
    assert call["argv"][:3] == [
        f"--data_url={repository.data}",
        f"--train_url={entry.results}",
        "--num-epochs=500",
    ]
    case = f"{repository.root.name}_bs32_1p_acc"
    assert listing(entry.results) == sorted(
        [f"logs/0/{case}.log", f"logs/0/{case}_loss.txt", "logs/0/train_0.log", "x3/best.pth"]
    )
    assert not list(repository.root.parent.rglob("hacked"))


def test_lines_for_the_jobs_log(repository, entry):
    done = repository.call(entry())
    lines = [line for line in done.stdout.splitlines() if line.startswith("[CANN-Modelzoo]")]
    assert [line.split(": ")[0].removeprefix("[CANN-Modelzoo] ") for line in lines] == [
        "code folder",
        "work folder",
        *["input file"] * 3,
        "start of the run",
        "end of the run",
    ]
    assert lines[0].endswith(printable(repository.root))  # a line break in it is not printed raw
    assert lines[1].endswith(str(repository.elsewhere))
    assert all("_x3.h5" in line and line.endswith("(5 bytes)") for line in lines[2:5])
    assert lines[-1].endswith("exit status 0")
    assert "epoch0 : loss=0.500000" in done.stdout  # the platform shows the training's log


def test_read_only_code_folder(repository, entry):
    """The logs lie where they would be copied to."""
    repository.make_read_only()
    done = repository.call(entry())
    assert done.returncode == 0, done.stderr
    case = f"{repository.root.name}_bs32_1p_acc"
    assert listing(entry.results) == sorted(
        [f"logs/0/{case}.log", f"logs/0/{case}_loss.txt", "logs/0/train_0.log", "x3/best.pth",
         "logs/0.lock"]
    )  # fmt: skip


@pytest.mark.parametrize(("fake", "status"), [("ok", 0), ("fail", 7)])
def test_read_only_code_folder_and_object_storage(
    repository, entry, buckets: Path, tmp_path: Path, fake: str, status: int
):
    repository.make_read_only()
    done = repository.call(
        entry(data="obs://b/data", train="obs://b/out"), FAKE=fake, TMPDIR=str(tmp_path)
    )
    assert done.returncode == status, done.stderr
    assert "logs/0/train_0.log" in listing(buckets / "out")
    assert ("x3/best.pth" in listing(buckets / "out")) == (status == 0)


@pytest.mark.parametrize(
    ("cards", "script"), [({}, "1p"), ({"MA_NUM_GPUS": "1"}, "1p"), ({"MA_NUM_GPUS": "2"}, "8p")]
)
def test_the_script_for_as_many_cards_as_the_platform_gives(
    repository, entry, cards: dict[str, str], script: str
):
    done = repository.call(entry(), **cards)
    assert done.returncode == 0, done.stderr
    assert f"test/train_full_{script}.sh" in done.stdout
    assert len(repository.calls()) == int(cards.get("MA_NUM_GPUS", "1"))


def test_performance_entry(repository, entry):
    assert repository.call(entry("perf")).returncode == 0
    assert {"--batch-size=256", "--num-epochs=10"} <= set(repository.calls()[0]["argv"])


def test_failed_run_ends_the_entry_with_its_status(repository, entry):
    done = repository.call(entry(), FAKE="fail")
    assert done.returncode == 7
    assert "[CANN-Modelzoo] end of the run: exit status 7" in done.stdout
    log = repository.output() / "train_0.log"
    assert done.stderr == f"error: ended with status 7; log: {log}\n", "its lines were shown"
    assert "disk is full" in (entry.results / "logs" / "0" / "train_0.log").read_text()


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_preempted_run_is_ended_well_and_copied(repository, entry, sent: int, status: int):
    process = repository.start(entry())
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=HANG)
    assert process.returncode == status, stderr
    assert f"exit status {status}" in stdout
    assert "got signal" in (entry.results / "logs" / "0" / "train_0.log").read_text()


def test_a_job_goes_on_from_the_checkpoint_in_its_folder(repository, entry):
    process = repository.start(entry())
    process.terminate()
    _, stderr = process.communicate(timeout=HANG)
    assert stderr.endswith("to go on from the checkpoint: the same command with --resume\n")
    done = repository.call([*entry(), "--resume"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "earlier results moved" not in done.stdout
    first, second = (call["argv"] for call in repository.calls())
    assert second == [*first, "--resume=auto"]
    assert (entry.results / "x3" / "checkpoint_7.pt").is_file()
    log = (entry.results / "logs" / "0" / "train_0.log").read_text()
    assert log.index("the state is saved") < log.index("best epoch")


def test_logs_of_an_earlier_job_step_aside(repository, entry):
    for _ in range(2):
        assert repository.call(entry()).returncode == 0
    assert (entry.results / "logs" / "0" / "train_0.log").is_file()
    (earlier,) = (p for p in (entry.results / "logs").iterdir() if p.name != "0")
    assert re.fullmatch(r"0_\d{8}-\d{6}", earlier.name)
    assert (earlier / "train_0.log").is_file()


def test_options_of_the_platform_are_named_and_ignored(repository, entry):
    more = ["--init_method=tcp://secret", "--num_gpus", "8"]
    done = repository.call([*entry(), *more])
    assert done.returncode == 0
    assert "warning: options ignored: '--init_method', '--num_gpus'" in done.stderr
    assert "secret" not in done.stderr
    assert not [word for word in repository.calls()[0]["argv"] if "init" in word]


def test_default_folders_are_the_platforms(repository, entry):
    done = repository.call([*entry()[:2], "--help"], COLUMNS="200")
    assert done.returncode == 0
    assert "/home/ma-user/modelarts/inputs/data_url_0" in done.stdout
    assert "/home/ma-user/modelarts/outputs/train_url_0/" in done.stdout


def test_platform_with_several_cards(repository, entry):
    platform = {"RANK_TABLE_FILE": "/t", "RANK_ID": "1", "RANK_SIZE": "2", "ASCEND_DEVICE_ID": "1"}
    done = repository.call(entry(), **platform)
    assert done.returncode == 0, done.stderr
    assert platform.items() <= repository.calls()[0]["env"].items()
    assert listing(entry.results) == ["logs/1/train_1.log"]


def test_platform_that_starts_the_boot_file_by_torchrun(repository, entry):
    """MA_RUN_METHOD=torchrun: once per card."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "--local-addr=127.0.0.1", *entry()[1:]]
    done = repository.call(command, MA_NUM_GPUS="2", MA_RUN_METHOD="torchrun")
    assert done.returncode == 0, done.stderr
    calls = [call["env"] for call in repository.calls()]
    assert sorted(env["RANK"] for env in calls) == ["0", "1"]
    assert {env["WORLD_SIZE"] for env in calls} == {"2"}
    assert done.stdout.count("Final Train Accuracy") == 1
    logs = {f"logs/{rank}/train_{rank}.log" for rank in "01"}
    assert logs <= set(listing(entry.results))


@pytest.mark.parametrize(
    ("folders", "env", "message"),
    [
        ({"data": "/no/such"}, {}, "no dataset folder /no/such"),
        ({"data": "/usr"}, {}, "no train/*.h5 in /usr"),
        ({"data": "obs://b/data"}, {}, "obs://b/data needs the moxing package"),
        ({"train": "s3://b/out"}, {}, "s3://b/out needs the moxing package"),
        ({}, {"ASCEND_DEVICE_ID": "../.."}, "ASCEND_DEVICE_ID: '../..' is not a whole number"),
    ],
)
def test_wrong_input_ends_before_the_training(repository, entry, folders, env, message: str):
    done = repository.call(entry(**folders), **env)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert not repository.record.exists()


@pytest.mark.parametrize(
    ("place", "rights"), [("", 0), ("", 0o400), ("train", 0), ("train", 0o400), ("train", 0o300)]
)
def test_data_that_may_not_be_read(repository, entry, place: str, rights: int):
    locked = repository.data / place
    locked.chmod(rights)
    repository.wrapper = WITHOUT_OVERRIDE
    done = repository.call(entry())
    locked.chmod(0o700)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: cannot read {printable(locked)}")
    assert done.stderr.endswith(": Permission denied\n")
    assert not repository.record.exists()


def test_train_url_that_is_a_file(repository, entry, tmp_path: Path):
    (tmp_path / "file").touch()
    done = repository.call(entry(train=str(tmp_path / "file")))
    assert done.returncode == 1
    assert done.stderr == (
        f"error: --train_url: cannot write {tmp_path}/file/x3/best.pth: Not a directory; "
        f"name a folder that can be written\n"
    )
    assert not repository.record.exists()


@pytest.mark.parametrize(("fake", "status"), [("ok", 0), ("fail", 7)])
def test_object_storage(repository, entry, buckets: Path, fake: str, status: int):
    done = repository.call(entry(data="obs://b/data", train="obs://b/o u t"), FAKE=fake)
    assert done.returncode == status, done.stderr
    assert "T91_x3.h5 (3 bytes)" in done.stdout
    left = listing(buckets / "o u t")
    assert "logs/0/train_0.log" in left
    assert ("x3/best.pth" in left) == (status == 0)
    assert not [name for name in left if name.endswith((".py", ".sh", ".h5"))]


def test_failed_download_and_upload(repository, entry, buckets: Path):
    download = repository.call(entry(data="obs://b/data"), REFUSE="data_url")
    assert download.returncode == 1
    assert "could not copy obs://b/data" in download.stderr
    assert not repository.record.exists()

    upload = repository.call(entry(train="obs://b/out"), REFUSE="obs://b/out")
    assert upload.returncode == 1
    assert "error: results not copied, they are in " in upload.stderr
    assert "403 Forbidden" in upload.stderr
    assert "Traceback" not in upload.stderr
    assert list((repository.root / "test" / "output").glob("modelarts_*/train_url/x3/best.pth"))

    both = repository.call(entry(train="obs://b/out"), REFUSE="obs://b/out", FAKE="fail")
    assert both.returncode == 7  # the run's own status is the more telling one
    assert "results not copied" in both.stderr
