"""Pixels of picture files, as the rest of the program takes them: upright, 8 or 16 bits."""

import io
import struct
import sys

import numpy as np
from PIL import Image, ImageCms, ImageFile

from imaging import ifd
from imaging.kinds import PictureError, in_deep_planes, rawmode
from imaging.metadata import Carried

Picture = Image.Image | np.ndarray  # mode L, LA, RGB, RGBA; or of 16 bits, uint16 H×W×C

TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BITS, PHOTOMETRIC, SAMPLES = 258, 262, 277  # tags of TIFF
OF_ALL_PLANES = {284, 338, 339}  # tags that one plane has not
PIECES = {273, 279, 324, 325}  # tags of where strips and tiles are, and how long
# The unpackers that take the low byte of 16 bits where Pillow's own choice takes the high one.
LITTLE = sys.byteorder == "little"
LOW_BYTES = {"16B": "16L", "16L": "16B", "16N": "16B" if LITTLE else "16L"}


def shape(picture: Picture) -> tuple[int, int, int]:
    """Return height, width, channels."""
    if isinstance(picture, Image.Image):
        return picture.height, picture.width, len(picture.getbands())
    height, width, channels = picture.shape
    return height, width, channels


def from_bytes(data: bytes, kind: str) -> ImageFile.ImageFile:
    """Open a picture without Pillow's limit of pixels; whoever calls it has one of memory."""
    return Image.OPEN[kind][0](io.BytesIO(data), "")


def is_deep_grey(image: ImageFile.ImageFile) -> bool:
    raw = rawmode(image)
    return raw.startswith(("I;16", "I;12")) and not raw.endswith("S")


def pixels(image: ImageFile.ImageFile, data: bytes, kind: str, carried: Carried) -> Picture:
    """Decode a picture.

    Args:
        image: just opened.
        data: what it was opened from.
        kind: its format, as Pillow names it.
        carried: takes the notes; a colour profile that is used up is taken from it.
    """
    raw = rawmode(image)
    decoded = levels(image, data, kind)
    if decoded is None and "16" in raw:
        carried.notes.append("16 bits per channel are read as 8")
    if decoded is not None and raw.startswith("I;12"):
        carried.notes.append("12 bits per pixel are saved as 16")
    if kind == "TIFF" and "X" in raw:
        carried.notes.append("left out: channels beside red, green, blue")
    if kind == "AVIF" and is_deep_avif(data):
        carried.notes.append("10 or 12 bits per channel are read as 8")
    return colours(image, carried) if decoded is None else decoded


def is_deep_avif(data: bytes) -> bool:
    place = data.find(b"av1C")  # the configuration: its third byte has the bit (AV1-ISOBMFF 2.3.3)
    return 0 <= place < len(data) - 6 and bool(data[place + 6] & 0x40)


def levels(image: ImageFile.ImageFile, data: bytes, kind: str) -> np.ndarray | None:
    """Return the pixels of a picture of 16 bits a channel, uint16 H×W×C; None of another.

    Pillow reads the high bytes of colours alone; read as if of the other byte order, the same file
    gives the low bytes, unless it is in planes. A plane alone is a greyscale picture.
    """
    raw = rawmode(image)
    found: np.ndarray
    if in_deep_planes(image):
        premultiplied = 1 in getattr(image, "tag_v2", {}).get(338, ())
        if image.mode not in ("RGB", "RGBA") or premultiplied:
            raise PictureError("16 bits a channel in planes; convert it to RGB first")
        found = _planes(data, len(image.getbands()))
    elif is_deep_grey(image):
        found = np.asarray(image).astype(np.uint32)[..., None]
        most = 4095 if raw.startswith("I;12") else 65535
        if getattr(image, "tag_v2", {}).get(262) == 0:  # white is zero
            found = most - found
        found = ((found * 65535 + most // 2) // most).astype(np.uint16)
    elif raw == "LA;16B":  # the four bytes of a pixel, as if they were those of RGBA
        whole = from_bytes(data, kind)
        whole.tile = [part._replace(args="RGBA") for part in whole.tile]
        found = np.ascontiguousarray(np.asarray(whole)).view(">u2").astype(np.uint16)
    elif image.mode in ("RGB", "RGBA") and raw.startswith(("RGB;16", "RGBA;16")):
        low = from_bytes(data, kind)
        for i, part in enumerate(low.tile):
            swapped = raw[:-3] + LOW_BYTES[raw[-3:]]
            args = (swapped, *part.args[1:]) if isinstance(part.args, tuple) else swapped
            low.tile[i] = part._replace(args=args)
        found = np.asarray(image).astype(np.uint16) << 8
        found |= np.asarray(low)
    else:
        return None
    key = image.info.get("transparency")
    if key is not None:  # of PNG: the one level or colour that is transparent
        shown = (found != np.asarray(key, np.uint16)).any(axis=2, keepdims=True)
        found = np.concatenate([found, shown * np.uint16(65535)], axis=2)
    return found


def _planes(data: bytes, count: int) -> np.ndarray:
    """Return the first planes of a TIFF of 16 bits, each read as a picture of its own."""
    tiff = ifd.read(data)
    assert tiff is not None, "Pillow has read it"
    samples, planes = tiff.numbers(SAMPLES)[0], []
    for number in range(count):
        alone = {tag: tiff.first[tag] for tag in tiff.first.keys() - OF_ALL_PLANES}
        for tag, value in ((BITS, 16), (PHOTOMETRIC, 1), (SAMPLES, 1)):
            alone[tag] = ifd.Entry(ifd.SHORT, struct.pack(tiff.order + "H", value))
        for tag in PIECES & alone.keys():
            entry = alone[tag]
            length = len(entry.value) // samples
            piece = entry.value[number * length : (number + 1) * length]
            alone[tag] = ifd.Entry(entry.kind, piece)
        plane = from_bytes(ifd.with_first(data, tiff, alone), "TIFF")
        planes.append(np.asarray(plane).astype(np.uint16))
    return np.stack(planes, axis=2)


def colours(image: Image.Image, carried: Carried) -> Image.Image:
    """Return a picture of 8 bits in mode L, LA, RGB or RGBA."""
    if image.mode == "CMYK":
        return _from_cmyk(image, carried)
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    mode += "A" if image.has_transparency_data else ""
    image.load()
    return image.convert(mode)


def _from_cmyk(image: Image.Image, carried: Carried) -> Image.Image:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    profile, carried.icc = carried.icc, b""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            carried.notes.append("its colour profile cannot be used")
        else:
            carried.notes.append("CMYK is converted to sRGB by its colour profile")
            carried.icc = srgb.tobytes()
            assert converted is not None  # as it is where Pillow converts in place
            return converted
    carried.notes.append("CMYK without a colour profile is converted to RGB by the plain formula")
    return image.convert("RGB")


def turned(picture: Picture, orientation: int) -> Picture:
    """Turn a picture upright, by the value of EXIF's tag."""
    if orientation == 1:
        return picture
    if isinstance(picture, Image.Image):
        return picture.transpose(TURN[orientation])
    if orientation >= 5:
        picture = picture.swapaxes(0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(picture[:: -1 if rows else 1, :: -1 if columns else 1])
