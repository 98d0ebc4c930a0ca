"""More than 8 bits a channel, and pictures of extreme shapes, through the shipped network."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from samples import coffee, network, pixels, tiff_file

from benchmarks.odd_pictures import chunk, directory, exif_block, png_file
from imaging.enlarge import bicubic_only, enlarge
from imaging.kinds import PictureError
from imaging.metrics import psnr
from imaging.photo import open_photo
from imaging.resize import BICUBIC
from imaging.sources import ImageError, open_image
from inference.restore import restore
from inference.upscaler import Upscaler
from inference.weights import shipped_weights


@pytest.fixture(scope="module", params=[2, 3, 4])
def shipped(request: pytest.FixtureRequest) -> Upscaler:
    scale = request.param
    return Upscaler(shipped_weights(scale), scale, torch.device("cpu"), "fp32")


def grey(levels: np.ndarray) -> np.ndarray:
    """Return a 16-bit greyscale PNG file's pixels as `enlarge` takes them."""
    return open_photo(io.BytesIO(png_file(levels, colour=0)), "a.png", 3).image


def read_back(photo, picture: np.ndarray) -> np.ndarray:
    """Save a result; return what is read of it, which tifffile reads alike."""
    file = io.BytesIO()
    photo.save(picture, file)
    again = open_photo(file, "", 2)
    assert isinstance(again.image, np.ndarray), "16 bits became 8"
    assert not again.note
    if photo.format == "TIFF":
        file.seek(0)
        assert (tifffile.imread(file).reshape(again.image.shape) == again.image).all()
    return again.image


COLOURS = np.random.default_rng(5).integers(0, 65536, (20, 24, 4)).astype(np.uint16)


@pytest.mark.parametrize(("channels", "colour"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_png_of_16_bits_is_read_and_written_whole(channels: int, colour: int) -> None:
    """Of more rows than are compressed at a time."""
    levels = np.concatenate([COLOURS] * 7)[..., :channels]
    photo = open_photo(io.BytesIO(png_file(levels, colour=colour)), "a.png", 2)
    assert (photo.image == levels).all()
    assert not photo.note
    assert (read_back(photo, levels) == levels).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bits_are_turned_as_8_are(orientation: int) -> None:
    exif = chunk(b"eXIf", exif_block([(0x112, 3, struct.pack("<H", orientation))]))
    deep, plain = (
        open_photo(io.BytesIO(png_file(levels, exif)), "a.png", 2).image
        for levels in (COLOURS[..., :3], (COLOURS[..., :3] >> 8).astype(np.uint8))
    )
    assert deep.shape[:2] == ((24, 20) if orientation >= 5 else (20, 24))
    assert (deep >> 8 == np.asarray(plain)).all()


@pytest.mark.parametrize(("channels", "colour"), [(1, 0), (3, 2)])
def test_a_transparent_colour_of_16_bits_becomes_alpha(channels: int, colour: int) -> None:
    levels = np.full((4, 5, channels), 300, np.uint16)
    levels[1, 2, -1] = 301  # by one level in one channel no longer that colour
    key = chunk(b"tRNS", struct.pack(">H", 300) * channels)
    image = open_photo(io.BytesIO(png_file(levels, key, colour=colour)), "a.png", 2).image
    assert (image[..., :-1] == levels).all()
    assert np.argwhere(image[..., -1] == 65535).tolist() == [[1, 2]]
    assert (image[..., -1] == 0).sum() == 4 * 5 - 1


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_of_16_bits(channels: int, order: str, compression: str | None) -> None:
    levels = COLOURS[..., :channels]
    options = {"byteorder": order, "compression": compression, "metadata": None}
    options["photometric"] = "rgb" if channels > 2 else "minisblack"
    if channels == 4:
        options["extrasamples"] = ["unassalpha"]
    data = tiff_file(levels[..., 0] if channels == 1 else levels, **options)
    photo = open_photo(io.BytesIO(data), "a.tif", 2)
    assert (photo.image == levels).all()
    assert not photo.note
    file = io.BytesIO()
    photo.save(photo.image, file)
    file.seek(0)
    assert (tifffile.TiffFile(file).pages[0].compression == 1) == (compression is None)
    result = read_back(photo, enlarge(photo.image, 2, bicubic_only, 0))
    assert result.dtype == np.uint16
    assert (result == enlarge(levels, 2, bicubic_only, 0)).all()


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("pieces", [{"rowsperstrip": 7}, {"tile": (16, 16)}], ids=repr)
def test_a_tiff_of_16_bits_in_planes(
    channels: int, order: str, compression: str | None, pieces: dict, tmp_path: Path
) -> None:
    """Pillow takes such planes, uncompressed, for 8 bits, and every other byte for a pixel.

    Of compressed ones it gives the high bytes, whichever are asked for.
    """
    levels = COLOURS[..., :channels]
    options = {"byteorder": order, "photometric": "rgb", "planarconfig": "separate"}
    options |= {"compression": compression, **pieces}
    if channels == 4:
        options["extrasamples"] = ["unassalpha"]
    data = tiff_file(np.moveaxis(levels, 2, 0), metadata=None, **options)
    photo = open_photo(io.BytesIO(data), "a.tif", 2)
    assert (photo.image == levels).all()
    assert not photo.note
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.tif has 16 bits a channel; save it with 8 bits"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_premultiplied_planes_are_refused(compression: str | None) -> None:
    """Pillow does not divide them by their alpha, and tells nothing of it."""
    options = {"photometric": "rgb", "planarconfig": "separate", "compression": compression}
    data = tiff_file(np.moveaxis(COLOURS, 2, 0), extrasamples=["assocalpha"], **options)
    with pytest.raises(PictureError, match="16 bits a channel in planes; convert it to RGB first"):
        open_photo(io.BytesIO(data), "a.tif", 2)


def test_colours_are_enlarged_in_16_bits(shipped: Upscaler) -> None:
    levels = (
        np.asarray(coffee(40, 30)).astype(np.uint16) * 257 + np.arange(40, dtype=np.uint16)[:, None]
    )
    photo = open_photo(io.BytesIO(png_file(levels)), "a.png", shipped.scale)
    result = shipped.enlarge(photo)
    assert len(np.unique(result)) > 5000
    coarse = shipped.enlarge(
        open_photo(io.BytesIO(png_file((levels >> 8).astype(np.uint8))), "", 2)
    )
    difference = np.abs(result / 257 - pixels(coarse))  # luminance and colour of 8 bits are rounded
    assert difference.max() < 4
    assert difference.mean() < 0.5


def test_12_bits_keep_their_brightness() -> None:
    levels = (np.asarray(coffee(40, 30).convert("L")).astype(np.uint32) * 4095 // 255)[:, :40]
    pairs = levels.reshape(30, 20, 2)
    packed = np.stack(
        [pairs[..., 0] >> 4, (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8, pairs[..., 1] & 255], 2
    )
    tags = [(256, 3, 40), (257, 3, 30), (258, 3, 12), (259, 3, 1), (262, 3, 1), (277, 3, 1)]
    tags += [(278, 3, 30), (279, 4, 1800)]
    fields = [(t, k, struct.pack("<H" if k == 3 else "<I", n)) for t, k, n in tags]
    start = 8 + len(directory(8, [*fields, (273, 4, bytes(4))]))
    data = b"II*\0\x08\0\0\0" + directory(8, [*fields, (273, 4, struct.pack("<I", start))])
    photo = open_photo(io.BytesIO(data + packed.astype(np.uint8).tobytes()), "a.tif", 2)
    assert np.abs(photo.image[..., 0] / 65535 - levels / 4095).max() < 1e-4
    assert photo.note == "12 bits per pixel are saved as 16"


def test_white_is_zero() -> None:
    levels = COLOURS[..., 0]
    data = tiff_file(levels, photometric="miniswhite", metadata=None)
    assert (open_photo(io.BytesIO(data), "a.tif", 2).image[..., 0] == 65535 - levels).all()


def low_and_high(scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a photograph's luminance made small, and itself; 0 to 1."""
    image = coffee(240, 180).convert("F")
    small = image.resize((240 // scale, 180 // scale), Image.Resampling.BICUBIC)
    return np.asarray(small).clip(0, 255) / 255, np.asarray(image) / 255


@pytest.mark.parametrize("peak", [3, 64, 100, 1023, 4095, 20000, 65535])
@pytest.mark.parametrize("black", [0, 30000])
def test_a_part_of_the_range_is_never_worse_than_bicubic(
    shipped: Upscaler, peak: int, black: int
) -> None:
    peak = min(peak, 65535 - black)
    low, high = low_and_high(shipped.scale)
    levels = grey((black + low * peak).round().astype(np.uint16))
    bicubic, result = (
        enlarge(levels, shipped.scale, how, 8)[..., 0].astype(float) - black
        for how in (bicubic_only, lambda y: restore(shipped.exact, y))
    )
    measured = [psnr(picture / peak * 255, high * 255) for picture in (bicubic, result)]
    assert measured[1] > measured[0] + (0.5 if peak > 500 else -0.05)


RAMP = np.linspace(0, 1, 40 * 30).reshape(30, 40, 1)
HOT = (RAMP * 1000).round()
HOT[0, 0] = 60000  # upper than the others by more than a quarter of their range
OPAQUE = np.full((30, 40, 1), 65535.0)
RANGES = {
    "whole": (RAMP * 65535, 65535),
    "10 bits": (20000 + RAMP * 1023, 1023),
    "hot": (HOT, 1250),
    "64 levels": (500 + RAMP * 64, 64),
    "63 levels": (500 + RAMP * 63, 0),
    "one level": (RAMP * 0 + 999, 0),
    "colours": (np.concatenate([RAMP * 400, RAMP * 0 + 300, RAMP * 800], 2), 800),
    "one colour": (np.concatenate([RAMP * 0 + 9, RAMP * 0 + 800, RAMP * 0], 2), 0),
    "opaque": (np.concatenate([20000 + RAMP * 1023, OPAQUE], 2), 1023),
}


@pytest.mark.parametrize("case", RANGES)
def test_the_network_sees_the_levels_that_there_are(case: str) -> None:
    """As 16 to 235, which bicubic does not leave either; what it changes is scaled back."""
    levels, width = RANGES[case]
    levels = levels.round().astype(np.uint16)
    seen = []

    def brighter(luminance: np.ndarray) -> np.ndarray:
        seen.append(luminance)
        return luminance + 8.0

    plain = enlarge(levels, 2, bicubic_only, 3)
    change = enlarge(levels, 2, brighter, 3, tile=50).astype(int) - plain
    colours = levels.shape[2] - 1 + levels.shape[2] % 2
    inside = change[9:-9, 9:-9]
    assert np.abs(inside[..., :colours] - 8 * width / 219).max() <= 0.02 * width / 219 + 1
    assert (inside[..., colours:] == 0).all()
    assert bool(seen) == (width > 0)
    for luminance in seen:
        assert 16 - 1e-3 <= luminance.min() <= luminance.max() <= 235 + 1e-3


@pytest.mark.parametrize("edge", [(0, 65535), (20000, 65535), (0, 30000)])
def test_what_bicubic_adds_beside_an_edge_stays_in_the_range(edge: tuple[int, int]) -> None:
    """In the colours that the network sees, in what it returns, and in transparency."""
    low, high = edge
    levels = np.full((20, 20, 2), 65535, np.uint16)
    levels[:, :10, 1] = low
    levels[:, 10:, 1] = high
    alpha = Image.fromarray(levels[..., 1].astype(np.float32)).resize((60, 60), BICUBIC)
    expected = np.clip(np.asarray(alpha), 0, 65535)
    result = enlarge(levels, 3, bicubic_only, 3)
    assert np.abs(result[..., 1] - expected).max() <= 0.51
    assert (result[..., 0] == 65535).all()
    seen = []
    result = enlarge(levels[..., 1:], 3, lambda y: seen.append(y) or y, 3)
    assert np.abs(result[..., 0] - expected).max() <= 0.51
    assert seen[0].min() == pytest.approx(16, abs=1e-3)
    assert seen[0].max() == pytest.approx(235, abs=1e-3)
    beyond = enlarge(levels[..., 1:], 3, lambda y: np.where(y > 125, 1000.0, -1000.0), 3)
    assert {*np.unique(beyond)} == {0, 65535}


def test_hot_pixels_do_not_widen_the_range(shipped: Upscaler) -> None:
    low, high = low_and_high(shipped.scale)
    levels = (low * 1023).round().astype(np.uint16)
    levels[3, 3] = 65535
    photo = open_photo(io.BytesIO(png_file(levels, colour=0)), "a.png", shipped.scale)
    bicubic = enlarge(photo.image, shipped.scale, bicubic_only, 0)[..., 0]
    away = np.s_[40:, 40:]
    measured = [
        psnr(picture[away] / 1023 * 255, high[away] * 255)
        for picture in (bicubic, shipped.enlarge(photo)[..., 0])
    ]
    assert measured[1] > measured[0] + 0.5


@pytest.mark.parametrize("level", [0, 1, 777, 65535])
def test_flat_stays_flat(shipped: Upscaler, level: int) -> None:
    result = shipped.enlarge(
        open_photo(io.BytesIO(png_file(np.full((9, 7), level, np.uint16), colour=0)), "", 2)
    )
    assert (result == level).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 300), (300, 1), (2, 3), (1, 20)])
@pytest.mark.parametrize("colour", [(128, 128, 128), (10, 200, 30), (0, 0, 0), (255, 255, 255)])
def test_flat_pictures_of_any_shape(
    shipped: Upscaler, width: int, height: int, colour: tuple[int, int, int]
) -> None:
    image = Image.new("RGB", (width, height), colour)
    result = enlarge(image, shipped.scale, lambda y: restore(shipped.exact, y), 8)
    assert [found for _, found in result.getcolors()] == [colour]


@pytest.mark.parametrize(("width", "height"), [(1, 200), (200, 1), (2, 200)])
def test_narrow_pictures_do_not_end_darker_or_brighter(
    shipped: Upscaler, width: int, height: int
) -> None:
    """Beside a border the network would see black, of which a narrow picture has nothing else."""
    ramp = Image.linear_gradient("L").resize((width, height)).point(lambda v: 100 + v // 8)
    bicubic, result = (
        pixels(enlarge(ramp, shipped.scale, how, 8))
        for how in (bicubic_only, lambda y: restore(shipped.exact, y))
    )
    assert np.abs(result - bicubic).max() <= 3


def test_the_border_of_a_picture_is_as_its_middle() -> None:
    model = network()
    image = Image.new("L", (40, 40), 100)
    image.putpixel((20, 20), 101)
    result = pixels(enlarge(image, 2, lambda y: restore(model, y), 8))
    assert np.abs(result[0] - result[20, 5]).max() <= 1


def test_a_tiff_of_16_bits_keeps_its_tags() -> None:
    texts = {"description": "a text", "software": "a camera"}
    resolution = {"resolution": (300, 300), "resolutionunit": "INCH"}
    data = tiff_file(COLOURS[..., :3], photometric="rgb", metadata=None, **texts, **resolution)
    photo = open_photo(io.BytesIO(data), "a.tif", 2)
    file = io.BytesIO()
    photo.save(photo.image, file)
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0]
        assert (page.description, page.software) == ("a text", "a camera")
        assert page.resolution == (300, 300)
        assert len(tiff.pages) == 1


def test_a_png_of_16_bits_carries_what_one_of_8_does() -> None:
    kept = [
        chunk(b"gAMA", struct.pack(">I", 45455)),
        chunk(b"tEXt", b"Comment\0one"),
        chunk(b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
    ]
    exif = chunk(b"eXIf", exif_block([(0x10F, 2, b"Camera\0")]))
    data = png_file(COLOURS[..., :3], *kept, exif)
    photo, file = open_photo(io.BytesIO(data), "a.png", 2), io.BytesIO()
    photo.save(photo.image, file)
    assert not photo.note
    for part in kept:
        assert file.getvalue().count(part) == 1, part[4:8]
    with Image.open(file) as result:
        assert result.getexif()[0x10F] == "Camera"
