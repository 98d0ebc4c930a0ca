"""Which pictures upscale.py takes, what it leaves aside and says so; names, streams, limits."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, assert_one_line_error, run
from PIL import Image
from samples import coffee, opened, png

from imaging import album
from imaging.kinds import PictureError
from inference.upscaler import enlarge_all
from runtime.errors import RunError


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coffee(20, 10).save(path, "PNG")
    return path


def test_only_sources_of_one_result_are_refused(tmp_path: Path) -> None:
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    for path in (a / "x.png", b / "x.png", b / "y.png"):
        save(path)
    made = album.plan([a, b, a / "x.png"], out, "_x2")
    assert made.work == {out / "y_x2.png": b / "y.png"}
    assert set(made.refused) == {a / "x.png", b / "x.png"}
    assert "would all become" in made.refused[a / "x.png"]
    for again in (a / "x.png", tmp_path / "b" / ".." / "a" / "x.png"):
        made = album.plan([a, again], out, "_x2")
        assert made.work == {out / "x_x2.png": a / "x.png"}
        assert not made.refused


def test_what_would_overwrite_a_picture_is_refused(tmp_path: Path) -> None:
    one, two = save(tmp_path / "a.png"), save(tmp_path / "a_x3.png")
    made = album.plan([one, two], tmp_path, "_x3")
    assert made.work == {tmp_path / "a_x3_x3.png": two}
    assert "which is to be enlarged, too" in made.refused[one]
    assert album.plan([one], tmp_path, "").refused, "would overwrite itself"
    with pytest.raises(PictureError, match="is the folder of the pictures"):
        album.plan([tmp_path], tmp_path, "_x3")


def test_no_picture_is_overwritten_whatever_way_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, link = tmp_path / "home", tmp_path / "link"
    for name in ("a.png", "a_x3.png"):
        save(home / name)
    link.symlink_to(home)
    monkeypatch.chdir(home)
    for folder in (Path(), Path("..", "home"), link):
        one, two = folder / "a.png", folder / "a_x3.png"
        for output in (Path(), home, link):
            made = album.plan([one, two], output, "_x3", force=True)
            assert made.work == {output / "a_x3_x3.png": two}, (folder, output)
            assert "which is to be enlarged, too" in made.refused[one]


def test_a_folder_is_mirrored_and_what_is_skipped_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "album", tmp_path / "album" / "out"
    for name in ("a.png", "more/a.png", "more/b.jpg", "out/old.png"):
        save(folder / name)
    for name in ("Thumbs.db", "notes.txt"):
        (folder / name).touch()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "more" / "up").symlink_to(folder)
    (folder / "linked").symlink_to(folder / "more")
    made = album.plan([folder], out, "_x2")
    assert list(made.work) == [out / "a_x2.png"]
    assert made.notes == [
        f"{folder}: skipped 3 (no pictures, or hidden): Thumbs.db, loop.png, notes.txt",
        f"{folder}: 1 subfolders not entered; --recursive does",
    ]
    made = album.plan([folder], out, "_x2", recursive=True)
    assert set(made.work) == {out / "a_x2.png", out / "more/a_x2.png", out / "more/b_x2.png"}
    assert not made.refused
    assert "not entered" not in str(made.notes)
    monkeypatch.chdir(tmp_path)
    named = album.plan([Path("album")], Path("album/out"), "_x2", recursive=True)
    assert {tmp_path / target for target in named.work} == set(made.work)
    empty = tmp_path / "empty"
    empty.mkdir()
    made = album.plan([empty], out, "")
    assert (list(made.folders), made.refused) == ([empty], {}), "a folder is no picture"
    assert made.folders[empty].startswith("no pictures in it; expected .png, .jpg")


def test_what_macos_leaves_beside_a_picture_is_none(tmp_path: Path) -> None:
    save(tmp_path / "in/a.png")
    save(tmp_path / "in/.hidden.png")
    (tmp_path / "in/._a.png").write_bytes(b"\0\5\x16\7")
    save(tmp_path / "in/.Trashes/b.png")
    made = album.plan([tmp_path / "in"], tmp_path / "out", "_x2")
    assert list(made.work) == [tmp_path / "out/a_x2.png"]
    skipped = f"{tmp_path / 'in'}: skipped 2 (no pictures, or hidden): ._a.png, .hidden.png"
    assert made.notes == [skipped]
    deeper = album.plan([tmp_path / "in"], tmp_path / "out", "_x2", recursive=True)
    assert (deeper.work, deeper.notes) == (made.work, made.notes)
    named = album.plan([tmp_path / "in/.hidden.png"], tmp_path / "out", "_x2")
    assert list(named.work) == [tmp_path / "out/.hidden_x2.png"]


def test_a_link_that_leads_nowhere_is_a_result_that_is_there(tmp_path: Path) -> None:
    picture, link = save(tmp_path / "a.png"), tmp_path / "a_x2.png"
    link.symlink_to("nowhere")
    made = album.plan([picture], tmp_path, "_x2")
    assert (made.work, made.refused) == ({}, {})
    assert made.notes == ["1 skipped, as the result is there; --force overwrites it"]
    assert album.plan([picture], tmp_path, "_x2", force=True).work == {link: picture}


def test_a_loop_of_links_is_one_pictures_fault(tmp_path: Path) -> None:
    picture, loop = save(tmp_path / "a.png"), tmp_path / "loop.png"
    loop.symlink_to("loop.png")
    made = album.plan([picture, loop], tmp_path / "out", "_x2")
    assert picture in made.work.values()


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "in/a.png")
    save(tmp_path / "in/locked/b.png")
    scandir = os.scandir

    def guarded(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    made = album.plan([tmp_path / "in"], tmp_path / "out", "", recursive=True)
    assert list(made.work.values()) == [tmp_path / "in/a.png"]
    told = {tmp_path / "in/locked": "cannot be read (Permission denied)"}
    assert made.folders == told
    assert album.plan([tmp_path / "in/locked"], tmp_path / "out", "").folders == told


def test_a_folder_of_one_picture_to_a_stream(tmp_path: Path) -> None:
    picture = save(tmp_path / "A.PNG")
    assert album.plan([tmp_path], album.STREAM, "").work == {album.STREAM: picture}


def test_a_folder_may_have_a_name_as_a_picture_has(tmp_path: Path) -> None:
    """Where it is there; else a result was meant."""
    folder = tmp_path / "a.PNG"
    assert album.unwritable(folder) == "expected a folder, and this is the name of a picture"
    folder.mkdir()
    assert album.unwritable(folder) == ""


def test_a_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png")
    made = album.plan([picture], tmp_path.joinpath(*["x" * 200] * 25), "_x3")
    why = "would become a_x3.png (File name too long); name another --output"
    assert made.refused == {picture: why}


def test_names_of_every_length(tmp_path: Path, weights: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    long, longer = save(folder / ("x" * 240 + ".png")), save(folder / ("y" * 251 + ".png"))
    result = run("upscale.py", folder, "--output", out, "--weights", weights, "--suffix=")
    assert result.returncode == 0, result.stderr
    assert {p.name for p in out.iterdir()} == {long.name, longer.name}
    shutil.rmtree(out)
    result = run("upscale.py", folder, "--output", out, "--weights", weights)
    assert_one_line_error(result, "1 of 2 pictures could not be enlarged", status=1)
    assert "is longer than 255 bytes; --suffix shortens it" in result.stderr
    assert [p.name for p in out.iterdir()] == ["x" * 240 + "_x3.png"]


NO_UTF_8 = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
}


def test_bytes_that_are_no_text_in_names_and_a_locale_without_utf_8(
    tmp_path: Path, weights: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in (b"J\xf6rg.png", "咖啡.png".encode(), b"two\nlines.png"):
        save(folder / os.fsdecode(name))
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"no picture")
    words = [folder, "--output", out, "--weights", weights]
    result = run("upscale.py", *words, env=NO_UTF_8)
    assert_one_line_error(result, "1 of 4 pictures could not", status=1)
    expected = {b"J\xf6rg_x3.png", "咖啡_x3.png".encode(), b"two\nlines_x3.png"}
    assert {os.fsencode(path.name) for path in out.iterdir()} == expected
    assert run("upscale.py", "--help", env=NO_UTF_8).returncode == 0


def test_from_and_to_streams(tmp_path: Path, weights: Path) -> None:
    image = coffee(40, 30)
    command = [sys.executable, ROOT / "upscale.py", "-", "--weights", weights, "--output"]
    piped = subprocess.run([*command, "-"], input=png(image), capture_output=True, check=False)
    assert piped.returncode == 0, piped.stderr
    assert opened(piped.stdout).shape == (90, 120, 3)
    assert b"1 of 1 pictures enlarged" in piped.stderr
    filed = subprocess.run([*command, tmp_path], input=png(image), capture_output=True, check=False)
    assert filed.returncode == 0, filed.stderr
    assert (tmp_path / "stdin_x3.png").read_bytes() == piped.stdout
    two = run("upscale.py", tmp_path / "a.png", tmp_path / "b.png", "--output", "-")
    assert_one_line_error(two, "standard output takes one picture, not 2")


@pytest.mark.parametrize("words", [["--help"], ["-", "--output", "-"]])
def test_a_reader_that_leaves(words: list[str], weights: Path) -> None:
    command = [sys.executable, ROOT / "upscale.py", *words, "--weights", weights]
    read, write = os.pipe()
    os.close(read)
    try:
        result = subprocess.run(
            command, input=png(coffee(40, 30)), stdout=write, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(write)
    assert b"Traceback" not in result.stderr
    assert b"Exception ignored" not in result.stderr


def test_whether_the_output_can_be_written_is_known_first(tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png")
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        result = run("upscale.py", picture, "--output", output, "--weights", "no such weights")
        assert_one_line_error(result, f"--output {output}: ", "cannot be written to")
    (tmp_path / "out" / "a_x3.png").mkdir(parents=True)
    result = run("upscale.py", picture, "--output", tmp_path / "out", "--weights", "none")
    assert_one_line_error(result, "a.png: would become", "which is a folder", status=1)
    assert result.stderr.count("\n") == 1


def test_whatever_a_picture_does_the_others_are_enlarged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    faults = [RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore"), KeyError(3)]
    faults += [RecursionError("too deep"), MemoryError(), None]

    class Failing:
        """Stands for an upscaler that fails in many ways."""

        def enlarge_file(self, source: Path, *_: object) -> tuple[int, str]:
            fault = faults[int(source.name)]
            if fault:
                raise fault
            return 1, ""

    made = album.Plan({Path(f"out{i}"): Path(str(i)) for i in range(5)})
    with pytest.raises(RunError, match="4 of 5 pictures could not"):
        enlarge_all(made, Failing(), jobs=2)
    out, err = capsys.readouterr()
    assert "1 of 5 pictures enlarged" in out
    assert len(err.splitlines()) == 4
    assert err.count("not enough memory") == 2


def test_a_memory_limit_costs_the_picture_that_is_too_large(tmp_path: Path, weights: Path) -> None:
    save(tmp_path / "in/small.png")
    Image.new("L", (9000, 9000)).save(tmp_path / "in/large.png")
    limit = 4 * 2**30
    result = run(
        *("upscale.py", tmp_path / "in", "--output", tmp_path / "out", "--weights", weights),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert_one_line_error(result, "1 of 2 pictures could not be enlarged", status=1)
    assert "81.0 megapixels enlarged need about" in result.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["small_x3.png"]


@pytest.mark.parametrize("megabytes", [200, 500, 650, 900])
def test_a_memory_limit_too_small_for_anything(
    tmp_path: Path, weights: Path, megabytes: int
) -> None:
    save(tmp_path / "a.png")
    limit = megabytes * 2**20
    result = run(
        *("upscale.py", tmp_path / "a.png", "--output", tmp_path / "out", "--weights", weights),
        env={"OMP_NUM_THREADS": "2"},  # 900 MB are enough for one
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr, result.stderr[-2000:]
    if megabytes < 700:
        assert_one_line_error(result, "not enough memory", "PyTorch alone takes", status=1)
