"""Directories of TIFF files, which EXIF is made of, too: read and written with values untouched.

TIFF Revision 6.0 (Adobe, 1992), section 2; BigTIFF has the same in 64 bits. Nothing is made of a
value that its bytes do not say, so what a program wrote there, odd or not, comes out as it was.
"""

import mmap
import struct
from dataclasses import dataclass, field

# Bytes of a value of each type, and of the numbers in it, which are swapped with the byte order.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
SIZES |= {16: 8, 17: 8, 18: 8}
NUMBERS = SIZES | {5: 4, 10: 4}
SHORT, LONG, RATIONAL, IFD, LONG8, IFD8 = 3, 4, 5, 13, 16, 18
EXIF, GPS, INTEROP = 0x8769, 0x8825, 0xA005  # tags whose value is another directory


@dataclass
class Entry:
    """The value of a tag: its type and bytes, or a directory instead of the bytes."""

    kind: int
    data: "bytes | Directory"

    @property
    def value(self) -> bytes:
        """The bytes; none where it is a directory."""
        return b"" if isinstance(self.data, dict) else self.data

    @property
    def directory(self) -> "Directory":
        """The directory; an empty one where it is bytes."""
        return self.data if isinstance(self.data, dict) else {}


Directory = dict[int, Entry]


@dataclass
class Tiff:
    """A TIFF structure: the first directory, and those that it points to."""

    order: str  # "<" or ">"
    big: bool = False  # BigTIFF
    first: Directory = field(default_factory=dict)
    following: int = 0  # where the next directory is
    broken: int = 0  # entries that point outside, or are of no known type

    def numbers(self, tag: int) -> list[int]:
        """Return the whole numbers of a tag, or none where it is absent or of another type."""
        entry = self.first.get(tag)
        code = {1: "B", SHORT: "H", LONG: "I", LONG8: "Q"}.get(entry.kind) if entry else None
        if entry is None or code is None:
            return []
        count = len(entry.value) // SIZES[entry.kind]
        return list(struct.unpack(f"{self.order}{count}{code}", entry.value))


def read(data: bytes | mmap.mmap) -> Tiff | None:
    """Read a TIFF header and the directories behind it; None if there is no such thing."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None or len(data) < 8:
        return None
    magic = struct.unpack_from(order + "H", data, 2)[0]
    if magic not in (42, 43) or (magic == 43 and len(data) < 16):
        return None
    tiff = Tiff(order, magic == 43)
    offset = struct.unpack_from(order + ("Q" if tiff.big else "I"), data, 8 if tiff.big else 4)[0]
    try:
        tiff.first, tiff.following = _read(tiff, data, offset, {EXIF, GPS})
    except (struct.error, OverflowError, ValueError):
        return None
    return tiff


def _read(
    tiff: Tiff, data: bytes | mmap.mmap, offset: int, children: set[int]
) -> tuple[Directory, int]:
    order, size = tiff.order, 8 if tiff.big else 4
    number = order + ("Q" if tiff.big else "I")
    head = order + ("Q" if tiff.big else "H")
    if not 0 < offset < len(data):
        raise ValueError("points outside")
    count = struct.unpack_from(head, data, offset)[0]
    offset += struct.calcsize(head)
    directory: Directory = {}
    for _ in range(count):
        if offset + 4 + 2 * size > len(data):
            tiff.broken += 1
            return directory, 0
        tag, kind = struct.unpack_from(order + "HH", data, offset)
        length = SIZES.get(kind, 0) * struct.unpack_from(number, data, offset + 4)[0]
        place = offset + 4 + size
        offset = place + size
        if tag in children:
            places = {SHORT: "H", LONG: "I", IFD: "I", LONG8: "Q", IFD8: "Q"}
            try:
                child = struct.unpack_from(order + places[kind], data, place)[0]
                more = {INTEROP} if tag == EXIF else set()
                directory.setdefault(tag, Entry(LONG, _read(tiff, data, child, more)[0]))
            except (KeyError, ValueError, struct.error):
                tiff.broken += 1
            continue
        if length > size:
            place = struct.unpack_from(number, data, place)[0]
        if not length or place + length > len(data):
            tiff.broken += 1
            continue
        directory.setdefault(tag, Entry(kind, bytes(data[place : place + length])))
    following = struct.unpack_from(number, data, offset)[0] if offset + size <= len(data) else 0
    return directory, following


def write(directory: Directory, start: int, order: str, big: bool, following: int = 0) -> bytes:
    """Return a directory, and all it points to, as bytes that will lie at `start` of a file."""
    size, number = (8, order + "Q") if big else (4, order + "I")
    head = struct.pack(order + ("Q" if big else "H"), len(directory))
    end = start + len(head) + (4 + 2 * size) * len(directory) + size
    fields, values = b"", b""
    for tag, entry in sorted(directory.items()):
        kind, data = entry.kind, entry.data
        place = end + len(values)
        if isinstance(data, dict):
            kind, count, data = (LONG8 if big else LONG), 1, write(data, place, order, big)
            value, values = struct.pack(number, place), values + data
        else:
            count = len(data) // SIZES[kind]
            value = data.ljust(size, b"\0")
            if len(data) > size:
                value, values = struct.pack(number, place), values + data
        values += b"\0" * (len(values) % 2)
        fields += struct.pack(order + "HH", tag, kind) + struct.pack(number, count) + value
    return head + fields + struct.pack(number, following) + values


def with_first(data: bytes, tiff: Tiff, directory: Directory, following: int = 0) -> bytes:
    """Return a TIFF file, whose header is that of `tiff`, with another first directory."""
    start = len(data) + len(data) % 2
    number = tiff.order + ("Q" if tiff.big else "I")
    head = data[: 8 if tiff.big else 4] + struct.pack(number, start)
    body = data[len(head) :] + b"\0" * (len(data) % 2)
    return head + body + write(directory, start, tiff.order, tiff.big, following)


def swapped(directory: Directory) -> Directory:
    """Return a directory with the numbers in the other byte order."""
    result = {}
    for tag, entry in directory.items():
        size, data = NUMBERS[entry.kind], entry.data
        turned: bytes | Directory = (
            swapped(data)
            if isinstance(data, dict)
            else b"".join(data[i : i + size][::-1] for i in range(0, len(data), size))
        )
        result[tag] = Entry(entry.kind, turned)
    return result


def block(tiff: Tiff) -> bytes:
    """Return a TIFF structure without pixels, as EXIF is stored in other formats."""
    head = (b"II" if tiff.order == "<" else b"MM") + struct.pack(tiff.order + "HI", 42, 8)
    return head + write(tiff.first, 8, tiff.order, big=False)
