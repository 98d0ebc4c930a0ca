"""What pictures carry: no fault in it costs a picture, and nothing of it is lost unsaid."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from benchmarks.odd_pictures import (
    chunk,
    directory,
    exif_block,
    fuzzed_exif,
    png_file,
    scene,
    with_exif,
    with_segments,
    written,
)
from imaging import ifd, saving
from imaging.decoding import Picture
from imaging.enlarge import bicubic_only, enlarge
from imaging.metrics import psnr
from imaging.photo import Photo, open_photo

IPTC = b"\x1c\x02\x78\x00\x07Caption\x1c\x02\x74\x00\x09Copyright"
PHOTOSHOP = b"Photoshop 3.0\0"
MAKE = (0x10F, 2, b"Camera\0")
XMP_START = b"http://ns.adobe.com/xap/1.0/\0"
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmp:Rating="5"/></x:xmpmeta>'
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PIXELS = np.asarray(scene())


def resource(number: int, data: bytes) -> bytes:
    """Return one of Photoshop's resources."""
    return b"8BIM" + struct.pack(">HHI", number, 0, len(data)) + data + b"\0" * (len(data) % 2)


def enlarged(data: bytes, name: str) -> tuple[bytes, Photo]:
    """Return the enlarged file; it must open, and be three times as large."""
    photo, file = open_photo(io.BytesIO(data), name, 3), io.BytesIO()
    photo.save(enlarge(photo.image, 3, bicubic_only, 8), file)
    with Image.open(file) as result:
        result.load()
        dict(result.getexif())
        assert result.size == (3 * photo.size[0], 3 * photo.size[1])
    return file.getvalue(), photo


@pytest.mark.parametrize("first_seed", range(0, 300, 100))
def test_300_fuzzed_exif_blocks_cost_no_picture(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 100):
        data = fuzzed_exif(seed)
        photo = open_photo(io.BytesIO(data), "a.jpg", 3)
        file = io.BytesIO()
        photo.save(enlarge(photo.image, 3, bicubic_only, 8), file)
        with Image.open(file) as result:
            result.load()
            dict(result.getexif())
            assert sorted(result.size) == [96, 144], f"seed {seed}"


BROKEN, ONE = "its EXIF data is broken and left out", "1 broken EXIF or TIFF tags are left out"
SENSELESS = "its resolution makes no sense and is left out"
ODD_EXIF = {
    "no TIFF": (b"hello world, this is no TIFF", BROKEN),
    "nothing": (b"", BROKEN),
    "no TIFF's number": (b"II\x55\0" + exif_block([(0x110, 2, b"Model\0")])[4:], BROKEN),
    "BigTIFF, cut off": (b"II+\0\x08\0\0\0", BROKEN),
    "directory outside": (b"II*\0\xff\xff\xff\x7f", BROKEN),
    "negative pointer": (exif_block([MAKE, (0x8769, 9, b"\xff" * 4)]), ONE),
    "pointer outside": (exif_block([MAKE, (0x8769, 4, b"\0\0\0\x80")]), ONE),
    "pointer to itself": (exif_block([MAKE, (0x8769, 4, b"\x08\0\0\0")]), ""),
    "value outside": (exif_block([MAKE, (0x110, 2, b"Model name\0")])[:-9], ONE),
    "unknown type": (exif_block([MAKE]).replace(b"\x0f\1\2\0", b"\x0f\1\x63\0"), ONE),
    "text as rational": (exif_block([(0x10F, 5, bytes(8))]), ""),
    "text as double": (exif_block([(0x131, 12, struct.pack("<d", 3.5))]), ""),
    "date as rational": (exif_block([MAKE], [(0x9003, 5, struct.pack("<II", 2020, 1))]), ""),
    "zoom of −1/0": (exif_block([MAKE], [(0xA404, 10, struct.pack("<ii", -1, 0))]), ""),
    "resolution as text": (exif_block([MAKE, (0x11A, 2, b"72\0")]), SENSELESS),
    "resolution of 0/0": (exif_block([MAKE, (0x11A, 5, bytes(8))]), SENSELESS),
    "two resolutions": (exif_block([(0x11A, 5, b"\1\0\0\0" * 4)]), SENSELESS),
    "maker's note": (
        exif_block([MAKE], [(0x927C, 7, bytes(64000))]),
        "the camera maker's note in its EXIF data is left out",
    ),
}


@pytest.mark.parametrize("kind", ODD_EXIF)
def test_odd_exif_costs_itself_at_most(kind: str) -> None:
    block, words = ODD_EXIF[kind]
    data, photo = enlarged(with_exif(block), "a.jpg")
    assert photo.note == words
    if MAKE[2] in block and kind != "unknown type":
        assert Image.open(io.BytesIO(data)).getexif()[0x10F] == "Camera"


def test_exif_values_are_not_touched() -> None:
    """Types that Pillow would change, and a text whose code depends on the byte order."""
    comment = b"UNICODE\0" + "Größe".encode("utf-16-be")
    details = directory(0, [(0x9286, 7, comment), (0x8827, 2, b"100\0")], ">")
    start = 8 + len(directory(8, [(0x8769, 4, bytes(4))], ">"))
    details = directory(start, [(0x9286, 7, comment), (0x8827, 2, b"100\0")], ">")
    block = (
        b"MM\0*\0\0\0\x08" + directory(8, [(0x8769, 4, struct.pack(">I", start))], ">") + details
    )
    data, photo = enlarged(with_exif(block), "a.jpg")
    assert block in data
    assert not photo.note


@pytest.mark.parametrize("value", [b"6\0\0\0", b"\6\0\6\0", b"\0\0", b"\x09\0"])
def test_orientations(value: bytes) -> None:
    kind = 2 if value[:1] == b"6" else 3
    _, photo = enlarged(with_exif(exif_block([(0x112, kind, value)])), "a.jpg")
    assert photo.size == ((32, 48) if value == b"\6\0\6\0" else (48, 32))


def test_orientation_by_xmp_is_applied_once() -> None:
    xmp = XMP.replace(b"xmp:Rating", b'tiff:Orientation="6" xmp:Rating')
    data, photo = enlarged(
        with_segments(written(scene(), "JPEG"), (0xE1, XMP_START + xmp)), "a.jpg"
    )
    assert photo.size == (32, 48)
    assert b'tiff:Orientation="1"' in data
    assert enlarged(data, "a.jpg")[1].size == (96, 144), "turned twice"


def test_jpeg_carries() -> None:
    iptc = resource(0x0404, IPTC)
    long_xmp = b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + b"<more/>"
    segments = [
        (0xE1, XMP_START + XMP),
        (0xE1, long_xmp),
        (0xE2, b"ICC_PROFILE\0\1\1" + SRGB),
        (0xED, PHOTOSHOP + iptc + resource(0x040C, bytes(99))),
        (0xFE, b"a comment"),
        (0xFE, b"another"),
        (0xE2, b"MPF\0" + bytes(20)),
        (0xEB, b"JP" + bytes(20)),
        (0xE0, b"JFXX\0" + bytes(20)),  # a thumbnail, of which nobody is told
    ]
    data, photo = enlarged(with_segments(written(scene(), "JPEG"), *segments), "a.jpg")
    for part in (XMP, long_xmp, SRGB, PHOTOSHOP + iptc, b"a comment", b"another"):
        assert data.count(part) == 1
    assert photo.note == (
        "left out: APP11, Photoshop's data other than IPTC, a second picture (preview or gain map)"
    )


@pytest.mark.parametrize(
    "segment",
    [(0xE2, b"ICC_PROFILE\0"), (0xED, PHOTOSHOP + b"8BIM\4\4\0"), (0xE0, b"JFIF"), (0xE1, b"http")],
)
def test_broken_segments(segment: tuple[int, bytes]) -> None:
    enlarged(with_segments(written(scene(), "JPEG"), segment), "a.jpg")


def test_a_segment_of_the_wrong_length() -> None:
    jpeg = with_segments(written(scene(), "JPEG"), (0xED, PHOTOSHOP + bytes(40)), (0xFE, b"after"))
    short = jpeg.replace(b"\xff\xed" + struct.pack(">H", 56), b"\xff\xed" + struct.pack(">H", 50))
    assert short != jpeg
    data, photo = enlarged(short, "a.jpg")
    assert "segment of the wrong length" in photo.note
    assert b"after" in data


def test_bytes_that_fill_the_space_before_a_segment() -> None:
    jpeg = with_segments(written(scene(), "JPEG"), (0xFE, b"a comment"))
    data, photo = enlarged(jpeg.replace(b"\xff\xfe", b"\xff\xff\xff\xfe"), "a.jpg")
    assert not photo.note
    assert b"a comment" in data


def test_a_comment_behind_the_tables_of_the_pixels() -> None:
    jpeg = written(scene(), "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    comment = b"\xff\xfe\0\x0ba comment"
    data, photo = enlarged(jpeg[:frame] + comment + jpeg[frame:], "a.jpg")
    assert not photo.note
    assert b"a comment" in data


def test_a_tiff_whose_next_page_is_nowhere() -> None:
    data = tiff_with("<")
    end = 8 + 2 + 12 * int.from_bytes(data[8:10], "little")
    _, photo = enlarged(data[:end] + b"\xff\xff\xff\x7f" + data[end + 4 :], "a.tif")
    assert photo.note == "its next page is outside the file"


def test_png_carries() -> None:
    long_text = zlib.compress(b"x" * 1_500_000)
    kept = [
        chunk(b"gAMA", struct.pack(">I", 45455)),
        chunk(b"cHRM", struct.pack(">8I", *range(31270, 31278))),
        chunk(b"cICP", bytes([9, 16, 0, 1])),
        chunk(b"tEXt", b"Comment\0one"),
        chunk(b"tEXt", b"Comment\0J\xf6rg"),
        chunk(b"iTXt", b"Title\0\0\0de\0Titel\0" + "Größe".encode()),
        chunk(b"zTXt", b"workflow\0\0" + long_text),
        chunk(b"iTXt", b"prompt\0\1\0\0\0" + long_text),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
    ]
    late = (chunk(b"tEXt", b"Comment\0late"), chunk(b"sRGB", b"\0"), chunk(b"tIME", bytes(7)))
    photo, file = (
        open_photo(io.BytesIO(png_file(PIXELS, *kept, last=late)), "a.png", 3),
        io.BytesIO(),
    )
    photo.save(enlarge(photo.image, 3, bicubic_only, 8), file)
    for part in (*kept, *late[:2]):
        assert file.getvalue().count(part) == 1, part[4:8]
    assert photo.note == "left out: tIME"


@pytest.mark.parametrize("kind", [b"tEXt", b"gAMA", b"iCCP", b"eXIf", b"pHYs", b"zTXt", b"tRNS"])
def test_a_broken_checksum_costs_the_chunk(kind: bytes) -> None:
    good = chunk(kind, b"Comment\0hello")
    data, photo = enlarged(png_file(PIXELS, good[:-1] + bytes([good[-1] ^ 1])), "a.png")
    assert photo.note == f"its {kind.decode()} chunk is broken and left out"
    assert b"hello" not in data


def test_chunks_whose_content_is_broken() -> None:
    kinds = (
        b"iCCP",
        b"eXIf",
        b"zTXt",
        b"iTXt",
        b"pHYs",
        b"gAMA",
        b"cHRM",
        b"tEXt",
        b"sBIT",
        b"hIST",
    )
    for kind in kinds:
        for body in (b"", b"\0", b"name\0\0nonsense"):
            enlarged(png_file(PIXELS, chunk(kind, body)), "a.png")


def test_an_aspect_ratio_is_named() -> None:
    png = png_file(PIXELS, chunk(b"pHYs", struct.pack(">IIB", 2, 1, 0)))
    assert "aspect ratio" in enlarged(png, "a.png")[1].note
    jpeg = written(scene(), "JPEG").replace(b"JFIF\0\1\1\0\0\1\0\1", b"JFIF\0\1\1\0\0\2\0\1")
    assert "aspect ratio" in enlarged(jpeg, "a.jpg")[1].note


def test_an_aspect_ratio_that_is_kept_or_none_is_not() -> None:
    png = png_file(PIXELS, chunk(b"pHYs", struct.pack(">IIB", 2, 2, 0)))
    assert not enlarged(png, "a.png")[1].note
    data, photo = enlarged(written(scene(), "JPEG", dpi=(300, 150)), "a.jpg")
    assert (Image.open(io.BytesIO(data)).info["dpi"], photo.note) == ((300, 150), "")


def tiff_with(order: str, *tags: tuple[int, int, bytes]) -> bytes:
    """Return a TIFF file of the scene with more tags."""
    width, height = scene().size
    fixed = [
        *((tag, 4, struct.pack(order + "I", n)) for tag, n in ((256, width), (257, height))),
        *((tag, 3, struct.pack(order + "H", n)) for tag, n in ((259, 1), (262, 2), (277, 3))),
        (258, 3, struct.pack(order + "3H", 8, 8, 8)),
        (278, 4, struct.pack(order + "I", height)),
        (279, 4, struct.pack(order + "I", width * height * 3)),
    ]
    start = 8 + len(directory(8, [*fixed, *tags, (273, 4, bytes(4))], order))
    place = (273, 4, struct.pack(order + "I", start))
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return head + directory(8, [*fixed, *tags, place], order) + PIXELS.tobytes()


@pytest.mark.parametrize("order", "<>")
def test_tiff_carries(order: str) -> None:
    tags = [
        (700, 1, XMP),
        (33723, 7, IPTC),
        (269, 2, b"document\0"),
        (315, 2, b"an artist\0"),
        (306, 2, b"2020:01:02 03:04:05\0"),
        (282, 5, struct.pack(order + "II", 300, 1)),
        (283, 5, struct.pack(order + "II", 300, 1)),
        (296, 3, struct.pack(order + "H", 3)),
        (33550, 12, bytes(24)),
    ]
    data, photo = enlarged(tiff_with(order, *tags), "a.tif")
    with Image.open(io.BytesIO(data)) as result:
        found = result.tag_v2
        assert (bytes(found[700]), bytes(found[33723])) == (XMP, IPTC)
        assert (found[269], found[315], found[306]) == (
            "document",
            "an artist",
            "2020:01:02 03:04:05",
        )
        assert (found[282], found[283], found[296]) == (300, 300, 3)
        expected = scene().resize(result.size, Image.Resampling.BICUBIC)
        assert result.tobytes() == expected.tobytes()
    assert photo.note == "left out: TIFF tags 33550"


def test_tags_that_are_added_lie_at_an_even_place() -> None:
    """As TIFF wants it, though the pixels before them are of 9 bytes."""
    data, _ = enlarged(written(Image.new("L", (1, 1)), "TIFF"), "a.tif")
    assert int.from_bytes(data[4:8], "little") % 2 == 0


def test_the_other_byte_order_reaches_into_directories() -> None:
    numbers = {
        order: ifd.Entry(ifd.RATIONAL, struct.pack(f"{order}4I", 28, 10, 7, 1)) for order in "<>"
    }
    within = {ifd.EXIF: ifd.Entry(ifd.LONG, {0x9202: numbers[">"]}), 315: ifd.Entry(2, b"me\0")}
    turned = ifd.swapped(within)
    assert turned[ifd.EXIF].directory == {0x9202: numbers["<"]}
    assert turned[315].value == b"me\0"
    assert ifd.swapped(turned) == within


@pytest.mark.parametrize("value", [(0, 0), (72, 0), (0, 72)])
def test_a_senseless_resolution_of_a_tiff(value: tuple[int, int]) -> None:
    tags = [(tag, 5, struct.pack("<II", *value)) for tag in (282, 283)]
    assert "resolution makes no sense" in enlarged(tiff_with("<", *tags), "a.tif")[1].note


@pytest.mark.parametrize("tag", [269, 282, 306, 700, 33723, 34675, 34665, 34853])
def test_odd_tags_of_a_tiff(tag: int) -> None:
    for kind, value in (
        (2, b"x" * 9),
        (5, bytes(8)),
        (12, b"\xff" * 8),
        (7, b"?"),
        (4, b"\xff" * 4),
    ):
        enlarged(tiff_with("<", (tag, kind, value)), "a.tif")


def test_webp_stays_lossless() -> None:
    image = scene()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    for lossless in (True, False):
        data, photo = enlarged(written(image, "WEBP", lossless=lossless, exact=True), "a.webp")
        assert (b"VP8L" in data) == lossless
        assert b"XMP " not in data
        expected = np.asarray(enlarge(photo.image, 3, bicubic_only, 8)).astype(int)
        difference = np.abs(np.asarray(Image.open(io.BytesIO(data))) - expected).max()
        assert (difference == 0) == lossless


def test_a_lossless_webp_keeps_the_colours_that_are_transparent() -> None:
    image = scene()
    image.putalpha(0)
    data, photo = enlarged(written(image, "WEBP", lossless=True, exact=True), "a.webp")
    expected = np.asarray(enlarge(photo.image, 3, bicubic_only, 8))
    assert expected.any()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)


def test_a_webp_of_one_frame_stays_lossy() -> None:
    """As some programs write them: the frame of an animation, which holds the pixels."""
    width, height = (n - 1 for n in scene().size)
    frame = b"\0" * 6 + b"".join(n.to_bytes(3, "little") for n in (width, height, 0)) + b"\0"
    frame += written(scene(), "WEBP")[12:]
    head = b"\2\0\0\0" + b"".join(n.to_bytes(3, "little") for n in (width, height))
    parts = [(b"VP8X", head), (b"ANIM", bytes(6)), (b"ANMF", frame)]
    body = b"".join(kind + struct.pack("<I", len(data)) + data for kind, data in parts)
    data, _ = enlarged(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body, "a.webp")
    assert b"VP8L" not in data


@pytest.mark.parametrize(
    ("compression", "kept"),
    [
        ("tiff_lzw", "tiff_lzw"),
        ("tiff_adobe_deflate", "tiff_adobe_deflate"),
        ("packbits", "packbits"),
        ("jpeg", "jpeg"),
        ("lzma", "tiff_adobe_deflate"),
        ("raw", "raw"),
    ],
)
def test_a_tiff_stays_compressed(compression: str, kept: str) -> None:
    options = {"compression": compression, "exif": exif_block([MAKE], [(0x9003, 2, b"date\0")])}
    if compression != "raw":  # Pillow cannot write both
        del options["exif"]
    data, photo = enlarged(written(scene(), "TIFF", **options), "a.tif")
    with Image.open(io.BytesIO(data)) as result:
        assert result.info["compression"] == kept
        assert ("becomes Deflate" in photo.note) == (compression != kept)
        if compression == "raw":
            assert result.getexif().get_ifd(0x8769)[0x9003] == "date"


def test_a_tiff_of_more_than_4_gb_keeps_its_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imaging.saving.BIGGEST_TIFF", 0)
    data, _ = enlarged(tiff_with("<", (315, 2, b"an artist\0")), "a.tif")
    assert data.startswith(b"II+\0")
    assert Image.open(io.BytesIO(data)).tag_v2[315] == "an artist"


@pytest.mark.parametrize(
    "result", [scene(), np.zeros((32, 48, 3), np.uint16)], ids=["8 bits", "16 bits"]
)
def test_offsets_of_64_bits_begin_with_the_size_that_needs_them(
    monkeypatch: pytest.MonkeyPatch, result: Picture
) -> None:
    assert 2**31 < saving.BIGGEST_TIFF < 2**32
    size = np.asarray(result).nbytes
    for biggest, start in ((size, b"II*\0"), (size - 1, b"II+\0")):
        monkeypatch.setattr(saving, "BIGGEST_TIFF", biggest)
        file = io.BytesIO()
        saving.write(result, "TIFF", file, {"compression": "raw"})
        assert file.getvalue().startswith(start)


def test_a_gif_keeps_transparency_and_comment() -> None:
    image = scene().quantize(16)
    index = image.getpixel((0, 0))
    data, _ = enlarged(written(image, "GIF", transparency=index, comment="Größe".encode()), "a.gif")
    with Image.open(io.BytesIO(data)) as result:
        assert (result.mode, result.text["Comment"]) == ("RGBA", "Größe")
        assert result.getpixel((0, 0))[3] == 0
        assert result.getchannel("A").getextrema() == (0, 255)


@pytest.mark.parametrize(("kind", "least"), [("JPEG", 43), ("WEBP", 39), ("AVIF", 42)])
def test_saving_costs_next_to_nothing(kind: str, least: float) -> None:
    """Of a picture whose colours end sharply, which coarser colour would smear."""
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    squares = np.random.default_rng(3).integers(0, 256, (12, 16, 3), np.uint8)
    image = Image.fromarray(squares.repeat(5, 0).repeat(5, 1))
    data, photo = enlarged(written(image, kind, quality=95), f"a.{kind.lower()}")
    expected = np.asarray(enlarge(photo.image, 3, bicubic_only, 8))
    found = psnr(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), expected)
    assert found > least
