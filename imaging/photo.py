"""Opening people's pictures, of whatever mode and origin, and saving them with all they carry."""

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".gif": "GIF",
}
LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383}  # what the formats can hold
QUALITY = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "TIFF": {"compression": "raw"},  # Pillow's compressed TIFF cannot hold EXIF
}
# The tags of a TIFF file's EXIF that are not about how its pixels are stored.
TIFF_TAGS = {
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
    ExifTags.IFD.Exif,
    ExifTags.IFD.GPSInfo,
}
SIZE_TAGS = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)
BROKEN = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error)


class PictureError(ValueError):
    """A picture cannot be used; the message says why and what to do, but not which it is."""


@dataclass
class Photo:
    """A picture, upright, in mode L, LA, RGB or RGBA, or F with 0–65535 for 16-bit greyscale."""

    image: Image.Image
    format: str  # in which the enlarged picture is saved
    metadata: dict[str, object]  # for the enlarged picture, as Pillow's `save` takes it
    note: str = ""  # what a person should know of the conversion

    def save(self, image: Image.Image, file: Path | BinaryIO) -> None:
        """Write `image`, which was made of this photo, with the metadata of this photo.

        Raises:
            PictureError: the format cannot hold the picture or its metadata.
            OSError: the file cannot be written.
        """
        try:
            image.save(file, self.format, **QUALITY.get(self.format, {}), **self.metadata)
        except (ValueError, TypeError, RuntimeError, struct.error) as error:
            raise PictureError(f"cannot be saved as {self.format} ({error})") from None


def saved_suffix(name: str) -> str:
    """Return the suffix under which the enlarged picture is saved: its own, but .png for GIF."""
    suffix = Path(name).suffix
    return ".png" if suffix.lower() == ".gif" else suffix


def list_pictures(folder: Path) -> list[Path]:
    """Return the pictures that lie directly in a folder, sorted.

    Raises:
        PictureError: there are none, or the folder cannot be read.
    """
    try:
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in FORMATS and p.is_file())
    except OSError as error:
        raise PictureError(f"{folder} cannot be read ({error.strerror})") from None
    if not found:
        raise PictureError(f"no pictures in {folder}; expected {', '.join(FORMATS)}")
    return found


def open_photo(file: Path | BinaryIO, name: str, scale: int, most_pixels: int = 0) -> Photo:
    """Read a picture that is to be enlarged.

    Args:
        file: a path or an open file.
        name: of the file; its suffix must be that of the format.
        scale: what it will be enlarged by, checked against what its format can hold.
        most_pixels: of the picture; 0 for Pillow's own limit against decompression bombs.

    Raises:
        PictureError: not a still picture in one of FORMATS, broken, too large, or in a colour
            space that has no RGB luminance (CMYK, Lab).
    """
    named = FORMATS.get(Path(name).suffix.lower())
    if named is None:
        raise PictureError(f"not one of {', '.join(FORMATS)}")
    if isinstance(file, Path) and file.exists() and not file.is_file():
        raise PictureError("is no regular file")  # a pipe would wait for ever
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
        with Image.open(file, formats=sorted(set(FORMATS.values()))) as image:
            _check(image, named, scale, most_pixels)
            return _decode(image, scale)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError(
            f"more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels; cut it in pieces first"
        ) from None
    except Image.UnidentifiedImageError:
        raise PictureError("not a picture, or a broken one") from None
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError("no such file") from None
    except BROKEN as error:
        raise PictureError(f"cannot be read ({getattr(error, 'strerror', 0) or error})") from None


def _check(image: Image.Image, named: str, scale: int, most_pixels: int) -> None:
    kept = "PNG" if named == "GIF" else named
    found = "JPEG" if image.format == "MPO" else image.format  # a phone's JPEG with a preview
    if found != named:
        raise PictureError(f"a {found} file by its content, not {named}; correct its name")
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise PictureError(f"has {image.n_frames} frames or pages; save the one you want alone")
    if most_pixels and image.width * image.height > most_pixels:
        megapixels = image.width * image.height / 1e6
        raise PictureError(f"{megapixels:.1f} megapixels; at most {most_pixels / 1e6:.1f} here")
    if max(image.size) * scale > LONGEST_SIDE.get(kept, 2**31):
        raise PictureError(
            f"{kept} holds {LONGEST_SIDE[kept]} pixels a side, x{scale} needs "
            f"{max(image.size) * scale}; save it as PNG first"
        )
    if image.mode in ("CMYK", "LAB", "HSV", "I", "F"):
        kind = {"I": "32-bit", "F": "floating-point"}.get(image.mode, image.mode)
        raise PictureError(f"{kind} pixels; convert it to RGB or greyscale first")


def _decode(image: Image.Image, scale: int) -> Photo:
    deep = image.format in ("PNG", "TIFF") and any(";16" in str(tile.args) for tile in image.tile)
    exif = image.getexif()
    for directory in {ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo} & set(exif):
        exif.get_ifd(directory)  # now, as a TIFF file is closed once its pixels are read
    upright = ImageOps.exif_transpose(image)
    _adapt(exif, image.format, (upright.width * scale, upright.height * scale))
    metadata = _metadata(upright.info, image.format)
    if exif:
        metadata["exif"] = exif.tobytes()
    saved_as = {"MPO": "JPEG", "GIF": "PNG"}.get(image.format, image.format)
    if upright.mode.startswith("I;16"):
        if upright.has_transparency_data:
            raise PictureError("16-bit greyscale with a transparent level; save it without")
        levels = np.asarray(upright).astype(np.float32)
        return Photo(Image.fromarray(levels), saved_as, metadata)
    mode = "L" if upright.mode in ("1", "L", "LA", "La") else "RGB"
    mode += "A" if upright.has_transparency_data else ""
    note = "16 bits per channel are read as 8; only greyscale keeps 16" if deep else ""
    return Photo(upright.convert(mode), saved_as, metadata, note)


def _adapt(exif: Image.Exif, found: str, size: tuple[int, int]) -> None:
    """Make the EXIF of a picture true of its enlarged, upright copy of that size."""
    exif.pop(ExifTags.Base.Orientation, None)
    if found == "TIFF":
        for tag in set(exif) - TIFF_TAGS:
            del exif[tag]
    details = exif.get_ifd(ExifTags.IFD.Exif) if ExifTags.IFD.Exif in exif else {}
    for tag, length in zip(SIZE_TAGS, size, strict=True):
        if tag in details:
            details[tag] = length


def _metadata(info: dict, found: str) -> dict[str, object]:
    """Choose from Pillow's `info` of a picture in format `found` what `save` can write again."""
    keys = {"icc_profile", "dpi"}
    if found in ("JPEG", "MPO"):
        keys |= {"xmp", "comment"}
    if found == "WEBP":
        keys |= {"xmp"}
    kept = {key: info[key] for key in keys if info.get(key)}
    if found == "PNG":
        kept["pnginfo"] = PngImagePlugin.PngInfo()
        for key, text in info.items():
            if isinstance(text, str):
                kept["pnginfo"].add_text(key, text)
    return kept
