"""Opening and saving pictures: kinds, modes, orientation, what they carry, what is refused."""

import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, PngImagePlugin
from samples import coffee, pixels, through, tiff_file

from imaging.decoding import is_deep_avif
from imaging.enlarge import bicubic_only, enlarge
from imaging.kinds import FORMATS, by_content, saved_suffix
from imaging.memory import needed
from imaging.photo import PictureError, TooLarge, open_photo
from runtime.errors import first_line

ORIENTATION, EXIF_IFD, GPS_IFD, MAKE = 0x0112, 0x8769, 0x8825, 0x010F
WIDTH_TAG, HEIGHT_TAG, DATE_TAG = 0xA002, 0xA003, 0x9003


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        ("RGB", "a.jpg", "RGB"),
        ("L", "a.jpeg", "L"),
        ("RGBA", "a.webp", "RGBA"),
        ("LA", "a.tif", "LA"),
        ("RGBA", "a.tiff", "RGBA"),
        ("YCbCr", "a.jpg", "RGB"),
        ("P", "a.png", "RGB"),
        ("P", "a.gif", "RGB"),
        ("1", "a.bmp", "L"),
        ("RGB", "A.BMP", "RGB"),
    ],
)
def test_modes(mode: str, name: str, expected: str) -> None:
    image = coffee(40, 30)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    file, result = io.BytesIO(), io.BytesIO()
    compression = {"YCbCr": "tiff_lzw"}.get(mode)  # plain, it is read by Pillow 13 and later only
    suffix = Path(name).suffix.lower()
    image.convert(mode).save(file, Image.registered_extensions()[suffix], compression=compression)
    photo = open_photo(file, name, 3)
    photo.save(enlarge(photo.image, 3, bicubic_only, 8), result)
    with Image.open(result) as saved:
        assert (saved.mode, saved.size) == (expected, (120, 90))
        assert saved.format == ("PNG" if name == "a.gif" else photo.format)
        allowed = {"P": 12, "1": 90}.get(mode, 6)  # few colours
        difference = pixels(saved.convert("L")) - pixels(image.resize((120, 90)).convert("L"))
        assert np.abs(difference).mean() < allowed or "A" in mode


@pytest.mark.parametrize(("mode", "key"), [("P", 3), ("L", 99), ("RGB", (1, 2, 3))])
def test_a_transparent_colour_becomes_alpha(mode: str, key: object) -> None:
    image = coffee(40, 30).convert(mode)
    image.paste(key, (0, 0, 20, 30))
    result = through(image, "a.png", transparency=key)
    assert result.mode == {"L": "LA"}.get(mode, "RGBA")
    assert (pixels(result.getchannel("A"))[:, :50] == 0).all()
    assert (pixels(result.getchannel("A"))[:, 70:] > 200).mean() > 0.9


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """Write a PNG file by hand."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def camera_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = orientation, "Camera"
    exif.get_ifd(EXIF_IFD).update({WIDTH_TAG: 40, HEIGHT_TAG: 30, DATE_TAG: "2020:01:02 03:04:05"})
    exif.get_ifd(GPS_IFD)[1] = "N"
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    image = coffee(40, 30)
    result = through(image, "a.png", exif=camera_exif(orientation))
    upright = image.transpose(turn) if turn is not None else image
    assert ORIENTATION not in result.getexif()
    assert result.tobytes() == through(upright, "a.png").tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_turned_as_any_other(orientation: int, tmp_path: Path) -> None:
    """Pillow does not turn it, as it does HEIF; what XMP says of it is another program's."""
    shown = {}
    for name in ("a.avif", "a.png"):
        coffee(40, 30).save(tmp_path / name, exif=camera_exif(orientation))
        shown[name] = np.asarray(open_photo(tmp_path / name, name, 2).image).astype(int)
    assert np.abs(shown["a.avif"] - shown["a.png"]).mean() < 5
    xmp = b'<x:xmpmeta tiff:Orientation="6"/>'
    coffee(40, 30).save(tmp_path / "b.avif", xmp=xmp)
    assert open_photo(tmp_path / "b.avif", "b.avif", 2).size == (40, 30)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_metadata_is_kept(name: str, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options = {"exif": camera_exif(6).tobytes(), "icc_profile": profile, "dpi": (300, 300)}
    if name in ("a.jpg", "a.webp"):
        options["xmp"] = b"<x:xmpmeta/>"
    if name == "a.jpg":
        options["comment"] = b"a comment"
    if name == "a.png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("Title", "a cup of coffee, 咖啡")
    image = coffee(40, 30)
    image.save(tmp_path / name, **options)
    photo = open_photo(tmp_path / name, name, 3)
    photo.save(enlarge(photo.image, 3, bicubic_only, 8), tmp_path / f"new{name}")
    with Image.open(tmp_path / f"new{name}") as result:
        exif = result.getexif()
        details = exif.get_ifd(EXIF_IFD)
        assert result.size == (90, 120)
        assert (exif.get(ORIENTATION, 1), exif[MAKE]) == (1, "Camera")
        assert (details[WIDTH_TAG], details[HEIGHT_TAG]) == (90, 120)
        assert details[DATE_TAG] == "2020:01:02 03:04:05"
        assert exif.get_ifd(GPS_IFD)[1] == "N"
        assert result.info["icc_profile"] == profile
        if name != "a.webp":  # has no field for it
            assert result.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        for key in ("xmp", "comment"):
            assert result.info.get(key) == options.get(key)
        if name == "a.png":
            assert result.text == {"Title": "a cup of coffee, 咖啡"}


def written(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def refused() -> dict[str, tuple[str, bytes, str]]:
    """Return name, bytes and the words of the refusal, of pictures that cannot be enlarged."""
    image = coffee(40, 30)
    more = {"save_all": True, "append_images": [image.rotate(90)]}
    return {
        "gif": ("a.gif", written(image, "GIF", **more), "2 frames"),
        "apng": ("a.png", written(image, "PNG", **more), "2 frames"),
        "webp": ("a.webp", written(image, "WEBP", **more), "2 frames"),
        "pages": ("a.tif", written(image, "TIFF", **more), "2 frames or pages"),
        "lab": ("a.tif", written(image.convert("LAB"), "TIFF"), "LAB pixels"),
        "float": ("a.tif", written(image.convert("F"), "TIFF"), "floating-point pixels"),
        "below 0": ("a.tif", tiff_file(np.zeros((9, 9), np.int16)), "pixels that may be negative"),
        "float colours": (
            "a.tif",
            tiff_file(np.zeros((9, 9, 3), np.float32), photometric="rgb"),
            "Pillow does not read",
        ),
        "truncated png": ("a.png", written(image, "PNG")[:900], "cannot be read"),
        "truncated jpeg": ("a.jpg", written(image, "JPEG")[:800], "truncated"),
        "empty": ("a.png", b"", r"it is empty \(0 bytes\); look at where it came from"),
        "text": ("a.jpg", b"hello", "not a picture"),
        "bomb": ("a.png", png(90000, 90000, 8, 2, b""), "8100.0 megapixels enlarged need about 4"),
        "gif bomb": ("a.gif", written(image, "GIF").replace(b"\x28\0\x1e\0", b"\xff" * 4), "need"),
        "png long": ("a.png", png(2**31 // 3 + 1, 1, 8, 2, b""), "PNG holds 2147483647 pixels"),
        "long": ("a.jpg", written(Image.new("L", (22000, 1)), "JPEG"), "JPEG holds 65500 pixels"),
        "tall": ("a.jpg", written(Image.new("L", (1, 22000)), "JPEG"), "JPEG holds 65500 pixels"),
        "webp long": ("a.webp", written(Image.new("L", (6000, 1)), "WEBP"), "WEBP holds 16383"),
    }


@pytest.mark.parametrize("kind", list(refused()))
def test_refusals_say_why(kind: str) -> None:
    name, data, words = refused()[kind]
    with pytest.raises(PictureError, match=words) as caught:
        open_photo(io.BytesIO(data), name, 3)
    assert "\n" not in str(caught.value)


def test_a_phone_photo_with_a_preview_is_no_animation() -> None:
    image = coffee(40, 30)
    data = written(image, "MPO", save_all=True, append_images=[image.resize((8, 6))])
    photo = open_photo(io.BytesIO(data), "a.jpg", 3)
    assert (photo.format, photo.image.size) == ("JPEG", (40, 30))


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(PictureError, match="no regular file"):
        open_photo(tmp_path / "a.png", "a.png", 2)


@pytest.mark.parametrize(
    ("name", "kind", "suffix"),
    [
        ("a.jfif", "JPEG", ".jfif"),
        ("a.JPE", "JPEG", ".JPE"),
        ("a.avif", "AVIF", ".avif"),
        ("a.jpg", "WEBP", ".webp"),
        ("a.png", "JPEG", ".jpg"),
        ("a.tif", "TIFF", ".tif"),
        ("a", "PNG", ".png"),
        ("a.png", "GIF", ".png"),
    ],
)
def test_the_content_decides(name: str, kind: str, suffix: str) -> None:
    data = written(coffee(40, 30), kind)
    photo = open_photo(io.BytesIO(data), name, 2)
    assert photo.format == ("PNG" if kind == "GIF" else kind)
    assert saved_suffix(name, data) == suffix
    told = f"is a {kind} file by its content, saved as {suffix}"
    assert photo.note == ("" if FORMATS.get(Path(name).suffix.lower()) == kind else told)


@pytest.mark.parametrize(
    ("brands", "kind"),
    [
        (b"avif", "AVIF"),
        (b"heic", "HEIF"),
        (b"mif1....avifmiaf", "AVIF"),
        (b"mif1....mif1heic", "HEIF"),
        (b"isom....mp42heic", "HEIF"),
        (b"isom....mp42", None),
    ],
)
def test_brands_tell_the_kind(brands: bytes, kind: str | None) -> None:
    """The first, and behind four bytes those that go with it: a film has others."""
    assert by_content(b"\0\0\0\x18ftyp" + brands) == kind


@pytest.mark.parametrize(
    ("data", "deep"),
    [
        (b"av1C\x81\x20\x4c\0", True),
        (b"..av1C\x81\x20\x4c", True),
        (b"av1C\x81\x20\x0d\0", False),
        (b"av1C\x81\x20", False),
        (b"a picture without", False),
    ],
)
def test_an_avif_of_more_than_8_bits_is_told(
    monkeypatch: pytest.MonkeyPatch, data: bytes, deep: bool
) -> None:
    assert is_deep_avif(data) == deep
    monkeypatch.setattr("imaging.decoding.is_deep_avif", lambda _: deep)
    note = open_photo(io.BytesIO(written(coffee(40, 30), "AVIF")), "a.avif", 2).note
    assert note == ("10 or 12 bits per channel are read as 8" if deep else "")


def test_channels_beside_the_colours_are_left_out() -> None:
    file, levels = io.BytesIO(), np.zeros((5, 5, 4), np.uint8)
    tifffile.imwrite(file, levels, photometric="rgb", extrasamples=["unspecified"], metadata=None)
    photo = open_photo(file, "a.tif", 2)
    assert (photo.note, photo.image.mode) == ("left out: channels beside red, green, blue", "RGB")


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(28, "No space left on device"), OSError("encoder error -2")]
)
def test_what_is_no_fault_of_the_picture_goes_through(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    photo = open_photo(io.BytesIO(written(coffee(40, 30), "PNG")), "a.png", 2)
    monkeypatch.setattr("imaging.saving.write", fail)
    encoders = error.args == ("encoder error -2",)
    with pytest.raises(PictureError if encoders else type(error)) as caught:
        photo.save(photo.image, io.BytesIO())
    assert str(caught.value) == (
        "cannot be saved as PNG (encoder error -2)" if encoders else str(error)
    )


def test_memory_that_runs_out_is_no_fault_of_a_picture_that_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("imaging.decoding.pixels", fail)
    with pytest.raises(MemoryError):
        open_photo(io.BytesIO(written(coffee(40, 30), "PNG")), "a.png", 2)


def test_big_tiff() -> None:
    photo = open_photo(io.BytesIO(written(coffee(40, 30), "TIFF", big_tiff=True)), "a.tif", 2)
    assert (pixels(photo.image) == pixels(coffee(40, 30))).all()


def test_heic_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it fails
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)
    with pytest.raises(
        PictureError, match=r"^HEIF needs a package: pip install pillow-heif, or save it as PNG"
    ):
        open_photo(io.BytesIO(data), "a.heic", 2)


def test_a_pillow_that_only_reads_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(coffee(9, 9), "WEBP")
    monkeypatch.delitem(Image.SAVE, "WEBP")
    with pytest.raises(
        PictureError, match=r"^WEBP needs another build of Pillow; or save it as PNG"
    ):
        open_photo(io.BytesIO(data), "a.webp", 2)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("one\ntwo"), "one"),
        (ValueError(), "ValueError"),
        (ValueError(" \n"), "ValueError"),
    ],
)
def test_what_an_error_says_on_one_line(error: Exception, line: str) -> None:
    assert first_line(error) == line


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_is_converted(suffix: str) -> None:
    image = coffee(40, 30)
    kind = "JPEG" if suffix == "jpg" else "TIFF"
    data = written(image.convert("CMYK"), kind)
    photo = open_photo(io.BytesIO(data), f"a.{suffix}", 2)
    assert "CMYK without a colour profile" in photo.note
    assert photo.image.mode == "RGB"
    assert np.abs(pixels(photo.image) - pixels(image)).mean() < 5


def test_cmyk_with_a_profile_that_is_none() -> None:
    data = written(coffee(40, 30).convert("CMYK"), "JPEG", icc_profile=b"nonsense")
    photo = open_photo(io.BytesIO(data), "a.jpg", 2)
    assert "its colour profile cannot be used; CMYK without" in photo.note
    assert "icc_profile" not in photo.metadata


def test_a_picture_of_just_as_many_pixels_as_are_taken() -> None:
    data = png(41, 3, 8, 2, zlib.compress(b""))
    for most in (0, 123):
        with pytest.raises(PictureError, match="truncated"):  # so it was to be decoded
            open_photo(io.BytesIO(data), "a.png", 2, most)
    with pytest.raises(TooLarge):
        open_photo(io.BytesIO(data), "a.png", 2, 122)


@pytest.mark.parametrize(
    ("kind", "channels", "result"), [("PNG", (), 5), ("WEBP", (0,), 14), ("TIFF", (3,), 12)]
)
def test_the_memory_for_a_pixel_and_what_becomes_of_it(
    kind: str, channels: tuple[int, ...], result: int
) -> None:
    source = 8 + 6 * sum(channels)
    assert needed(10, 5, 3, kind, *channels) == 50 * (source + 9 * result)


def test_memory_is_the_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = png(2000, 2000, 8, 2, b"")
    with pytest.raises(
        PictureError, match=r"4\.0 megapixels enlarged need about 0\.2 GB of memory"
    ):
        open_photo(io.BytesIO(data), "a.png", 3, room=100_000_000)
    for depth, words in ((8, "truncated"), (16, r"about 0\.5 GB of memory")):
        with pytest.raises(PictureError, match=words):
            open_photo(io.BytesIO(png(2000, 2000, depth, 2, b"")), "a.png", 3, room=250_000_000)
    with pytest.raises(PictureError, match=r"0\.0 GB are free"):
        open_photo(io.BytesIO(data), "a.png", 3, room=0)
    monkeypatch.setattr("imaging.photo.available_memory", lambda: 1000)
    with pytest.raises(PictureError, match=r"0\.0 GB are free; cut it in pieces"):
        open_photo(io.BytesIO(data), "a.png", 3)
    (tmp_path / "a.png").write_bytes(bytes(1001))
    with pytest.raises(PictureError, match="the file alone is larger than the memory"):
        open_photo(tmp_path / "a.png", "a.png", 3)


def grey_ink_profile() -> bytes:
    """Return a CMYK profile (ICC.1:2001, lut8) whose inks are all grey, the fourth black."""
    ramp = bytes(range(256))
    corners = b"".join(bytes([255 - 255 * (i % 2), 128, 128]) for i in range(16))  # Lab
    identity = struct.pack(">9i", *(65536 * (i in (0, 4, 8)) for i in range(9)))
    table = b"mft1\0\0\0\0\4\3\2\0" + identity + 4 * ramp + corners + 3 * ramp
    head = struct.pack(
        ">I4sI4s4s4s", 144 + len(table), b"none", 0x02400000, b"prtr", b"CMYK", b"Lab "
    )
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return head + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


def test_cmyk_goes_through_its_profile() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))  # no ink by this profile, so white
    data = written(cyan, "TIFF", icc_profile=grey_ink_profile())
    photo = open_photo(io.BytesIO(data), "a.tif", 2)
    assert photo.note == "CMYK is converted to sRGB by its colour profile"
    assert min(photo.image.getpixel((0, 0))) > 250
    assert b"RGB XYZ" in photo.metadata["icc_profile"][:40]
