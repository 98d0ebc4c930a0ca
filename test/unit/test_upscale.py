"""Enlarging pictures: luminance, transparency, the command line and what it refuses."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import HANG, ROOT, assert_one_line_error, run
from PIL import Image, ImageDraw
from samples import coffee, network, pixels, save_weights, through

from imaging.album import Plan
from imaging.photo import PictureError, open_photo
from imaging.resize import BICUBIC
from inference.upscaler import Upscaler, enlarge_all
from runtime.errors import RunError


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
    expected = (y[0, 0, 8:-8, 8:-8].numpy() * 255 - luminance) * 255 / 219
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
    assert f"error: {tmp_path / 'none.jpg'}: no such file" in result.stderr
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


def test_weights_that_overflow_make_no_picture(tmp_path: Path, weights: Path) -> None:
    state = {key: 1e30 * w for key, w in torch.load(weights, weights_only=True).items()}
    torch.save(state, tmp_path / "huge.pth")
    upscaler = Upscaler(tmp_path / "huge.pth", 3, torch.device("cpu"))
    with pytest.raises(PictureError, match="not finite"):
        through(coffee(30, 20), "a.png", upscaler)


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


def test_an_interruption_ends_the_pictures_in_work(monkeypatch: pytest.MonkeyPatch) -> None:
    working, ended = threading.Event(), threading.Event()

    def as_completed(_: dict) -> Iterator[futures.Future]:
        assert working.wait(HANG)
        # From here: a signal from elsewhere may come just before a wait that it does not end.
        signal.raise_signal(signal.SIGINT)
        yield from ()

    monkeypatch.setattr("inference.upscaler.as_completed", as_completed)

    class Large:
        """Stands for an upscaler in the middle of a large picture."""

        def enlarge_file(self, source: Path, target: Path, advance, share: int) -> None:
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
            enlarge_all(Plan({Path("b"): Path("a")}), Large(), jobs=1)
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert ended.is_set()


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
