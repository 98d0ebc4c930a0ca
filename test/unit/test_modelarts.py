"""A ModelArts job in this process, around a stand-in for the script that it starts."""

import io
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ascend import modelarts
from runtime.errors import RunError, UserError, run_main

VARIABLES = ("RANK_SIZE", "MA_NUM_HOSTS", "MA_NUM_GPUS", "ASCEND_DEVICE_ID",
             "NPU_CALCULATE_DEVICE", "NODE_RANK", "VC_TASK_INDEX", "PYTHON")  # fmt: skip
TORCHRUN = {"RANK": "7", "LOCAL_RANK": "1", "GROUP_RANK": "3", "WORLD_SIZE": "8",
            "MASTER_ADDR": "first", "ASCEND_DEVICE_ID": "5"}  # fmt: skip


class Script:
    """Is started as a process is; leaves weights, and a log as test/training.sh does."""

    def __init__(self, logs: Path) -> None:
        self.logs: Path | None = logs
        self.status = 0
        self.sent_at_once = self.sent_meanwhile = 0  # signals to the job
        self.starts: list[tuple[list[str], dict[str, str]]] = []
        self.received: list[int] = []

    def __call__(
        self, command: list[str], *, env: dict[str, str], start_new_session: bool
    ) -> "Script":
        assert start_new_session, "or Ctrl-C would reach it twice"
        self.starts.append((command, env))
        if self.sent_at_once:
            os.kill(os.getpid(), self.sent_at_once)
        return self

    def wait(self) -> int:
        for folder, name in ((self.logs, "train_0.log"), (self.results / "x3", "best.pth")):
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(f"run {len(self.starts)}")
        if self.sent_meanwhile:
            os.kill(os.getpid(), self.sent_meanwhile)
        return self.status

    def send_signal(self, number: int) -> None:
        self.received.append(number)
        self.status = -number

    @property
    def results(self) -> Path:
        return Path(self.starts[-1][0][3].removeprefix("--output_path="))


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of logs; a job without the variables of a platform."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(modelarts, "OUTPUT", tmp_path / "test/output")
    return tmp_path / "test/output"


@pytest.fixture
def script(output: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    started = Script(output / "0")
    monkeypatch.setattr(modelarts.subprocess, "Popen", started)
    return started


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A dataset folder with two files in folders."""
    for name, text in (("val/Set5_x3.h5", "12345"), ("train/T91_x3.h5", "123")):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path / "data"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Object storage in a folder, by a stand-in for moxing; fails at what `refused` names."""
    storage = SimpleNamespace(folder=tmp_path / "bucket", copied=[], refused="nothing")

    def local(address: str) -> Path:
        return Path(re.sub("^(obs|s3)://", f"{storage.folder}/", address))

    def copy_parallel(source: str, target: str) -> None:
        storage.copied.append((source, target))
        if storage.refused in target:
            raise Exception("403 Forbidden")
        shutil.copytree(local(source), local(target), dirs_exist_ok=True)

    moxing = SimpleNamespace(file=SimpleNamespace(copy_parallel=copy_parallel))
    monkeypatch.setitem(sys.modules, "moxing", moxing)
    return storage


def job(data: object, results: object, kind: str = "full") -> int:
    return modelarts.run(kind, [f"--data_url={data}", f"--train_url={results}"])


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("status", [0, 7])
def test_a_job_in_folders(
    script: Script, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    script.status, results = status, tmp_path / "out\nside"
    assert job(data, results) == status
    path = modelarts.ROOT / "test/train_full_1p.sh"
    ((command, environment),) = script.starts
    assert command == ["bash", str(path), f"--data_path={data}", f"--output_path={results}"]
    assert environment == {"MODELARTS_MODEL_PATH": "1", "PYTHON": sys.executable,
                           "ASCEND_DEVICE_ID": "0",
                           "GO_ON_WITH": "--resume"} | os.environ  # fmt: skip
    assert listing(results) == ["logs/0/train_0.log", "x3/best.pth"]
    assert capsys.readouterr() == (
        "".join(
            f"[CANN-Modelzoo] {line}\n"
            for line in (
                f"code folder: {modelarts.ROOT}",
                f"work folder: {Path.cwd()}",
                f"input file: {data}/train/T91_x3.h5 (3 bytes)",
                f"input file: {data}/val/Set5_x3.h5 (5 bytes)",
                f"start of the run: {path}",
                f"end of the run: exit status {status}",
            )
        ),
        "",
    )


def test_a_line_for_the_jobs_log_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before what the script prints, though the log is a file."""
    log, said = io.BytesIO(), []
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(log))

    def main() -> None:
        modelarts.say("what", "a\nb")
        said.append(log.getvalue())

    run_main(main)
    assert said == [b"[CANN-Modelzoo] what: a\\nb\n"]


@pytest.mark.parametrize(
    ("words", "passed"),
    [
        (["--resume"], "--resume=auto"),
        (["--resume="], "--resume=auto"),
        (["--resume", "a b/checkpoint_7.pt"], "--resume=a b/checkpoint_7.pt"),
    ],
)
def test_an_interrupted_job_goes_on(
    script: Script, data: Path, tmp_path: Path, words: list[str], passed: str
) -> None:
    modelarts.run("full", [f"--data_url={data}", f"--train_url={tmp_path}/out", *words])
    assert script.starts[0][0][4:] == ["--", passed]


def test_object_storage_holds_no_checkpoint_to_go_on_from(
    script: Script, data: Path, bucket: SimpleNamespace, tmp_path: Path
) -> None:
    words = [f"--data_url={data}", "--train_url=obs://b/out"]
    with pytest.raises(UserError) as error:
        modelarts.run("full", [*words, "--resume"])
    how = "--resume and, for --train_url, a folder with a copy of obs://b/out"
    assert str(error.value) == f"there is no going on in object storage; use {how}"
    assert not script.starts
    modelarts.run("full", [*words, "--resume=checkpoint_7.pt"])
    ((command, environment),) = script.starts
    assert command[4:] == ["--", "--resume=checkpoint_7.pt"]
    assert environment["GO_ON_WITH"] == how


def test_what_the_user_sets_goes_before(
    script: Script, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHON", "/opt/python")
    monkeypatch.setenv("NPU_CALCULATE_DEVICE", "3")
    monkeypatch.chdir(tmp_path)
    script.logs = tmp_path / "test/output/3"
    job(data.name, "out")
    ((command, environment),) = script.starts
    assert command[2:] == [f"--data_path={data}", f"--output_path={tmp_path}/out"]
    assert (environment["PYTHON"], environment["ASCEND_DEVICE_ID"]) == ("/opt/python", "3")
    assert listing(tmp_path / "out") == ["logs/3/train_0.log", "x3/best.pth"]


def test_fifty_input_files_are_named(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "many/train").mkdir(parents=True)
    for number in range(51):
        (tmp_path / f"many/train/{number:02}.h5").touch()
    job(tmp_path / "many", tmp_path / "out")
    named = re.findall(r"input file: .*/(\d+)\.h5 \(0 bytes\)", capsys.readouterr().out)
    assert named == [f"{number:02}" for number in range(50)]


@pytest.mark.parametrize(
    ("variables", "cards"),
    [
        ({}, "1p"),
        ({"RANK_SIZE": "1", "MA_NUM_HOSTS": "1", "MA_NUM_GPUS": ""}, "1p"),
        ({"RANK_SIZE": "0", "MA_NUM_GPUS": "0"}, "1p"),
        ({"RANK_SIZE": "8"}, "8p"),
        ({"RANK_SIZE": "1", "MA_NUM_HOSTS": "2"}, "8p"),
        ({"MA_NUM_GPUS": "4"}, "8p"),
    ],
)
@pytest.mark.parametrize("kind", ["full", "performance"])
def test_which_script_is_started(
    script: Script, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    kind: str, variables: dict[str, str], cards: str,
) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    job(data, tmp_path / "out", kind)
    assert script.starts[0][0][1] == f"{modelarts.ROOT}/test/train_{kind}_{cards}.sh"


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"ASCEND_DEVICE_ID": "2", "NPU_CALCULATE_DEVICE": "5"}, "2"),
        ({"NODE_RANK": "3"}, "0"),
        ({"NODE_RANK": "0", "RANK_SIZE": "2"}, "0"),
        ({"RANK_SIZE": "2", "ASCEND_DEVICE_ID": "1", "NODE_RANK": "3"}, "1_node3"),
        ({"RANK_SIZE": "2", "VC_TASK_INDEX": "4"}, "0_node4"),
        (TORCHRUN, "1_node3"),
    ],
)
def test_the_logs_of_a_card_and_a_machine(
    script: Script, output: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str], folder: str,
) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    script.logs = output / folder
    job(data, tmp_path / "out")
    assert listing(tmp_path / "out/logs") == [f"{folder}/train_0.log"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
        (signal.SIGHUP, 129),
        (signal.SIGKILL, 137),
    ],
)
@pytest.mark.usefixtures("handlers")
def test_a_signal_is_passed_on_and_the_results_are_copied(
    script: Script, data: Path, tmp_path: Path, sent: int, status: int
) -> None:
    """SIGKILL meets the script alone."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    if sent == signal.SIGKILL:
        script.status = -sent
    else:
        script.sent_meanwhile = sent
    assert job(data, tmp_path / "out") == status
    assert script.received == ([] if sent == signal.SIGKILL else [sent])
    assert listing(tmp_path / "out") == ["logs/0/train_0.log", "x3/best.pth"]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_just_as_the_script_starts_is_passed_on(
    script: Script, data: Path, tmp_path: Path, sent: int
) -> None:
    """Or the job would end, and the training go on without it."""
    signal.signal(sent, lambda number, _: pytest.fail(f"ends by {number}"))
    script.sent_at_once = sent
    assert job(data, tmp_path / "out") == 128 + sent
    assert script.received == [sent]


@pytest.mark.usefixtures("handlers")
def test_a_terminal_that_is_closed_keeps_no_results_back(
    script: Script, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said afterwards goes nowhere: it would fail there."""
    left = []
    monkeypatch.setattr(modelarts, "leave_terminal", lambda: left.append(listing(tmp_path / "out")))
    script.sent_meanwhile = signal.SIGHUP
    assert job(data, tmp_path / "out") == 129
    assert left == [["x3/best.pth"]]


def test_the_logs_of_an_earlier_job_step_aside(script: Script, data: Path, tmp_path: Path) -> None:
    for _ in range(2):
        job(data, tmp_path / "out")
    later, earlier = sorted((tmp_path / "out/logs").iterdir())
    assert (later.name, (later / "train_0.log").read_text()) == ("0", "run 2")
    assert re.fullmatch(r"0_\d{8}-\d{6}", earlier.name)
    assert (earlier / "train_0.log").read_text() == "run 1"


def cannot_be_made(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output.parent.write_text("a file")


def cannot_be_written(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (output, os.W_OK))


@pytest.mark.parametrize("make", [cannot_be_made, cannot_be_written])
def test_a_code_folder_that_cannot_be_written(
    script: Script, output: Path, data: Path, bucket: SimpleNamespace, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, make: Callable,
) -> None:  # fmt: skip
    """The logs lie where they would be copied to; what has an address, in a temporary folder."""
    make(output, monkeypatch)
    script.logs = tmp_path / "out/logs/0"
    assert job(data, tmp_path / "out") == 0
    assert listing(tmp_path / "out") == ["logs/0/train_0.log", "x3/best.pth"]
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    script.logs = None
    assert job(data, "obs://b/out") == 0
    ((source, target),) = bucket.copied
    assert (Path(source).parents[1], target) == (tmp_path / "temporary", "obs://b/out")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(RunError, match=f"no local copy can be made in {tmp_path}/gone: "):
        job(data, "obs://b/out")


@pytest.mark.parametrize("remote", [("data",), ("train",), ("data", "train")])
@pytest.mark.parametrize("scheme", ["obs", "s3"])
def test_object_storage(
    script: Script, output: Path, data: Path, bucket: SimpleNamespace, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], scheme: str, remote: tuple[str, ...],
) -> None:  # fmt: skip
    """What has an address is copied from and to it, and nothing else is."""
    shutil.copytree(data, bucket.folder / "b/in put")
    addresses = {"data": f"{scheme}://b/in put", "train": f"{scheme}://b/out"}
    folders = {"data": data, "train": tmp_path / "out"}
    urls = folders | {name: addresses[name] for name in remote}
    assert job(urls["data"], urls["train"]) == 0
    assert not list(output.glob("modelarts_*")), "what was copied is no longer needed"
    words = script.starts[0][0][2:]
    used = {name: Path(word.partition("=")[2])
            for name, word in zip(("data", "train"), words, strict=True)}  # fmt: skip
    for name, folder in used.items():
        if name in remote:
            assert (folder.name, folder.parents[1]) == (f"{name}_url", output)
        else:
            assert folder == folders[name]
    copies = {
        "data": (addresses["data"], str(used["data"])),
        "train": (str(used["train"]), addresses["train"]),
    }
    assert bucket.copied == [copies[name] for name in remote]
    left = bucket.folder / "b/out" if "train" in remote else tmp_path / "out"
    assert listing(left) == ["logs/0/train_0.log", "x3/best.pth"]
    lines = capsys.readouterr().out.splitlines()
    words = {"data": "download", "train": "upload"}
    assert [line for line in lines if "load: " in line] == [
        f"[CANN-Modelzoo] {words[name]}: {copies[name][0]} to {copies[name][1]}" for name in remote
    ]
    assert sum("input file" in line for line in lines) == 2


def test_the_files_that_are_trained_on_are_named_first(
    script: Script, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "images").mkdir()
    for number in range(60):
        (data / "images" / f"{number}.bmp").touch()
    assert job(data, tmp_path / "out") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "input file" in line]
    named = [line.partition("(")[0].rstrip().endswith(".h5") for line in lines]
    assert named == sorted(named, reverse=True) and named[0]
    assert (len(lines), lines[-1]) == (51, f"[CANN-Modelzoo] input files: {60 + sum(named)} in all")


def test_a_download_that_fails(script: Script, bucket: SimpleNamespace, tmp_path: Path) -> None:
    bucket.refused = "data_url"
    with pytest.raises(RunError, match=r"copy obs://b/data to .*/data_url: 403 Forbidden"):
        job("obs://b/data", tmp_path / "out")
    assert not script.starts


def test_an_upload_that_fails_is_told_and_a_failed_run_keeps_its_status(
    script: Script, output: Path, data: Path, bucket: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    bucket.refused = "obs://b/out"
    with pytest.raises(RunError) as error:
        job(data, "obs://b/out")
    (staging,) = output.glob("modelarts_*")
    places = f"results not copied, they are in {staging}/train_url and {output}/0: "
    assert str(error.value).startswith(places)
    assert "403 Forbidden" in str(error.value)
    assert listing(staging / "train_url") == ["logs/0/train_0.log", "x3/best.pth"]
    shutil.rmtree(output)
    script.status = 7
    assert job(data, "obs://b/out") == 7
    assert re.match(r"error: results not copied, .*403 Forbidden", capsys.readouterr().err)


def test_what_a_failed_run_left_is_uploaded_and_no_copy_stays(
    script: Script, output: Path, data: Path, bucket: SimpleNamespace
) -> None:
    script.status = 7
    assert job(data, "obs://b/out") == 7
    assert listing(bucket.folder / "b/out") == ["logs/0/train_0.log", "x3/best.pth"]
    assert not list(output.glob("modelarts_*"))


def test_results_among_the_logs_are_not_copied_into_themselves(
    script: Script, output: Path, data: Path
) -> None:
    """As where they go to the scripts' own place, beside the log."""
    assert job(data, output / "0/ckpt") == 0
    assert listing(output / "0/ckpt/logs") == ["0/train_0.log"]


def test_logs_that_find_no_room_leave_no_half_of_them(
    script: Script, output: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on file sizes stands for the full disk; the logs of an earlier job stay."""
    room, (soft, hard) = 2**22, resource.getrlimit(resource.RLIMIT_FSIZE)
    assert job(data, tmp_path / "out") == 0
    wait = script.wait

    def wait_until_full() -> int:
        status = wait()
        (output / "0/train_0.log").write_bytes(b"x" * 2 * room)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        return status

    monkeypatch.setattr(script, "wait", wait_until_full)
    places = f"results not copied, they are in {tmp_path}/out and {output}/0: "
    try:
        with pytest.raises(RunError) as error:
            job(data, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value) == f"{places}cannot copy {output}/0/train_0.log: File too large"
    assert listing(tmp_path / "out/logs") == ["0/train_0.log"]
    assert (tmp_path / "out/logs/0/train_0.log").read_text() == "run 1"


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        (("/no/such", "out"), "no dataset folder /no/such"),
        (("/usr", "out"), r"no train/\*\.h5 in /usr; prepare\.py --data-path fills"),
        (("", "out"), "an empty folder name"),
        (("/no/such", ""), "an empty folder name"),
        (("obs://b/data", "out"), "obs://b/data needs the moxing package"),
        (("/no/such", "s3://b/out"), "s3://b/out needs the moxing package"),
    ],
)
def test_mistakes_end_before_the_training(
    script: Script, monkeypatch: pytest.MonkeyPatch, urls: tuple[str, str], message: str
) -> None:
    monkeypatch.setitem(sys.modules, "moxing", None)
    with pytest.raises(UserError, match=message) as error:
        job(*urls)
    assert error.value.exit_status == 2
    assert not script.starts


def test_a_place_for_results_that_cannot_be_written(
    script: Script, bucket: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found out before the dataset is fetched."""
    with pytest.raises(RunError) as error:
        job("obs://b/data", "/dev/null")
    assert str(error.value) == (
        "--train_url: cannot write /dev/null/x3/best.pth: Not a directory; "
        "name a folder that can be written"
    )
    assert (script.starts, bucket.copied, capsys.readouterr().out) == ([], [], "")


@pytest.mark.parametrize(
    ("word", "meant"),
    [("--train_urll=/r", "--train_url"), ("--data-url", "--data_url"), ("--resumme", "--resume")],
)
def test_a_misspelt_option_is_no_other_program_s(
    capsys: pytest.CaptureFixture[str], word: str, meant: str
) -> None:
    """It would train for hours on another folder's data, or into another folder."""
    with pytest.raises(SystemExit) as exit_info:
        modelarts.parse_args("full", ["--data_url=/d", word])
    assert exit_info.value.code == 2
    name = word.partition("=")[0]
    assert capsys.readouterr().err.endswith(f"error: no option {name}; is {meant} meant?\n")


def test_folders_of_the_platform_and_options_that_mean_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = modelarts.parse_args("full", ["--init_method=tcp://secret", "--num_gpus", "8"])
    assert vars(args) == {
        "data_url": "/home/ma-user/modelarts/inputs/data_url_0",
        "train_url": "/home/ma-user/modelarts/outputs/train_url_0/",
        "resume": None,
    }
    warning = "warning: options ignored: '--init_method', '--num_gpus'\n"
    assert capsys.readouterr() == ("", warning)
    assert modelarts.parse_args("full", ["stray", "--train_url=a", "--rank=0"]).train_url == "a"
    assert capsys.readouterr().err == "warning: options ignored: '--rank'\n"
    modelarts.parse_args("full", ["stray"])
    assert capsys.readouterr().err == "warning: options ignored: 'stray'\n"
    modelarts.parse_args("full", [])
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit):
        modelarts.parse_args("performance", ["--help"])
    assert "Start test/train_performance_1p.sh" in capsys.readouterr().out
