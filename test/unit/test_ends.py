"""How commands begin and end: in any locale, from any path, into a closed pipe, without room."""

import errno
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
from commands import HANG, ROOT, SMALL, assert_one_line_error, run, train
from expected_files import save_image
from runs import start

from runtime import say_what_is_missing
from runtime.errors import RunError, end_at_signals, run_main
from runtime.files import check_writable, whole_file, write_text

STAGES = ("train", "prepare", "evaluate", "upscale", "export")
ASCII = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
# As PYTHONSAFEPATH leaves it: without the folder of the script, nor of a clone that is installed.
SAFE_PATH = """
import runpy, sys
from pathlib import Path
sys.path = [folder for folder in sys.path if folder and not Path(folder, "train.py").is_file()]
sys.argv = [sys.argv[1], "--help"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("program", [*STAGES, "modelarts_entry_acc", "benchmarks/curves"])
def test_an_option_that_is_wrong_is_one_line(program: str) -> None:
    result = run(f"{program}.py", "--output", "--scale=x", "--data_url")
    assert result.returncode == 2
    assert re.fullmatch(r"error: argument .*\n", result.stderr), result.stderr


WORDS = {
    "train": ["--data_url=d"],
    "prepare": ["--data-path=d", "--sample"],
    "evaluate": ["--images-dir=d"],
    "upscale": ["picture.png", "--output=o"],
    "export": [],
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_package_that_is_missing_is_one_line(stage: str, tmp_path: Path) -> None:
    """As where .venv was made and not activated: here Python does without its packages."""
    command = [sys.executable, "-S", ROOT / f"{stage}.py", *WORDS[stage]]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=HANG
    )
    mend = "run `. .venv/bin/activate` first, or pip install -r requirements.txt, "
    mend += "for all but training requirements-dev.txt"
    line = rf"error: No module named '\w+' \(for {sys.executable}\); {re.escape(mend)}\n"
    assert re.fullmatch(line, result.stderr), result.stderr
    assert (result.returncode, list(tmp_path.iterdir())) == (1, [])


def test_ctrl_c_while_a_command_loads_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    say_what_is_missing(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "interrupted\n"


def test_a_module_that_another_program_lacks_is_its_own_matter() -> None:
    command = [sys.executable, "-c", "import runtime, no_such_module"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" in result.stderr and "activate" not in result.stderr


@pytest.mark.parametrize("encoding", ["", "ascii:strict"])
@pytest.mark.parametrize("stage", STAGES)
def test_help_in_a_locale_that_is_not_utf_8(stage: str, encoding: str) -> None:
    result = run(f"{stage}.py", "--help", env={**ASCII, "PYTHONIOENCODING": encoding})
    assert result.returncode == 0, result.stderr
    assert "--scale" in result.stdout


def test_the_log_of_a_run_in_a_locale_that_is_not_utf_8(dataset: Path, tmp_path: Path) -> None:
    options = ("--recipe=fast", "--batch-size=1", "--num-steps=2", "--device=cpu")
    shutil.copytree(dataset, tmp_path / "data")
    with h5py.File(tmp_path / "data/val/Set5_x3.h5", "a") as file:
        file.attrs["names"] = ["Bär", "b", "c"]
    result = train(tmp_path / "data", tmp_path / "Größe", *options, env=ASCII)
    assert result.returncode == 0, result.stderr
    assert r"random crops of 48\xd748" in result.stdout
    assert (tmp_path / "Größe/x3/strip_Bär.png").is_file()
    assert (tmp_path / "Größe/x3/best.pth").is_file()


@pytest.mark.parametrize("stage", [*STAGES, "upscale"])
def test_a_path_without_the_folder_of_the_script(stage: str) -> None:
    command = [sys.executable, "-c", SAFE_PATH, str(ROOT / f"{stage}.py")]
    result = subprocess.run(
        command, cwd="/", capture_output=True, text=True, check=False, timeout=HANG
    )
    assert result.returncode == 0, result.stderr
    assert "--scale" in result.stdout


@pytest.mark.parametrize("streams", [("stdout",), ("stdout", "stderr")])
@pytest.mark.parametrize("words", [["--help"], ["--num-steps=2"]])
def test_a_reader_that_has_enough(
    dataset: Path, tmp_path: Path, words: list[str], streams: tuple[str, ...]
) -> None:
    """As with `| head`, and with `2>&1 | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    process = start(
        ROOT / "train.py", f"--data_url={dataset}", f"--train_url={tmp_path}", *words,
        **dict.fromkeys(streams, writing),
    )  # fmt: skip
    os.close(writing)
    _, errors = process.communicate(timeout=HANG)
    closed = 128 + signal.SIGPIPE
    assert process.returncode in ({closed, 0} if words == ["--help"] else {closed})  # argparse: 0
    assert "Error" not in (errors or "")
    assert "Exception" not in (errors or "")


def test_a_reader_of_a_picture_that_has_enough(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    save_image(tmp_path / "a.png", 12, 12)
    process = start(ROOT / "upscale.py", tmp_path / "a.png", "--output=-", stdout=writing)
    os.close(writing)
    _, errors = process.communicate(timeout=HANG)
    assert (process.returncode, errors) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(
    ("words", "closed", "message"),
    [
        (["-", "--output=o"], "<&-", "-: standard input is closed"),
        (["a.png", "--output=-"], ">&-", "--output -: standard output is closed"),
    ],
)
def test_a_stream_that_is_closed(words: list[str], closed: str, message: str) -> None:
    shell = ["bash", "-c", f'exec "$@" {closed}', "bash"]
    _, errors = start(ROOT / "upscale.py", *words, wrapper=shell).communicate(timeout=HANG)
    assert errors == f"error: {message}\n"


@pytest.mark.parametrize("fault", ["", "no such picture"])
def test_standard_error_that_is_closed(dataset: Path, tmp_path: Path, fault: str) -> None:
    """As a service may start a command: it does its work, and its messages go nowhere."""
    save_image(tmp_path / "a.png", 9, 9)
    runs = [["upscale.py", fault or tmp_path / "a.png", f"--output={tmp_path / 'out'}"]]
    runs.append(["train.py", f"--data_url={fault or dataset}", f"--train_url={tmp_path}", *SMALL])
    for words in runs:
        shell = ["bash", "-c", 'exec "$@" 2>&-', "bash"]
        process = start(ROOT / words[0], *words[1:], wrapper=shell)
        output, _ = process.communicate(timeout=HANG)
        assert bool(process.returncode) == bool(fault), output
        assert "error: " not in output


def test_a_home_that_cannot_be_written_is_no_news(dataset: Path, tmp_path: Path) -> None:
    """As that of a service, or in a container; Matplotlib said so at length in each run."""
    home = {"HOME": "/dev/null", "MPLCONFIGDIR": "", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}
    result = train(dataset, tmp_path, "--num-steps=1", "--device=cpu", env=home)
    assert result.returncode == 0
    assert result.stderr == ""


UNWRITABLE = {
    "train": ("--data_url={data}", "--train_url={no}", "--num-steps=2", "--device=cpu"),
    "train profile": ("--data_url={data}", "--train_url={yes}", "--profile={no}", "--device=cpu"),
    "prepare a file": ("--images-dir={pictures}", "--output-path={no}/a.h5"),
    "prepare a folder": ("--data-path={no}", "--sample"),
    "evaluate json": ("--data-path={data}", "--json={no}/a.json"),
    "evaluate report": ("--data-path={data}", "--report={no}"),
    "export": ("--output={no}/a.onnx",),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_where_nothing_can_be_written_nothing_is_computed(
    dataset: Path, images: Path, tmp_path: Path, case: str
) -> None:
    stage = case.partition(" ")[0]
    (tmp_path / "file").touch()
    places = {"data": dataset, "pictures": images, "yes": tmp_path, "no": tmp_path / "file/a"}
    result = run(f"{stage}.py", *(word.format(**places) for word in UNWRITABLE[case]))
    assert_one_line_error(result, "cannot write", str(tmp_path / "file/a"), status=1)
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout, "found out before anything else"


def test_looking_whether_a_place_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "new/folder/file")
    assert not list(tmp_path.iterdir())
    with pytest.raises(RunError, match="it is a folder"):
        check_writable(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="Not a directory"):
        check_writable(tmp_path / "file/a/b")


def test_a_device_is_not_replaced_and_what_a_link_leads_to_is_written(tmp_path: Path) -> None:
    """As --json /dev/stdout; root could replace /dev/null itself."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        for act in (check_writable, lambda path: write_text(path, "text")):
            with pytest.raises(RunError, match=f"cannot write .*{name}: it is no regular file"):
                act(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "other").symlink_to("file")
    write_text(tmp_path / "other", "text")
    assert (tmp_path / "other").is_symlink()
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize("name", ["n" * 251 + ".txt", "ü" * 125 + ".txt", "\udce9.txt"])
def test_names_as_long_and_odd_as_they_may_be(tmp_path: Path, name: str) -> None:
    check_writable(tmp_path / name)
    write_text(tmp_path / name, f"of {name}")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(RunError, match="File name too long"), whole_file(tmp_path / ("n" * 256)):
        pass
    with pytest.raises(RunError, match="File name too long"):
        check_writable(tmp_path / ("n" * 256))


def test_files_that_are_written_at_once_do_not_meet_however_alike_their_names(
    tmp_path: Path,
) -> None:
    first, second = (tmp_path / ("𝓃" * 60 + f"{number}.png") for number in (1, 2))
    with whole_file(first) as one, whole_file(second) as other:
        one.write_text("first")
        other.write_text("second")
    assert (first.read_text(), second.read_text()) == ("first", "second")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_log_on_a_full_disk_is_told_in_one_line(
    dataset: Path, tmp_path: Path, unbuffered: str
) -> None:
    command = [sys.executable, ROOT / "train.py", "--data_url", dataset, "--num-steps=2"]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=HANG,
        )  # fmt: skip
    assert result.stderr == "error: cannot write standard output: No space left on device\n"
    assert result.returncode == 1


def test_a_picture_on_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    picture = save_image(tmp_path / "a.png", 40, 30)
    command = [sys.executable, ROOT / "upscale.py", picture, "--output", "-"]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=HANG
        )
    assert result.stderr == "error: cannot write standard output: No space left on device\n"
    assert result.returncode == 1


def test_a_file_system_that_cannot_flush_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    write_text(tmp_path / "a.txt", "all of it")
    assert (tmp_path / "a.txt").read_text() == "all of it"


FAULTS = (
    MemoryError(),
    MemoryError("Unable to allocate 3.1 GiB for an array"),
    OSError(12, "Cannot allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.\nMore text."),
    RuntimeError("NPU out of memory. Tried to allocate 2 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("can't start new thread"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    RuntimeError("Caught RuntimeError in worker process 0.\nTraceback\nR: can't allocate memory\n"),
    MemoryError("Caught MemoryError in worker process 0.\nTraceback\nM: Unable to allocate 3 GiB"),
)


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_too_little_memory_is_one_line(fault: Exception, capsys: pytest.CaptureFixture) -> None:
    def main() -> None:
        raise fault

    assert run_main(main) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: not enough memory")
    assert ("ulimit -u" in line) == ("thread" in str(fault))
    assert "Caught" not in line


@pytest.mark.parametrize("fault", [RuntimeError("a bug"), OSError(5, "x"), ImportError("x")])
def test_other_faults_are_bugs(fault: Exception) -> None:
    def main() -> None:
        raise fault

    with pytest.raises(type(fault)):
        run_main(main)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="Linux's pipes hand on single writes")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_is_written_at_once_and_whole(unbuffered: str) -> None:
    """Or those of several processes would mix in a log, whose lines programs read."""
    program = """if True:
        import os, sys
        from runtime.errors import run_main
        def main():
            print("epoch", 1)
            print("no", 2, file=sys.stderr)
            os._exit(0)
        run_main(main)
    """
    ours, theirs = os.pipe2(os.O_DIRECT)  # a read gives what one write took
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=ROOT, env=environment, stdout=theirs, stderr=theirs, check=True)
    os.close(theirs)
    assert [os.read(ours, 100) for _ in range(3)] == [b"epoch 1\n", b"no 2\n", b""]
    os.close(ours)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, ""), (signal.SIGHUP, 129, "")],
)
def test_a_signal_that_python_drops_is_not_lost(
    sent: int, status: int, said: str, capsys: pytest.CaptureFixture
) -> None:
    """One that arrives while an object is cleared away; Python says so and goes on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    end_at_signals()

    class Cleared:
        def __del__(self) -> None:
            signal.raise_signal(sent)

    def main() -> None:
        Cleared()
        deadline = time.monotonic() + HANG
        while time.monotonic() < deadline:
            time.sleep(0.01)

    before = sys.unraisablehook
    with pytest.raises(SystemExit) as end:
        sys.exit(run_main(main))
    assert end.value.code == status
    assert capsys.readouterr().err == said
    assert sys.unraisablehook is before


@pytest.mark.parametrize("megabytes", [100, 400, 700, 1000, 1500])
def test_a_limit_of_memory_that_is_too_low(dataset: Path, tmp_path: Path, megabytes: int) -> None:
    """`ulimit -v`: while libraries load, and while the run starts."""
    limit = (megabytes * 2**20,) * 2
    result = train(
        dataset, tmp_path, "--num-steps=2", "--device=cpu", "--recipe=fast",
        env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
    )  # fmt: skip
    if result.returncode:
        assert_one_line_error(result, "not enough memory", status=1)


def test_a_file_and_then_its_name_are_flushed_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, flushed = os.fsync, []

    def noted(descriptor: int) -> None:
        flushed.append(("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file",
                        (tmp_path / "a.txt").exists()))  # fmt: skip
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write_text(tmp_path / "a.txt", "all of it")
    assert flushed == [("file", False), ("folder", True)]
