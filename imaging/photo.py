"""Opening people's pictures, of whatever mode and origin, and saving them with all they carry."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ImageFile

from imaging import decoding, ifd, memory, saving
from imaging.containers import split
from imaging.decoding import Picture
from imaging.kinds import (
    FORMATS,
    PictureError,
    TooLarge,
    is_deep,
    kind_of,
    rawmode,
    saved_as,
    saved_suffix,
    several,
)
from imaging.metadata import Carried
from runtime.errors import first_line
from runtime.memory import available_memory

LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383, "AVIF": 65535}  # what they can hold


@dataclass
class Photo:
    """A picture, upright, and what belongs to it."""

    image: Picture
    format: str  # in which the enlarged picture is saved
    metadata: dict[str, object]  # for the enlarged picture, as Pillow's `save` takes it
    note: str = ""  # what a person should know of the conversion
    carried: Carried = field(default_factory=Carried)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        height, width, _ = decoding.shape(self.image)
        return width, height

    def save(self, image: Picture, file: Path | BinaryIO) -> None:
        """Write `image`, which was made of this photo, with the metadata of this photo.

        Raises:
            PictureError: the format cannot hold the picture.
            OSError: the file cannot be written.
        """
        try:
            saving.write(image, self.format, file, self.metadata)
            if self.format == "TIFF":
                tags = self.carried.exif or ifd.Tiff("<")
                saving.add_tags(file, tags, self.carried.xmp)
        except (OSError, MemoryError) as error:
            if isinstance(error, MemoryError) or error.errno is not None:
                raise
            raise PictureError(f"cannot be saved as {self.format} ({first_line(error)})") from None
        except Exception as error:
            raise PictureError(f"cannot be saved as {self.format} ({first_line(error)})") from None


def open_photo(
    source: Path | BinaryIO, name: str, scale: int, most_pixels: int = 0, room: int | None = None
) -> Photo:
    """Read a picture that is to be enlarged.

    Args:
        source: a path or an open file.
        name: of the file, if it has one; a suffix of another format is told in the note.
        scale: what it will be enlarged by, checked against what its format can hold.
        most_pixels: of the picture; 0 for no limit but memory.
        room: bytes of memory that it may take; those available if left out.

    Raises:
        PictureError: not a still picture in one of FORMATS, broken, too large, or in a colour
            space that has no RGB luminance (Lab).
    """
    try:
        data = _bytes(source)
        kind = kind_of(data)
        stripped, carried = split(data, kind)
        image = decoding.from_bytes(stripped, kind)
        _check(image, kind, scale, most_pixels, room)
        if name and FORMATS.get(Path(name).suffix.lower()) != kind:
            suffix = saved_suffix(name, data)
            carried.notes.append(f"is a {kind} file by its content, saved as {suffix}")
        return _decode(stripped, kind, image, scale, carried)
    except (PictureError, MemoryError):
        raise
    except FileNotFoundError:
        raise PictureError("no such file or folder") from None
    except SyntaxError as error:
        if str(error) == "unknown pixel mode":  # of TIFF
            raise PictureError(
                "pixels of a kind that Pillow does not read; convert it to RGB"
            ) from None
        raise PictureError("not a picture, or a broken one") from None
    except Exception as error:  # a decoder may raise anything at a broken file
        raise PictureError(f"cannot be read ({first_line(error)})") from None


def _bytes(source: Path | BinaryIO) -> bytes:
    if not isinstance(source, Path):
        source.seek(0)
        return source.read()
    if source.exists() and not source.is_file():
        raise PictureError("is no regular file")  # a pipe would wait for ever
    if source.stat().st_size > available_memory():
        raise PictureError("the file alone is larger than the memory that is free")
    return source.read_bytes()


def _check(
    image: ImageFile.ImageFile, kind: str, scale: int, most_pixels: int, room: int | None
) -> None:
    kept, count = saved_as(kind), image.width * image.height
    megapixels = count / 1e6
    if why := several(image):
        raise PictureError(why)
    if most_pixels and count > most_pixels:
        raise TooLarge(f"{megapixels:.1f} megapixels; at most {most_pixels / 1e6:.1f} here")
    side, longest = max(image.size) * scale, LONGEST_SIDE.get(kept, 2**31 - 1)
    if side > longest:
        raise PictureError(
            f"{kept} holds {longest} pixels a side, x{scale} needs {side}; save it as PNG first"
        )
    need = memory.needed(*image.size, scale, kept, len(image.getbands()) if is_deep(image) else 0)
    room = available_memory() if room is None else room
    if need > room:
        raise PictureError(
            f"{megapixels:.1f} megapixels enlarged need about {need / 1e9:.1f} GB of memory, "
            f"{room / 1e9:.1f} GB are free; cut it in pieces first"
        )
    if image.mode in ("LAB", "HSV", "F") or (
        image.mode == "I" and not decoding.is_deep_grey(image)
    ):
        shown = {"I": "32-bit", "F": "floating-point"}.get(image.mode, image.mode) + " pixels"
        if rawmode(image).endswith("S"):
            shown = "pixels that may be negative"
        raise PictureError(f"{shown}; convert it to RGB or greyscale first")


def _decode(
    stripped: bytes, kind: str, image: ImageFile.ImageFile, scale: int, carried: Carried
) -> Photo:
    if kind not in ("PNG", "JPEG", "TIFF"):
        carried.take_info(image.info)
    # HEIF's decoder turns it; AVIF's tells, as EXIF, what the format itself has for that.
    turn = 1 if kind == "HEIF" else carried.orientation(by_xmp=kind != "AVIF")
    picture = decoding.turned(decoding.pixels(image, stripped, kind, carried), turn)
    photo = Photo(picture, saved_as(kind), {}, carried=carried)
    carried.settle(*(scale * length for length in photo.size))
    deep = isinstance(picture, np.ndarray)
    channels = decoding.shape(picture)[2]
    photo.metadata = saving.save_options(carried, image.info, photo.format, channels, deep)
    photo.note = "; ".join(dict.fromkeys(carried.notes))
    return photo
