"""Runs that are starved of disk space, locked out or robbed of their folder; what is left then."""

import contextlib
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import HANG, ROOT, WITHOUT_OVERRIDE, run, wait_until
from expected_files import save_image
from runs import SMALL, newest_step, start, training, wait_for_epochs

from runtime.errors import RunError
from training import checkpoint
from training.results import Results


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """Mount a tmpfs, where that is permitted; tell whether it is."""
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    mount = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False)
    done = bool(mount) and mount.returncode == 0
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def assert_kept(out: Path) -> None:
    assert checkpoint.load_newest(out / "x3")
    assert not list((out / "x3").glob(".*.tmp"))


def test_a_full_disk(dataset: Path, tmp_path: Path) -> None:
    """A file system of 4 MB, filled during the run; without mounts, a limit on a file's size."""
    with mounted(tmp_path, "size=4m") as small:
        words = training(dataset, tmp_path, 3)
        assert run(*words).returncode == 0
        step = newest_step(tmp_path)
        if small:
            with contextlib.suppress(OSError), (tmp_path / "filler").open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
            limit = None
        else:
            limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))  # noqa: E731
        process = start(*training(dataset, tmp_path / "more", 3), preexec_fn=limit)
        _, errors = process.communicate(timeout=HANG)
        assert process.returncode == 1
        assert errors.startswith(f"error: cannot write {tmp_path}/more/x3/"), errors
        assert len(errors.splitlines()) == 1
        assert newest_step(tmp_path) == step
        assert_kept(tmp_path)


def test_little_shared_memory_for_workers(dataset: Path, tmp_path: Path) -> None:
    """Docker gives /dev/shm 64 MB; here it is smaller than a batch."""
    streamed = ("--memory-share=1e-9", "--num-workers=2", "--batch-size=40")
    mount = 'mount -t tmpfs -o size=64k none /dev/shm 2>/dev/null; exec "$@"'
    private = (
        ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    )
    allowed = subprocess.run([*private, "true"], capture_output=True, check=False).returncode == 0
    wrapper = [*private, "sh", "-c", mount, "sh"] if allowed else []
    process = start(*training(dataset, tmp_path, 3, *streamed), wrapper=wrapper)
    try:
        printed, errors = process.communicate(timeout=HANG)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "read from disk by 2 workers" in printed


def test_a_read_only_disk(dataset: Path, tmp_path: Path) -> None:
    with mounted(tmp_path, "ro") as own:
        if not own:
            tmp_path.chmod(0o500)
        process = start(*training(dataset, tmp_path, 1), wrapper=WITHOUT_OVERRIDE)
        _, errors = process.communicate(timeout=HANG)
    why = "Read-only file system" if own else "Permission denied"
    assert process.returncode == 1
    assert errors == f"error: cannot write {tmp_path}/x3/best.pth: {why}\n"


@pytest.mark.parametrize("name", ["val/Set5_x3.h5", "w.pth", "images/a.png"])
def test_a_file_that_may_not_be_read(
    dataset: Path, weights: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(dataset / "val", tmp_path / "val")
    shutil.copy(weights, tmp_path / "w.pth")
    save_image(tmp_path / "images/a.png", 40, 40)
    locked = tmp_path / name
    locked.chmod(0)
    source = f"--images-dir={tmp_path}/images" if "images" in name else f"--data-path={tmp_path}"
    words = (ROOT / "evaluate.py", source, f"--weights={tmp_path}/w.pth", "--device=cpu")
    _, errors = start(*words, wrapper=WITHOUT_OVERRIDE).communicate(timeout=HANG)
    assert errors == f"error: cannot read {locked}: Permission denied\n"


@pytest.mark.parametrize("rights", [0, 0o400], ids=["no rights", "to list it"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate.py --images-dir={0}/val", "no images in {0}/val: Permission denied; "),
        ("evaluate.py --data-path={0}", "cannot read {0}/val/Set5_x3.h5: Permission denied"),
        ("upscale.py {0}/val --output={0}/out", "{0}/val{1}: cannot be read (Permission denied)"),
        ("upscale.py {0}/val/a.png --output={0}/out", "{0}/val/a.png: cannot be read (Permission"),
    ],
)
def test_a_folder_that_may_not_be_entered(
    tmp_path: Path, words: str, message: str, rights: int
) -> None:
    """Python's Path.is_file raises an exception there, and from 3.14 on says no."""
    save_image(tmp_path / "val/a.png", 40, 40)
    (tmp_path / "val").chmod(rights)
    command, *more = words.format(tmp_path).split()
    _, errors = start(ROOT / command, *more, wrapper=WITHOUT_OVERRIDE).communicate(timeout=HANG)
    (tmp_path / "val").chmod(0o700)
    assert errors.startswith("error: " + message.format(tmp_path, "/a.png" if rights else ""))
    assert "Traceback" not in errors


@pytest.mark.parametrize("more", [(), ("--resume",)], ids=["anew", "--resume"])
def test_earlier_results_in_a_folder_that_may_not_be_listed_stay(
    dataset: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    folder = tmp_path / "x3"
    folder.mkdir()
    (folder / "best.pth").write_text("earlier")
    folder.chmod(0o300)
    words = training(dataset, tmp_path, 1, *more)
    process = start(*words, wrapper=WITHOUT_OVERRIDE)
    _, errors = process.communicate(timeout=HANG)
    folder.chmod(0o700)
    assert process.returncode
    assert re.fullmatch(f"error: cannot (write to|read) {folder}: Permission denied\n", errors)
    assert (folder / "best.pth").read_text() == "earlier"


def test_a_folder_that_turns_read_only_during_the_run(dataset: Path, tmp_path: Path) -> None:
    process = start(*training(dataset, tmp_path, 100000), wrapper=WITHOUT_OVERRIDE)
    wait_until(lambda: newest_step(tmp_path), process)
    (tmp_path / "x3").chmod(0o500)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 1, errors
    assert re.search(r"error: cannot write .*/x3/.*: Permission denied", errors.splitlines()[-1])
    assert "Traceback" not in errors
    (tmp_path / "x3").chmod(0o700)
    for unfinished in (tmp_path / "x3").glob(".*.tmp"):
        unfinished.unlink()  # nobody can take it out of a folder that turned read-only meanwhile
    assert_kept(tmp_path)


def test_a_folder_moved_away_during_the_run(dataset: Path, tmp_path: Path) -> None:
    process = start(*training(dataset, tmp_path, 100000))
    wait_until(lambda: newest_step(tmp_path), process)
    (tmp_path / "x3").rename(tmp_path / "elsewhere")
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 1, errors
    assert "was removed or replaced during the run" in errors.splitlines()[-1]
    assert checkpoint.load_newest(tmp_path / "elsewhere")


def test_a_folder_moved_away_while_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "x3"
    results = Results(folder, {}, save_every=1, tensorboard=False, resumed=None)
    monkeypatch.setattr(os, "fsync", lambda _: folder.exists() and folder.rename(tmp_path / "y"))
    with pytest.raises(RunError, match="was removed or replaced during the run"):
        results._write({"metrics.csv": b"1", "best.pth": b"2"}, 5, b"3")
    assert not folder.exists(), "nothing is written beside it"


def test_what_another_run_has_in_the_place_of_the_folder_stays(tmp_path: Path) -> None:
    folder = tmp_path / "x3"
    results = Results(folder, {}, save_every=1, tensorboard=False, resumed=None)
    folder.rename(tmp_path / "y")
    folder.mkdir()
    for name in (".lock", "best.pth"):
        (folder / name).write_bytes(b"theirs")
    with pytest.raises(RunError, match="was removed or replaced during the run"):
        results._write({"best.pth": b"ours"}, 5, b"3")
    assert (folder / "best.pth").read_bytes() == b"theirs"


def test_the_lock_of_a_killed_run_is_taken_over(dataset: Path, tmp_path: Path) -> None:
    """Workers that read from disk outlive it for a moment, and must not keep the lock."""
    streamed = ("--memory-share=1e-9", "--num-workers=2")
    process = start(*training(dataset, tmp_path, 100000, *streamed))
    wait_for_epochs(process, 1)
    process.kill()
    process.wait()
    result = run(*training(dataset, tmp_path, 1, *streamed, "--num-steps=2"))
    process.communicate()
    assert result.returncode == 0, result.stderr


def test_nothing_secret_is_written(dataset: Path, tmp_path: Path) -> None:
    """Neither values of the environment nor paths but those given."""
    shutil.copytree(dataset, tmp_path / "data")
    words = ["--data_url=data", "--train_url=out", *SMALL, "--num-epochs=1"]
    result = run("train.py", *words, cwd=tmp_path, env={"MY_TOKEN": "hunter2secret"})
    assert result.returncode == 0, result.stderr
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    texts = [result.stdout.encode(), result.stderr.encode(), *(path.read_bytes() for path in files)]
    for secret in ("hunter2secret", str(tmp_path), str(ROOT)):
        assert not any(secret.encode() in text for text in texts), secret
