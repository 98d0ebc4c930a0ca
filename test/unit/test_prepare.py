"""prepare.py: the contract's arrays, the dataset folder, order, memory, progress."""

import fcntl
import io
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from commands import ROOT, run
from expected_files import BICUBIC, plain_pair, plain_patches, prepare_file, save_image
from PIL import Image

import prepare
from imaging.sources import folder_images, open_image
from preparing import hdf5, pairs
from runtime.errors import UserError, run_main


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_arrays_equal_the_plain_recipe(images: Path, tmp_path: Path, scale: int) -> None:
    paths = sorted(path for path in images.iterdir() if path.suffix in {".png", ".bmp", ".jpg"})
    assert [path.stem for path in paths][-2:] == ["t10", "t2"]
    output = tmp_path / "new folder" / "train.h5"
    prepare_file(images, output, "--scale", str(scale), "--patch-size", "33", "--stride", "14")
    with h5py.File(output) as file:
        assert set(file) == {"lr", "hr"}
        for name, expected in plain_patches(paths, scale).items():
            assert file[name].dtype == np.float32
            np.testing.assert_array_equal(file[name][:], expected)

    prepare_file(images, output, "--scale", str(scale), "--eval")
    with h5py.File(output) as file:
        assert set(file) == {"lr", "hr"}
        assert list(file.attrs["names"]) == [path.stem for path in paths]
        for index, path in enumerate(paths):
            for name, expected in zip(("lr", "hr"), plain_pair(path, scale), strict=True):
                assert file[name][str(index)].dtype == np.float32
                np.testing.assert_array_equal(file[name][str(index)][:], expected)
        assert len(file["lr"]) == len(file["hr"]) == len(paths)


@pytest.mark.parametrize(("size", "stride"), [(7, 1), (20, 33), (45, 5)])
def test_other_patch_sizes_and_strides(images: Path, tmp_path: Path, size, stride) -> None:
    output = tmp_path / "train.h5"
    prepare_file(images, output, "--patch-size", str(size), "--stride", str(stride))
    paths = sorted(path for path in images.iterdir() if path.suffix in {".png", ".bmp", ".jpg"})
    paths = [path for path in paths if min(plain_pair(path, 2)[0].shape) >= size]
    with h5py.File(output) as file:
        for name, expected in plain_patches(paths, 2, size, stride).items():
            np.testing.assert_array_equal(file[name][:], expected)


def test_threads_keep_the_order(images: Path, tmp_path: Path) -> None:
    for jobs in ("1", "5"):
        prepare_file(images, tmp_path / f"{jobs}.h5", "--jobs", jobs)
    with h5py.File(tmp_path / "1.h5") as one, h5py.File(tmp_path / "5.h5") as five:
        np.testing.assert_array_equal(one["lr"][:], five["lr"][:])


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_real_images_equal_the_plain_recipe(
    t91: Path, set5: Path, tmp_path: Path, scale: int
) -> None:
    folder = tmp_path / "part"
    folder.mkdir()
    for path in sorted(t91.iterdir())[:6]:
        (folder / path.name).symlink_to(path)
    prepare_file(folder, tmp_path / "train.h5", "--scale", str(scale))
    with h5py.File(tmp_path / "train.h5") as file:
        for name, expected in plain_patches(sorted(folder.iterdir()), scale).items():
            np.testing.assert_array_equal(file[name][:], expected)
    prepare_file(set5, tmp_path / "eval.h5", "--scale", str(scale), "--eval")
    with h5py.File(tmp_path / "eval.h5") as file:
        for index, path in enumerate(sorted(set5.iterdir())):
            lr, hr = plain_pair(path, scale)
            np.testing.assert_array_equal(file[f"lr/{index}"][:], lr)
            np.testing.assert_array_equal(file[f"hr/{index}"][:], hr)


def test_the_whole_of_t91(t91: Path, set5: Path, tmp_path: Path) -> None:
    folders = ["--train-images", t91, "--eval-images", set5]
    prepare.main(["--data-path", str(tmp_path), *map(str, folders)])
    patches = tmp_path / "train" / "T91_x3.h5"
    with h5py.File(patches) as file:
        assert file["lr"].shape == file["hr"].shape == (21884, 33, 33)
    assert round(patches.stat().st_size / 1e6, 2) == 190.66
    patches.unlink()
    with h5py.File(tmp_path / "train" / "T91_x3_images.h5") as file:
        assert (len(file["lr"]), len(file["hr"]), file.attrs["images"]) == (455, 455, 91)
        assert [file[f"hr/{91 * size}"].shape for size in range(5)] == [
            (174, 195), (156, 177), (141, 156), (123, 138), (105, 117),
        ]  # fmt: skip
    with h5py.File(tmp_path / "val" / "Set5_x3.h5") as file:
        assert list(file.attrs["names"])[2] == "butterfly_GT"


def test_images_in_other_sizes_equal_the_plain_recipe(images: Path, tmp_path: Path) -> None:
    paths = folder_images(images)
    hdf5.write_images(tmp_path / "images.h5", paths, scale=3, jobs=2, sizes=(1.0, 0.6))
    with h5py.File(tmp_path / "images.h5") as file:
        assert len(file["hr"]) == 2 * len(paths)
        for index, path in enumerate(paths):
            with Image.open(path) as image:
                small = image.convert("RGB")
            small = small.resize((round(0.6 * small.width), round(0.6 * small.height)), BICUBIC)
            small.save(tmp_path / "small.png")
            for number, source in ((index, path), (len(paths) + index, tmp_path / "small.png")):
                for name, expected in zip(("lr", "hr"), plain_pair(source, 3), strict=True):
                    np.testing.assert_array_equal(file[f"{name}/{number}"][:], expected)


def test_an_image_is_decoded_once_for_all_sizes(images: Path, tmp_path: Path, monkeypatch) -> None:
    decoded = []
    monkeypatch.setattr(pairs, "open_image", lambda path: decoded.append(path) or open_image(path))
    paths = folder_images(images)
    hdf5.write_images(tmp_path / "x.h5", paths, scale=3, jobs=2, sizes=prepare.SIZES)
    assert sorted(decoded) == paths


def test_small_sizes_of_small_images_hold_a_pixel(tmp_path: Path) -> None:
    """No side falls below the scale, nor is an image of just the scale too small."""
    path = save_image(tmp_path / "in" / "small.png", 4, 9)
    shapes = [hr.shape for _, hr in pairs.modelzoo_pairs([path], 4, 1, (1.0, 0.9, 0.3))]
    assert shapes == [(8, 4), (8, 4), (4, 4)]


def test_images_are_made_ahead_of_the_one_in_use_but_no_more_than_jobs(monkeypatch) -> None:
    """In order, whichever is made first; each in all its sizes."""
    made: list[tuple] = []

    class Pool:
        def __init__(self, jobs: int) -> None:
            self.jobs = jobs

        def __enter__(self) -> "Pool":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def submit(self, make: Callable, path: str, *options: object) -> SimpleNamespace:
            made.append((self.jobs, path, *options))
            return SimpleNamespace(result=lambda: [path, path.upper()])

    monkeypatch.setattr(pairs, "ThreadPoolExecutor", Pool)
    taken = pairs.modelzoo_pairs("abcdefg", 3, 2, (1.0, 0.5))
    assert next(taken) == "a"
    assert made == [(2, path, 3, (1.0, 0.5)) for path in "abc"]
    assert "".join(taken) == "AbBcCdDeEfFgG"
    assert len(made) == 7


@pytest.mark.parametrize("rows", [1, 2, 3, 9])
def test_patches_are_cut_some_rows_at_a_time(monkeypatch, rows: int) -> None:
    """As many as the block holds, and one where it holds none: the same patches in any case."""
    image = np.arange(31 * 23, dtype=np.float32).reshape(31, 23)[:, ::-1]
    for room in (rows * 4 * 25, rows * 4 * 25 + 99) if rows > 1 else (1, 100, 199):
        monkeypatch.setattr(pairs, "BLOCK_VALUES", room)
        blocks = list(pairs.patch_blocks(image, 5, 6))
        assert [len(block) for block in blocks] == [
            4 * min(rows, 5 - top) for top in range(0, 5, rows)
        ]
        expected = [
            image[top : top + 5, left : left + 5]
            for top in range(0, 27, 6)
            for left in range(0, 19, 6)
        ]
        np.testing.assert_array_equal(np.concatenate(blocks), expected)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--eval"], "6 whole images, x2"),
        (["--stride=20", "--patch-size=40"], "26 patches of 6 images, x2"),
    ],
)
def test_what_is_said_of_a_file_while_and_after_it_is_made(
    images: Path, tmp_path: Path, monkeypatch, options: list[str], what: str
) -> None:
    """At once: who looks into a log that is being written finds it there."""
    bars, output, log = [], tmp_path / "x.h5", io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(log))

    def bar(pairs: Iterator, *labels: object, **how: object) -> Iterator:
        bars.append((labels, how))
        return pairs

    monkeypatch.setattr("tqdm.tqdm", bar)
    clock = SimpleNamespace(perf_counter=iter([100.0, 102.46]).__next__)
    monkeypatch.setattr(hdf5, "time", clock)
    said = []

    def main() -> None:
        prepare_file(images, output, *options)
        said.append(log.getvalue().decode())

    run_main(main)
    size = f"{output.stat().st_size / 1e6:.2f} MB"
    assert said == [f"{output}: {what}, {size} in 2.5 s\n"]
    (((name, count), how),) = bars
    assert (name, count, how["leave"]) == ("x.h5", 6, False), "the bar goes when it is full"
    assert how["disable"] is None, "none where no terminal is"


def test_what_is_said_of_images_in_several_sizes(images: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--data-path", str(tmp_path / "d"), "--train-images", str(images)]
    prepare.main([*arguments, "--eval-images", str(images), "--scale=4", "--stride=90"])
    said = capsys.readouterr().out.splitlines()
    whats = ["6 patches of 6 images, x4", "6 whole images in 5 sizes, x4", "6 whole images, x4"]
    names = ["train/T91_x4.h5", "train/T91_x4_images.h5", "val/Set5_x4.h5"]
    for line, name, what in zip(said, names, whats, strict=True):
        assert line.startswith(f"{tmp_path}/d/{name}: {what}, ")
    with h5py.File(tmp_path / "d/train/T91_x4_images.h5") as file:
        assert file.attrs["images"] == 6
    with h5py.File(tmp_path / "d/val/Set5_x4.h5") as file:
        assert "images" not in file.attrs


def test_no_name_forges_a_line(images: Path, tmp_path: Path, capsys) -> None:
    save_image(images / "a\nb.png", 30, 30)
    words = ["--images-dir", str(images), "--output-path", str(tmp_path / "c\nd.h5"), "--scale=2"]
    prepare.main(words)
    said = capsys.readouterr()
    assert r"c\nd.h5: " in said.out and said.out.count("\n") == 1
    assert r"a\nb.png" in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize(("cores", "jobs"), [(None, 1), (1, 1), (3, 3), (16, 4)])
def test_a_job_for_each_core_and_four_at_most(monkeypatch, cores: int | None, jobs: int) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    args = prepare.parse_args(["--images-dir", "a", "--output-path", "b"])
    assert (args.jobs, args.patch_size, args.stride, args.scale) == (jobs, 33, 14, 2)


def test_default_scales(images: Path, tmp_path: Path) -> None:
    prepare_file(images, tmp_path / "one.h5", "--eval")
    with h5py.File(tmp_path / "one.h5") as file:
        assert file["lr/5"].shape == (80, 96)  # x2
    arguments = ["--train-images", str(images), "--eval-images", str(images)]
    prepare.main(["--data-path", str(tmp_path / "d"), *arguments])
    names = {str(path.relative_to(tmp_path / "d")) for path in (tmp_path / "d").rglob("*.h5")}
    assert names == {"train/T91_x3.h5", "train/T91_x3_images.h5", "val/Set5_x3.h5"}


def test_finished_files_are_kept(images: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "d"
    arguments = ["--data-path", str(folder), "--train-images", str(images)]
    arguments += ["--eval-images", str(images), "--scale", "2"]
    prepare.main(arguments)
    kept, again = folder / "train" / "T91_x2.h5", folder / "val" / "Set5_x2.h5"
    kept.write_bytes(b"mine")
    again.unlink()
    capsys.readouterr()
    prepare.main(arguments)
    assert kept.read_bytes() == b"mine"
    assert h5py.is_hdf5(again)
    assert f"{kept}: kept" in capsys.readouterr().out
    prepare.main([*arguments, "--force"])
    assert h5py.is_hdf5(kept)
    shutil.rmtree(images)
    prepare.main(arguments)  # needs no images where all files are there
    assert capsys.readouterr().out.count(": kept as it is") == 3


def test_sample_photographs_have_their_own_names(tmp_path: Path, capsys) -> None:
    prepare.main(["--data-path", str(tmp_path), "--sample", "--scale", "4", "--stride", "60"])
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.h5")}
    assert names == {"train/sample_x4.h5", "train/sample_x4_images.h5", "val/sample_x4.h5"}
    assert "NOT T91" in capsys.readouterr().out
    with h5py.File(tmp_path / "val" / "sample_x4.h5") as file:
        measured = set(file.attrs["names"])
    with h5py.File(tmp_path / "train" / "sample_x4_images.h5") as file:
        trained = set(file.attrs["names"])
    assert len(measured) >= 2
    assert len(trained) >= 8
    assert not trained & measured


def test_small_images_are_named_and_skipped(images: Path, tmp_path: Path, capsys) -> None:
    save_image(images / "tiny.png", 200, 32)
    save_image(images / "tiny2.png", 34, 35)  # 32×32 at x4
    save_image(images / "fits.png", 36, 36)
    prepare_file(images, tmp_path / "train.h5", "--scale", "4", "--patch-size", "36")
    captured = capsys.readouterr().err
    assert "skipped 2 images" in captured
    assert "tiny.png, tiny2.png" in captured
    assert "fits.png" not in captured


def test_training_images_that_hold_no_patch_stay_out_of_both_files(tmp_path: Path) -> None:
    for name, side in (("large", 60), ("small", 20)):
        save_image(tmp_path / "in" / f"{name}.png", side, side)
    folder = str(tmp_path / "in")
    prepare.main(
        ["--data-path", str(tmp_path / "d"), "--train-images", folder, "--eval-images", folder]
    )
    with h5py.File(tmp_path / "d" / "train" / "T91_x3_images.h5") as file:
        assert list(file.attrs["names"]) == ["large"]
    with h5py.File(tmp_path / "d" / "val" / "Set5_x3.h5") as file:
        assert list(file.attrs["names"]) == ["large", "small"]


def test_thousands_of_names_fit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(hdf5, "modelzoo_pairs", lambda *_: iter(()))
    hdf5.write_images(tmp_path / "eval.h5", [Path("name.png")] * 5000, scale=1, jobs=1)
    with h5py.File(tmp_path / "eval.h5") as file:
        assert list(file.attrs["names"]) == ["name"] * 5000


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """40 images give 400 MB of patches: ten times what may be added."""
    source = save_image(tmp_path / "source.bmp", 300, 300)
    folder = tmp_path / "in"
    folder.mkdir()
    peaks = []
    for count in (4, 40):
        for index in range(count):
            (folder / f"{index}.bmp").unlink(missing_ok=True)
            (folder / f"{index}.bmp").symlink_to(source)
        code = (
            "import pathlib, prepare, sys; prepare.main(sys.argv[1:]);"  # VmHWM: see proc(5); the
            "status = pathlib.Path('/proc/self/status').read_text();"  # parent's peak is not in it
            "print(int(status.split('VmHWM:')[1].split()[0]) // 1024)"
        )
        command = [sys.executable, "-c", code, "--images-dir", folder, "--output-path"]
        result = subprocess.run(
            [*command, tmp_path / "x.h5", "--stride", "8", "--jobs", "1"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(result.stdout.splitlines()[-1]))
    assert (tmp_path / "x.h5").stat().st_size > 400e6
    (tmp_path / "x.h5").unlink()
    assert peaks[1] < peaks[0] + 40, peaks


def test_command_line(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "x y.h5"
    result = run("prepare.py", "--images-dir", images, "--output-path", output, cwd=tmp_path)
    assert result.returncode == 0
    assert result.stderr == ""  # no progress bar where no terminal is
    assert h5py.is_hdf5(output)
    result = run("prepare.py", "--images-dir", tmp_path / "none", "--output-path", output)
    assert result.returncode == UserError.exit_status
    assert result.stderr.startswith("error: no images in ")
    assert result.stderr.count("\n") == 1


def test_progress_bar_on_a_terminal(images: Path, tmp_path: Path) -> None:
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, ROOT / "prepare.py", "--images-dir", images]
    subprocess.run([*command, "--output-path", tmp_path / "x.h5"], stderr=terminal, check=True)
    os.close(terminal)
    shown = os.read(reader, 65536).decode()
    os.close(reader)
    assert "x.h5:   0%" in shown
    assert "/6 [" in shown


def test_as_many_images_are_made_at_a_time_as_is_asked_for(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(prepare, "write_images", lambda *_, **how: given.append(how))
    words = [f"--images-dir={images}", f"--output-path={tmp_path}/a.h5", "--eval"]
    prepare.main([*words, "--scale=3", "--jobs=5"])
    assert given == [{"scale": 3, "jobs": 5}]
