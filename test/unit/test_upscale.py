"""Enlarging pictures: luminance, transparency, the command line and what it refuses."""

import io
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import HANG, ROOT, assert_one_line_error, run, wait_until
from PIL import Image, ImageDraw
from runs import start
from samples import coffee, encoded, network, opened, pixels, save_weights, through

import upscale
from imaging.album import STREAM, Plan
from imaging.photo import Photo, PictureError, open_photo
from imaging.resize import BICUBIC
from inference.upscaler import Upscaler, enlarge_all, what_happened
from runtime.device import Choice, keep_fp32
from runtime.errors import RunError, UserError


@pytest.fixture(scope="module")
def upscaler(weights: Path) -> Upscaler:
    return Upscaler(weights, 3, torch.device("cpu"), "fp32")


def test_the_network_changes_luminance_alone(upscaler: Upscaler) -> None:
    image = coffee(50, 40).point(lambda level: 80 + level * 0.35)  # nothing clips
    bicubic = pixels(image.resize((150, 120), BICUBIC))
    change = pixels(through(image, "a.png", upscaler)) - bicubic
    assert np.abs(change).max() > 3
    assert (change == change[..., :1]).all(), "R, G and B change by different amounts"
    luminance = 16 + bicubic @ np.array([65.481, 128.553, 24.966], np.float32) / 255
    mirrored = np.pad(luminance.astype(np.float32), 8, mode="symmetric")
    with torch.inference_mode():
        y = upscaler.exact(torch.from_numpy(mirrored)[None, None] / 255)
    expected = (y[0, 0].numpy() * 255 - luminance) * 255 / 219
    np.testing.assert_allclose(change[..., 0], expected, atol=0.51)


def test_grey_is_treated_as_colour_is(upscaler: Upscaler) -> None:
    grey = coffee(50, 40).convert("L")
    result = through(grey, "a.png", upscaler)
    colour = through(grey.convert("RGB"), "a.png", upscaler)
    assert (result.mode, result.size) == ("L", (150, 120))
    assert np.abs(pixels(result)[..., None] - pixels(colour)).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_greyscale_of_16_bits_stays_so(upscaler: Upscaler, name: str) -> None:
    levels = np.asarray(coffee(50, 40).convert("F")) * 257 + np.linspace(0, 99, 50)
    levels = (levels - levels.min()) * (65535 / np.ptp(levels))  # all of the range, as 8 bits have
    image = Image.fromarray(levels.astype(np.uint16))
    result = through(image, name, upscaler)
    assert result.mode == "I;16"
    assert len(np.unique(pixels(result))) > 5000
    coarse = Image.fromarray((levels / 257).round().clip(0, 255).astype(np.uint8))
    assert np.abs(pixels(result) / 257 - pixels(through(coarse, name, upscaler))).max() < 3
    assert np.abs(pixels(result) - pixels(through(image, name))).max() > 500


def test_transparency_is_bicubic(upscaler: Upscaler) -> None:
    image = coffee(50, 40)
    alpha = Image.linear_gradient("L").resize((50, 40))
    image.putalpha(alpha)
    for picture in (image, image.convert("LA")):
        result = through(picture, "a.png", upscaler)
        assert result.mode == picture.mode
        assert result.getchannel("A").tobytes() == alpha.resize((150, 120), BICUBIC).tobytes()


@pytest.mark.parametrize("hidden", [0, 255])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_transparent_surrounding_is_no_edge(upscaler: Upscaler, mode: str, hidden: int) -> None:
    """A disc of one colour stays so, whatever lies under the transparent pixels around it."""
    alpha = Image.new("L", (40, 40))
    ImageDraw.Draw(alpha).ellipse((8, 8, 31, 31), fill=255)
    image = Image.composite(Image.new("L", (40, 40), 130), Image.new("L", (40, 40), hidden), alpha)
    image = image.convert(mode)
    image.putalpha(alpha)
    flat = Image.new("L", (40, 40), 130)
    flat.putpixel((0, 0), 131)  # of one level alone, it would not go through the network
    whole = through(flat, "a.png", upscaler)
    result = pixels(through(image, "a.png", upscaler))
    visible = result[..., -1] > 16
    assert np.abs(result[visible][:, 0] - pixels(whole)[60, 60]).max() <= 4


def test_command_line(tmp_path: Path, weights: Path) -> None:
    folder, out = tmp_path / "album", tmp_path / "out"
    folder.mkdir()
    for name in ("one.png", "two.jpg", "three.PNG"):
        coffee(40, 30).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    coffee(20, 20).save(tmp_path / "four.gif")
    words = ["upscale.py", folder, tmp_path / "four.gif", tmp_path / "none.jpg", "--weights"]
    words += [weights, "--output", out, "--jobs", "3"]
    result = run(*words)
    assert_one_line_error(result, "2 of 6 pictures could not be enlarged", status=1)
    assert f"error: {folder / 'bad.png'}: not a picture" in result.stderr
    assert f"error: {tmp_path / 'none.jpg'}: no such file or folder\n" in result.stderr
    assert "4 of 6 pictures enlarged: 0.0 megapixels in" in result.stdout
    assert "megapixels/s" in result.stdout
    names = ["four_x3.png", "one_x3.png", "three_x3.PNG", "two_x3.jpg"]
    assert sorted(p.name for p in out.iterdir()) == names

    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "one_x3.png").write_bytes(b"mine")
    again = [tmp_path / "album" / "one.png", "--weights", weights, "--output", out]
    result = run("upscale.py", *again)
    assert result.returncode == 0, result.stderr
    assert "note: 1 skipped, as the result is there; --force overwrites it" in result.stderr
    assert (out / "one_x3.png").read_bytes() == b"mine"
    result = run("upscale.py", *again, "--force")
    assert result.returncode == 0, result.stderr
    assert (out / "one_x3.png").read_bytes() == before["one_x3.png"], "depends on --jobs"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.jpg"], "error: none.jpg: no such file or folder\n"),
        (["empty"], r"error: empty: no pictures in it; expected \.png.*\n"),
        (["-"], r"error: -: it is empty \(0 bytes\); .*where it came from\n"),
        (["a", "b"], r"error: (a|b): .*\nerror: .*\nerror: 2 of 2 pictures could not .*\n"),
    ],
)
def test_nothing_but_faults_is_told_once(
    words: list[str], said: str, tmp_path: Path, weights: Path
) -> None:
    (tmp_path / "empty").mkdir()
    command = ["upscale.py", *words, "--output=out", "--weights", weights]
    result = run(*command, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(said, result.stderr), result.stderr


def test_weights_that_overflow_make_no_picture(tmp_path: Path, weights: Path) -> None:
    state = {key: 1e30 * w for key, w in torch.load(weights, weights_only=True).items()}
    torch.save(state, tmp_path / "huge.pth")
    upscaler = Upscaler(tmp_path / "huge.pth", 3, torch.device("cpu"))
    with pytest.raises(PictureError, match="not finite"):
        through(coffee(30, 20), "a.png", upscaler)


def test_a_gpu_enlarges_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in TF32, its default."""
    model = SimpleNamespace(receptive_radius=8, to=lambda _: None)
    monkeypatch.setattr("inference.upscaler.load_luminance_weights", lambda _: model)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    keep_fp32(torch.device("cpu"))
    assert torch.backends.cudnn.allow_tf32
    Upscaler(Path("weights.pth"), 3, torch.device("cuda"))
    assert not torch.backends.cudnn.allow_tf32


def test_wrong_weights_and_options(tmp_path: Path) -> None:
    coffee(20, 20).save(tmp_path / "a.png")
    picture = [tmp_path / "a.png", "--output", tmp_path / "out"]
    assert_one_line_error(run("upscale.py", *picture, "--scale", "6"), "no weights for x6")
    rgb = save_weights(tmp_path / "rgb.pth", network(num_channels=3))
    result = run("upscale.py", *picture, "--weights", rgb)
    assert_one_line_error(result, "rgb.pth takes 3 channels; expected luminance")
    assert_one_line_error(run("upscale.py", *picture, "--scale", "1"), "number, 2 or more")
    assert_one_line_error(run("upscale.py"), "name pictures or folders")
    assert_one_line_error(run("upscale.py", tmp_path / "a.png"), "--output DIR")
    assert not (tmp_path / "out").exists()


def test_self_ensemble_and_precision(weights: Path) -> None:
    cpu, image = torch.device("cpu"), coffee(40, 30)
    plain, ensemble, rounded = (
        Upscaler(weights, 3, cpu, "fp32"),
        Upscaler(weights, 3, cpu, "fp32", ensemble=True),
        Upscaler(weights, 3, cpu, "bf16"),
    )
    exact = pixels(through(image, "a.png", plain))
    assert np.abs(pixels(through(image, "a.png", ensemble)) - exact).max() > 1
    turned = through(image.transpose(Image.Transpose.ROTATE_90), "a.png", ensemble)
    back = pixels(turned.transpose(Image.Transpose.ROTATE_270))
    assert np.abs(back - pixels(through(image, "a.png", ensemble))).mean() < 0.2, "9 without"
    assert 0 < np.abs(pixels(through(image, "a.png", rounded)) - exact).mean() < 0.5
    automatic = Upscaler(weights, 3, cpu, "auto")
    assert automatic.deep is automatic.exact, "16-bit pictures are not rounded"


def test_what_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["upscale.py", "a.png", "-", "./-", "--output=out"])
    args = vars(upscale.parse_args())
    assert args.pop("pictures") == [Path("a.png"), STREAM, Path("-")]
    given = {"scale": 3, "output": Path("out"), "suffix": "_x3", "jobs": 1, "port": 8765}
    given |= {"weights": None, "device": "auto", "precision": "auto"}
    assert args == given | dict.fromkeys(("recursive", "self_ensemble", "force", "serve"), False)
    assert upscale.parse_args(["--serve"]).pictures == []
    assert upscale.parse_args(["-", "--output=-", "--scale=2"]).suffix == "_x2"
    args = upscale.parse_args(["a.png", "--output=o", "--suffix=", "--jobs=4"])
    assert (args.suffix, args.jobs) == ("", 4)
    for device in ("auto", "npu", "cuda", "cpu"):
        assert upscale.parse_args(["--serve", f"--device={device}"]).device == device
    for precision in ("auto", "fp32", "bf16"):
        assert upscale.parse_args(["--serve", f"--precision={precision}"]).precision == precision


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name pictures or folders"),
        (["a.png", "--serve"], "not both"),
        (["a.png"], "--output DIR"),
        (["-", "--output=-"], "terminal"),
        (["a.png", "--output=o", "--suffix=/b"], "part of a file's name"),
        (["a.png", "--output=o", "--scale=1"], "2 or more"),
        (["a.png", "--output=o", "--jobs=0"], "1 or more"),
        (["--serve", "--port=-1"], "0 or more"),
        (["--serve", "--jobs=2"], "--jobs is for pictures that are named, not for --serve"),
        (["a.png", "--output=o", "--port=9"], "--port is that of the page; add --serve"),
        (["--serve", "--port=99999"], "at most 65535"),
        (["--serve", "--output=o"], "--output is for pictures"),
        (["--serve", "--suffix=_s"], "--suffix is for pictures"),
        (["--serve", "--force", "--recursive"], "--recursive, --force is for pictures"),
        (["--serve", "--scale=3"], "--scale with --serve is that of --weights"),
        (["a.png", "--output=o", "--device=tpu"], "tpu"),
        (["a.png", "--output=o", "--precision=fp16"], "fp16"),
    ],
)
def test_options_that_cannot_be(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit) as end:
        upscale.parse_args(words)
    assert end.value.code == 2
    assert re.search(f"error: .*{said}", capsys.readouterr().err)


@pytest.mark.parametrize(
    "options",
    [("--precision=fp32",), ("--precision=fp32", "--self-ensemble"), ("--precision=bf16",)],
)
def test_options_reach_the_picture(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    coffee(16, 12).save(tmp_path / "in" / "a.png")
    coffee(12, 9).save(tmp_path / "in" / "deeper" / "b.png")
    words = [str(tmp_path / "in"), f"--output={tmp_path / 'out'}", f"--weights={weights}"]
    words += ["--scale=2", "--suffix= large", "--recursive", "--jobs=2", "--device=cpu"]
    upscale.main([*words, *options])
    rounded = "--precision=bf16" in options
    precision, ensemble = "bf16" if rounded else "fp32", "--self-ensemble" in options
    exact = Upscaler(weights, 2, torch.device("cpu"), precision, ensemble)
    for name, size in (("a", (16, 12)), ("deeper/b", (12, 9))):
        exact.enlarge_file(tmp_path / "in" / f"{name}.png", tmp_path / "b.png", lambda *_: 0)
        made = opened((tmp_path / "out" / f"{name} large.png").read_bytes())
        assert made.shape[:2] == (2 * size[1], 2 * size[0])
        assert (made == opened((tmp_path / "b.png").read_bytes())).all()
    out = capsys.readouterr().out
    assert re.match(r"2 of 2 pictures enlarged: 0\.0 megapixels in \d", out)


def test_from_standard_input_to_standard_output(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], weights: Path
) -> None:
    picture = coffee(40, 30)
    piped = SimpleNamespace(buffer=io.BytesIO(encoded(picture, "BMP")))
    monkeypatch.setattr(sys, "stdin", piped)
    upscale.main(["-", "--output=-", f"--weights={weights}", "--precision=fp32"])
    out, err = capfdbinary.readouterr()
    made = Upscaler(weights, 3, torch.device("cpu"), "fp32")
    assert (opened(out) == pixels(through(picture, "a.png", made))).all()
    assert b"1 of 1 pictures enlarged" in err, "beside the picture, not in it"


def test_what_is_left_aside_is_told(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the others are enlarged; where there are none, no weights are loaded.

    A folder does not count as a picture, but the command has failed.
    """
    album = tmp_path / "two\nlines"
    album.mkdir()
    (album / "notes.txt").write_text("no picture")
    coffee(9, 9).save(album / "a.png")
    (tmp_path / "empty\n").mkdir()
    words = [str(album), str(tmp_path / "empty\n"), f"--output={tmp_path / 'out'}"]
    assert upscale.main([*words, f"--weights={weights}"]) == RunError.exit_status
    out, err = capsys.readouterr()
    note, error = err.splitlines()
    assert "note: " in note
    assert "two\\nlines: skipped 1 (no pictures, or hidden): notes.txt" in note
    assert error.startswith(f"error: {tmp_path}/empty\\n: no pictures in it")
    assert "1 of 1 pictures enlarged" in out
    with pytest.raises(RunError, match=f"{tmp_path}/empty\n: no pictures in it"):
        upscale.main([words[1], words[2], "--weights=no such"])
    assert capsys.readouterr() == ("", "")
    upscale.main([str(album), f"--output={tmp_path / 'out'}", "--weights=no such"])
    assert "1 skipped, as the result is there" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such"):
        upscale.main([str(album), f"--output={tmp_path / 'out'}", "--weights=no such", "--force"])


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    coffee(9, 9).save(tmp_path / "a.png")
    picture = str(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"--output .*a\.png/out: .* cannot be written to"):
        upscale.main([picture, f"--output={picture}/out"])
    with pytest.raises(UserError, match=r"--output .*big\.JPG: expected a folder"):
        upscale.main([picture, f"--output={tmp_path / 'big.JPG'}"])
    with pytest.raises(UserError, match="one picture, not 2"):
        upscale.main([picture, str(tmp_path / "b.png"), "--output=-"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_page_has_the_scales_that_have_weights(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[tuple[dict[int, tuple[int, bool]], int]] = []
    monkeypatch.setattr(
        "serve.app.serve",
        lambda upscalers, port: served.append(
            ({scale: (each.scale, each.ensemble) for scale, each in upscalers.items()}, port)
        ),
    )
    upscale.main(["--serve"])
    upscale.main(["--serve", "--port=0", "--scale=5", f"--weights={weights}", "--self-ensemble"])
    monkeypatch.setattr("inference.weights.SHIPPED", tmp_path)
    shutil.copy(weights, tmp_path / "srcnn_x4.pth")
    upscale.main(["--serve"])
    assert served == [
        ({2: (2, False), 3: (3, False), 4: (4, False)}, 8765),
        ({5: (5, True)}, 0),
        ({4: (4, False)}, 8765),
    ]
    (tmp_path / "srcnn_x4.pth").unlink()
    with pytest.raises(UserError, match="no weights for x3"):
        upscale.main(["--serve"])


def test_bf16_on_another_device_than_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coffee(9, 9).save(tmp_path / "a.png")
    gpu = Choice(torch.device("cuda", 0), "auto")
    monkeypatch.setattr("runtime.device.choose_device", lambda _: gpu)
    with pytest.raises(UserError, match="bf16 is for CPUs, and cuda:0 computes in fp32; leave it"):
        upscale.main([str(tmp_path / "a.png"), f"--output={tmp_path}/out", "--precision=bf16"])


def test_the_device_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coffee(9, 9).save(tmp_path / "a.png")
    monkeypatch.setattr("runtime.device.why_no_cuda", lambda: "it is sold")
    with pytest.raises(UserError, match="--device cuda: it is sold"):
        upscale.main([str(tmp_path / "a.png"), f"--output={tmp_path}/out", "--device=cuda"])


def test_precision_follows_the_cpu_and_the_picture(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it computes in bfloat16, `auto` rounds pictures of 8 bits, and `bf16` all."""
    shallow = Photo(coffee(16, 12), "PNG", {})
    deep = Photo(np.asarray(shallow.image).astype(np.uint16) * 257, "PNG", {})

    def made(precision: str, of_cpu: bool) -> list[np.ndarray]:
        monkeypatch.setattr("inference.upscaler.has_bf16", lambda: of_cpu)
        upscaler = Upscaler(weights, 2, torch.device("cpu"), precision)
        return [pixels(upscaler.enlarge(photo)) for photo in (shallow, deep)]

    exact, rounded = made("fp32", True), made("bf16", False)
    assert all((one != other).any() for one, other in zip(exact, rounded, strict=True))
    expected = {True: [rounded[0], exact[1]], False: exact}
    for of_cpu, pictures in expected.items():
        for one, other in zip(made("auto", of_cpu), pictures, strict=True):
            assert (one == other).all()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_tiles_go_side_by_side_on_a_cpu_alone(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)

    def threads_of_a_tile(_: int) -> int:
        both.wait(HANG)
        return torch.get_num_threads()

    cpu = Upscaler(weights, 3, torch.device("cpu"), "bf16")
    assert list(cpu.map_fn(threads_of_a_tile, range(2))) == [1, 1]
    other = Upscaler(weights, 3, torch.device("meta"), "bf16")
    models = (other.model, other.exact, other.deep)
    assert {p.device.type for model in models for p in model.parameters()} == {"meta"}
    assert len({p.dtype for model in models for p in model.parameters()}) == 1
    assert list(other.map_fn(threading.get_ident, ())) == []
    assert {*other.map_fn(lambda _: threading.get_ident(), range(3))} == {threading.get_ident()}
    monkeypatch.setattr("inference.upscaler.available_memory", lambda: 110_000_000)
    assert (cpu.room(), other.room()) == (10_000_000, 60_000_000), "a tile for each thread"
    monkeypatch.setattr("inference.upscaler.available_memory", lambda: 70_000_000)
    assert cpu.room() == 0
    torch.set_num_threads(99)
    assert Upscaler(weights, 3, torch.device("cpu")).threads == 16


def test_pictures_side_by_side_share_the_memory(
    upscaler: Upscaler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coffee(50, 40).save(tmp_path / "a.png")
    monkeypatch.setattr(upscaler, "room", lambda: 200_000)
    advances: list[float] = []
    source, target = tmp_path / "a.png", tmp_path / "b.png"
    done = upscaler.enlarge_file(source, target, advances.append, 1)
    assert done == (50 * 40 * 9, "")
    assert sum(advances) == pytest.approx(1.0)
    with pytest.raises(PictureError, match="memory"):
        upscaler.enlarge_file(source, target, lambda *_: 0, share=4)


def test_more_jobs_than_pictures_leave_each_its_share(tmp_path: Path, weights: Path) -> None:
    coffee(50, 40).save(tmp_path / "a.png")
    words = [str(tmp_path / "a.png"), f"--output={tmp_path / 'out'}", f"--weights={weights}"]
    assert upscale.main([*words, "--jobs=1000000000"]) == 0


class Terminal(io.StringIO):
    """Standard error where a person looks at it."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_what_a_person_sees_of_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Told:
        """Stands for an upscaler whose pictures have 40,000 and 10,000 pixels and a fault."""

        def enlarge_file(self, source: Path, target: Path, advance, share: int):
            assert (target, share) == (Path(f"{source} large"), 1)
            if source.name == "bad":
                raise PictureError("no picture")
            pixels = {"one": 40_000, "two": 10_000}[source.name]
            for _ in range(4):
                advance(0.25)
            return pixels, "is\na BMP file" if source.name == "two" else ""

    times = iter([100.0, 104.0])
    clock = SimpleNamespace(perf_counter=times.__next__)
    monkeypatch.setattr("inference.upscaler.time", clock)
    monkeypatch.setattr(sys, "stderr", Terminal())
    made = Plan({Path(f"{name} large"): Path(name) for name in ("one", "bad", "two")})
    with pytest.raises(RunError, match="1 of 3 pictures could not be enlarged"):
        enlarge_all(made, Told(), jobs=1)
    seen = re.split(r"[\r\n]+", sys.stderr.getvalue())
    assert "error: bad: no picture" in seen
    assert "warning: two: is\\na BMP file" in seen
    assert sum("warning" in line for line in seen) == 1
    assert re.match(r"  0%\|.*\| 0\.0 of 3 pictures \[00:00<\?\]", seen[1])
    assert re.match(r" 67%\|.*\| 2\.0 of 3 pictures \[", seen[-2]), "of all, from the first on"
    last = "2 of 3 pictures enlarged: 0.1 megapixels in 4.0 s, 0.01 megapixels/s\n"
    assert capsys.readouterr().out == last


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PictureError("out of memory lane"), "out of memory lane"),
        (RunError("cannot write b.png"), "cannot write b.png"),
        (MemoryError(), "not enough memory;"),
        (RuntimeError("cannot allocate 9 bytes\nmore"), "not enough memory;"),
        (RuntimeError("CUDA out of memory"), "not enough memory;"),
        (RuntimeError("can't start new thread"), "not enough memory;"),
        (KeyError(3), "failed (KeyError: 3)"),
        (RuntimeError("first\nsecond"), "failed (RuntimeError: first)"),
    ],
)
def test_what_a_fault_says(error: Exception, said: str) -> None:
    assert what_happened(error).startswith(said)
    assert "\n" not in what_happened(error)


def test_an_interruption_ends_the_pictures_in_work(monkeypatch: pytest.MonkeyPatch) -> None:
    working, ended = threading.Event(), threading.Event()

    def as_completed(_: dict) -> Iterator[futures.Future]:
        assert working.wait(HANG)
        # From here: a signal from elsewhere may come just before a wait that it does not end.
        signal.raise_signal(signal.SIGINT)
        yield from ()

    monkeypatch.setattr("inference.upscaler.as_completed", as_completed)

    begun = []

    class Large:
        """Stands for an upscaler in the middle of a large picture."""

        def enlarge_file(self, source: Path, target: Path, advance, share: int) -> None:
            begun.append(source)
            working.set()
            for _ in range(100 * HANG):
                try:
                    advance(1)
                except KeyboardInterrupt:
                    ended.set()
                    raise
                time.sleep(0.01)

    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            enlarge_all(Plan({Path(f"b{i}"): Path(f"a{i}") for i in range(3)}), Large(), jobs=1)
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert ended.is_set()
    assert begun == [Path("a0")]


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_run_that_is_ended_leaves_no_half_picture(tmp_path: Path, sent: int, status: int) -> None:
    picture, results = tmp_path / "a.png", tmp_path / "results"
    Image.effect_noise((1000, 1000), 60).save(picture)  # slow to compress
    with start(ROOT / "upscale.py", picture, "--output", results) as process:
        wait_until(lambda: list(results.glob(".*.tmp")), process)
        process.send_signal(sent)
        errors = process.communicate()[1]
    assert process.returncode == status, errors
    assert not list(results.glob(".*"))


def test_what_the_format_cannot_hold_leaves_nothing(tmp_path: Path, upscaler: Upscaler) -> None:
    coffee(20, 20).save(tmp_path / "a.jpg", comment=b"x")
    photo = open_photo(tmp_path / "a.jpg", "a.jpg", 3)
    photo.metadata["comment"] = b"x" * 70000
    with pytest.raises(PictureError, match="cannot be saved as JPEG"):
        photo.save(photo.image, tmp_path / "b.jpg")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write"):
        upscaler.enlarge_file(tmp_path / "a.jpg", tmp_path / "file" / "a.jpg", lambda *_: 0)


MEMORY = """
from pathlib import Path
from imaging.enlarge import bicubic_only, enlarge
from PIL import Image
image = Image.effect_noise((2000, 2000), 60).convert('RGB')
assert enlarge(image, 3, bicubic_only, 8).size == (6000, 6000)
print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])
"""


def test_memory_is_that_of_the_picture_and_its_result() -> None:
    """All but the network, whose memory (a quarter of a gigabyte) depends on the tile alone.

    VmHWM is the peak of this process; ru_maxrss would keep that of pytest, which started it.
    """
    result = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True, check=True
    )
    pictures, base = 4 * (6000**2 + 2000**2) / 1024, 130_000  # kilobytes
    assert int(result.stdout) < pictures + base
