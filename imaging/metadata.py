"""What pictures carry beside pixels, as bytes, and how it is made true of an enlarged picture."""

import re
import struct
from dataclasses import dataclass, field

from imaging import ifd
from imaging.ifd import Entry, Tiff

ORIENTATION, MAKER_NOTE, X_RESOLUTION, Y_RESOLUTION = 0x0112, 0x927C, 0x011A, 0x011B
EXIF_SIZE = (0xA002, 0xA003)  # tags of width and height, in the EXIF directory


@dataclass
class Carried:
    """What a file holds beside its pixels."""

    notes: list[str] = field(default_factory=list)  # what a person should know of it
    exif: Tiff | None = None  # of a TIFF file: its descriptive tags
    xmp: bytes = b""
    icc: bytes = b""
    comments: list[bytes] = field(default_factory=list)
    chunks: list[tuple[bytes, bytes]] = field(default_factory=list)  # of PNG
    segments: bytes = b""  # of JPEG, as they are in the file
    lossless: bool = False  # of WebP

    def take_exif(self, block: bytes) -> None:
        """Read an EXIF block; broken parts of it are left out."""
        while block.startswith(b"Exif\0\0"):
            block = block[6:]
        self.exif = ifd.read(block)
        if self.exif is None:
            self.notes.append("its EXIF data is broken and left out")
        self.tidy()

    def tidy(self) -> None:
        """Leave out of EXIF or TIFF tags what is broken, or cannot be moved."""
        if self.exif is None:
            return
        if self.exif.broken:
            self.notes.append(f"{self.exif.broken} broken EXIF or TIFF tags are left out")
        for directory in (self.exif.first, self.details()):
            if directory.pop(MAKER_NOTE, None):
                self.notes.append("the camera maker's note in its EXIF data is left out")
        first = self.exif.first
        for tag in (X_RESOLUTION, Y_RESOLUTION):
            entry = first.get(tag)
            if entry and (entry.kind != ifd.RATIONAL or not _is_rational(entry.value)):
                del first[tag]
                self.notes.append("its resolution makes no sense and is left out")

    def details(self) -> ifd.Directory:
        """Return the EXIF directory proper."""
        entry = self.exif.first.get(ifd.EXIF) if self.exif else None
        return entry.directory if entry else {}

    def orientation(self, by_xmp: bool) -> int:
        """Return 1–8: how the picture is to be turned, by EXIF or else by XMP."""
        found = self.exif.numbers(ORIENTATION) if self.exif else []
        if not found and by_xmp:
            found = [int(n) for n in re.findall(rb'tiff:Orientation(?:="|>)([1-8])', self.xmp)]
        return found[0] if found and found[0] in range(1, 9) else 1

    def settle(self, width: int, height: int) -> None:
        """Make it true of the upright, enlarged picture of that size, in pixels."""
        if self.exif:
            self.exif.first.pop(ORIENTATION, None)
            details = self.details()
            for tag, length in zip(EXIF_SIZE, (width, height), strict=True):
                if tag in details:
                    details[tag] = Entry(ifd.LONG, struct.pack(self.exif.order + "I", length))
        self.xmp = re.sub(rb'(tiff:Orientation(?:="|>))[2-8]', rb"\g<1>1", self.xmp)

    def take_info(self, info: dict) -> None:
        """Take what Pillow has read of formats that `split` does not take apart."""
        if info.get("exif"):
            self.take_exif(info["exif"])
        self.xmp = info.get("xmp") or b""
        self.icc = info.get("icc_profile") or b""
        if info.get("comment"):
            self.comments.append(info["comment"])


def _is_rational(data: bytes) -> bool:
    """Whether it is a fraction of two numbers other than 0."""
    return len(data) == 8 and any(data[:4]) and any(data[4:])
