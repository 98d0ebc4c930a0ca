"""prepare.py on bad images, bad options, a full disk: a clear error, nothing half-written."""

import errno
import io
import os
import re
import resource
import signal
import sys
from pathlib import Path
from typing import IO

import h5py
import numpy as np
import pytest
import tifffile
from commands import ROOT, run, wait_until
from expected_files import prepare_file, save_image
from PIL import Image
from runs import start

import prepare
from imaging.sources import folder_images
from runtime.errors import RunError, UserError, end_at_signals, run_main


def truncate(images: Path) -> None:
    path = images / "t10.bmp"
    path.write_bytes(path.read_bytes()[:5000])


BAD_FOLDERS = {
    "all smaller than a patch": (
        lambda images: None,
        ["--patch-size", "200"],
        "smaller than a 200×200 patch at x2",
    ),
    "truncated": (truncate, [], "t10.bmp cannot be read"),
    "truncated, whole images": (truncate, ["--eval"], "t10.bmp cannot be read"),
    "no image": (lambda images: (images / "x.dat").write_text("?"), [], "x.dat cannot be read"),
    "empty file": (lambda images: (images / "x.png").touch(), [], "x.png cannot be read"),
    "smaller than the scale": (
        lambda images: save_image(images / "dot.png", 3, 3),
        ["--eval", "--scale", "4"],
        "dot.png is 3×3, less than the scale",
    ),
    "16 bits": (
        lambda images: Image.new("I;16", (50, 50)).save(images / "deep.png"),
        [],
        "deep.png has 16 bits a channel; save it with 8 bits a channel",
    ),
    "16 bits, colours": (
        lambda images: tifffile.imwrite(images / "deep.tif", np.zeros((50, 50, 3), np.uint16)),
        [],
        "deep.tif has 16 bits a channel; save it with 8 bits a channel",
    ),
    "a data file": (
        lambda images: h5py.File(images / "old.h5", "w").close(),
        [],
        r"old.h5 cannot be read as an image \(Pillow reads no HDF5\); mend or remove it",
    ),
    "floating point": (
        lambda images: Image.new("F", (50, 50)).save(images / "deep.tif"),
        [],
        "deep.tif has pixels of mode F",
    ),
    "32 bits": (
        lambda images: Image.new("I", (50, 50)).save(images / "deep.tif"),
        [],
        "deep.tif has pixels of mode I",
    ),
    "animated": (
        lambda images: Image.new("L", (50, 50)).save(
            images / "film.gif", save_all=True, append_images=[Image.new("L", (50, 50), 9)]
        ),
        [],
        "film.gif has 2 frames or pages; save the one you want alone",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_images(images: Path, tmp_path: Path, case: str, capsys) -> None:
    break_it, options, message = BAD_FOLDERS[case]
    break_it(images)
    output = tmp_path / "out" / "file.h5"
    with pytest.raises(UserError, match=message):
        prepare_file(images, output, *options)
    assert not output.parent.exists()


def test_a_decompression_bomb_is_refused(images: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"cannot be read.*decompression bomb"):
        prepare_file(images, tmp_path / "train.h5")


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: No such file .*; name a folder of im"):
        prepare_file(tmp_path / "nowhere", tmp_path / "train.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: it is empty; name a folder of images"):
        prepare_file(tmp_path / "empty", tmp_path / "train.h5")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: Not a directory; name a folder of images"):
        prepare_file(tmp_path / "file", tmp_path / "train.h5")


def test_evaluation_images_are_looked_at_before_any_file_is_made(
    images: Path, tmp_path: Path
) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/a.png").touch()
    words = (f"--train-images={images}", f"--eval-images={tmp_path / 'eval'}")
    with pytest.raises(UserError, match=r"eval/a\.png cannot be read as an image"):
        prepare.main([f"--data-path={tmp_path / 'd'}", *words])
    assert not (tmp_path / "d").exists()
    kept = tmp_path / "d/val/Set5_x3.h5"
    kept.parent.mkdir(parents=True)
    kept.touch()
    prepare.main([f"--data-path={tmp_path / 'd'}", *words])
    assert (tmp_path / "d/train/T91_x3.h5").is_file(), "what they give is there already"


def test_one_of_two_training_files_may_be_of_other_images(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipes would train on different pictures. Both there, or neither: nothing is said."""
    words = [f"--data-path={tmp_path}", f"--train-images={images}", f"--eval-images={images}"]
    prepare.main(words)
    patches, whole = (tmp_path / "train" / f"T91_x3{end}.h5" for end in ("", "_images"))
    prepare.main(words)
    assert capsys.readouterr().err == ""
    whole.unlink()
    prepare.main(words)
    assert capsys.readouterr().err == (
        f"warning: {whole} is made and {patches} kept; where they are of different images, "
        f"--force makes both anew\n"
    )


def test_a_file_of_another_kind_is_not_overwritten(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "weights.pth"
    output.write_bytes(b"PK weights")
    message = f"^--output-path {output} is there, and no HDF5 file; name another$"
    with pytest.raises(UserError, match=message):
        prepare_file(images, output)
    assert output.read_bytes() == b"PK weights"
    output.write_bytes(b"")  # as mktemp makes it
    for _ in range(2):
        prepare_file(images, output)


def test_an_image_is_not_overwritten(images: Path, tmp_path: Path) -> None:
    image = images / "t10.bmp"
    before = image.read_bytes()
    with pytest.raises(UserError, match=f"^--output-path {image} is read here; name another file$"):
        prepare.main(["--images-dir", str(images), "--output-path", str(image)])
    assert image.read_bytes() == before


def test_output_that_cannot_be_written(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*x\.h5: (Not a directory|File exists)"):
        prepare_file(images, tmp_path / "file" / "x.h5")
    with pytest.raises(UserError, match=r"cannot write .*: it is a folder"):
        prepare_file(images, images)


@pytest.mark.parametrize("room", [0, 100, 4096, 70_000, 200_000])
@pytest.mark.parametrize("options", [[], ["--eval"]])
def test_full_disk_is_one_line(images: Path, tmp_path: Path, room: int, options: list) -> None:
    """A limit on file sizes stands for the full disk: the same error from the system."""
    output = tmp_path / "out" / "x.h5"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    result = run(
        "prepare.py", "--images-dir", images, "--output-path", output, *options, preexec_fn=limit
    )
    assert result.returncode == RunError.exit_status, result.stderr
    assert result.stderr == f"error: cannot write {output}: File too large\n"
    assert not output.parent.exists()


def test_what_closing_the_file_says_then_is_no_news(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As h5py does with Python 3.14, where the disk is full."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    close = h5py.File.close

    def fails_in_closing(file: h5py.File) -> None:
        close(file)
        raise SystemError("returned a result with an exception set")

    monkeypatch.setattr(h5py.Dataset, "__setitem__", full)
    monkeypatch.setattr(h5py.File, "close", fails_in_closing)
    with pytest.raises(RunError, match=r"cannot write .*x\.h5: No space left on device"):
        prepare_file(images, tmp_path / "out" / "x.h5")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--scale", "--stride", "--patch-size", "--jobs"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x"])
def test_numbers_below_one(images: Path, tmp_path: Path, option, value, capsys) -> None:
    with pytest.raises(SystemExit) as error:
        prepare_file(images, tmp_path / "train.h5", f"{option}={value}")
    assert error.value.code == 2
    assert f"{value!r} is not a whole number, 1 or more" in capsys.readouterr().err


def test_a_stride_beyond_all_images(images: Path, tmp_path: Path, capsys) -> None:
    prepare_file(images, tmp_path / "train.h5", "--stride=1000000000")  # one patch of each
    with h5py.File(tmp_path / "train.h5") as file:
        assert len(file["lr"]) == len(folder_images(images))
    with pytest.raises(SystemExit) as error:
        prepare_file(images, tmp_path / "train.h5", f"--stride={10**26}")
    assert error.value.code == 2
    assert "1 or more, at most 1e+09" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--images-dir", "a"],
        ["--output-path", "a"],
        ["--images-dir", "a", "--output-path", "b", "--download"],
        ["--images-dir", "a", "--output-path", "b", "--force"],
        ["--data-path", "d"],
        ["--data-path", "d", "--eval", "--sample"],
        ["--data-path", "d", "--train-images", "a"],
        ["--data-path", "d", "--eval-images", "a"],
        ["--data-path", "d", "--sample", "--download"],
        ["--data-path", "d", "--sample", "--train-images", "a", "--eval-images", "b"],
        ["--data-path", "d", "--sample", "--images-dir", "a", "--output-path", "b"],
    ],
)
def test_options_that_do_not_go_together(options: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as error:
        prepare.parse_args(options)
    assert error.value.code == 2
    assert re.search(r"error: .*--data-path", capsys.readouterr().err)


def test_a_former_file_outlives_a_failure(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "x.h5"
    prepare_file(images, output)
    before = output.read_bytes()
    truncate(images)
    with pytest.raises(UserError):
        prepare_file(images, output)
    assert output.read_bytes() == before
    assert [path.name for path in output.parent.iterdir()] == ["x.h5"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_aborted_run_leaves_nothing(tmp_path: Path, number: int, status: int) -> None:
    source = save_image(tmp_path / "source.bmp", 500, 500)
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(2000):  # more than can be finished before the signal
        (folder / f"{index}.bmp").symlink_to(source)
    output = tmp_path / "out" / "x.h5"
    words = ("--images-dir", folder, "--output-path", output, "--eval")
    with start(ROOT / "prepare.py", *words) as process:
        wait_until(lambda: list(tmp_path.rglob(".x.h5.*.tmp")), process)
        process.send_signal(number)
        errors = process.communicate()[1]
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert not output.parent.exists()


class Interrupting(io.BufferedRandom):
    """A file whose writing is interrupted, within HDF5, which writes by it."""

    signum = signal.SIGINT
    after = 0  # writes

    def write(self, data: bytes) -> int:
        self.after -= 1
        if self.after < 0:
            signal.raise_signal(self.signum)
        return super().write(data)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("after", [0, 1, 5, 9])
@pytest.mark.parametrize("options", [["--eval"], []])
def test_a_signal_within_hdf5_is_not_lost(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    signum: int, status: int, after: int, options: list[str],
) -> None:  # fmt: skip
    """HDF5 calls Python to write, and h5py makes another exception of what is raised there."""
    opened = Path.open

    def interrupting(path: Path, mode: str = "r", **options: object) -> IO:
        return (
            Interrupting(io.FileIO(path, "w+")) if mode == "w+b" else opened(path, mode, **options)
        )

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    end_at_signals()
    monkeypatch.setattr(Interrupting, "signum", signum)
    monkeypatch.setattr(Interrupting, "after", after)
    monkeypatch.setattr(Path, "open", interrupting)
    with pytest.raises(SystemExit) as end:
        sys.exit(run_main(lambda: prepare_file(images, tmp_path / "out" / "x.h5", *options)))
    assert end.value.code == status
    assert capsys.readouterr().err == ("interrupted\n" if signum == signal.SIGINT else "")
    assert not (tmp_path / "out").exists()


def test_an_image_error_ends_with_one_line(images: Path, tmp_path: Path, capsys) -> None:
    truncate(images)
    status = run_main(lambda: prepare_file(images, tmp_path / "x.h5"))
    assert status == UserError.exit_status
    assert capsys.readouterr().err.count("\n") == 1
