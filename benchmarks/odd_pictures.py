"""Make JPEG files whose pixels are fine and whose EXIF is not.

    python benchmarks/odd_pictures.py FOLDER [--count 6000]

Each seed from 0 on makes one: known tags of random types and values, half of the blocks damaged.
Enlarged (benchmarks/pictures.py), none may crash, and none be refused. Tests make theirs with the
same functions.
"""

import io
import random
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from runtime.errors import UserError, run_main
from runtime.numbers import COUNT
from runtime.options import Parser

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
# Tags that programs read: size, orientation, resolution, texts, exposure, dates, maker's note, GPS.
TAGS = [0x100, 0x101, 0x112, 0x11A, 0x11B, 0x128, 0x10F, 0x110, 0x131, 0x132, 0x13B, 0x8298, 0x213]
TAGS += [0x8769, 0x8825, 0x829A, 0x8827, 0x9000, 0x9003, 0x9204, 0x927C, 0x9286, 0xA001, 0xA002]
TAGS += [0xA003, 0xA005, 0xA404, 0x4746, 0x9C9B, 0x201, 0x202, 0x14A, 0x2BC, 0x83BB]


def scene(width: int = 48, height: int = 32) -> Image.Image:
    """Return a small smooth colour picture with an edge."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 5 % 256, y * 7 % 256, np.where(x > width // 2, 200, 60)]
    return Image.fromarray(np.stack(planes, 2).astype(np.uint8))


def written(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return a picture as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_segments(jpeg: bytes, *segments: tuple[int, bytes]) -> bytes:
    """Insert segments, each a marker and its data, behind the start of a JPEG file."""
    new = (struct.pack(">BBH", 255, m, len(data) + 2) + data for m, data in segments)
    return jpeg[:2] + b"".join(new) + jpeg[2:]


def with_exif(block: bytes, jpeg: bytes | None = None) -> bytes:
    """Return a JPEG file with that EXIF block."""
    jpeg = written(scene(), "JPEG", quality=95) if jpeg is None else jpeg
    return with_segments(jpeg, (0xE1, b"Exif\0\0" + block))


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(
    pixels: np.ndarray, *chunks: bytes, colour: int = 2, last: tuple[bytes, ...] = ()
) -> bytes:
    """Write a PNG file by hand, uint8 or uint16 H×W or H×W×C, with chunks before the pixels."""
    bits = pixels.dtype.itemsize * 8
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", zlib.compress(rows)), *last]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def directory(start: int, entries: list[tuple[int, int, bytes]], order: str = "<") -> bytes:
    """Return a TIFF directory of (tag, type, bytes), which will lie at `start`."""
    fields, values, end = b"", b"", start + 6 + 12 * len(entries)
    for tag, kind, data in sorted(entries):
        value = data.ljust(4, b"\0")
        if len(data) > 4:
            value, values = struct.pack(order + "I", end + len(values)), values + data
        fields += struct.pack(order + "HHI", tag, kind, len(data) // SIZES[kind]) + value
    return struct.pack(order + "H", len(entries)) + fields + b"\0\0\0\0" + values


def exif_block(
    entries: Sequence[tuple[int, int, bytes]], details: Sequence[tuple[int, int, bytes]] = ()
) -> bytes:
    """Return an EXIF block of a first directory and, if there are any, EXIF details."""
    pointer = [(0x8769, 4, bytes(4))] if details else []
    start = 8 + len(directory(8, [*entries, *pointer]))
    if details:
        pointer = [(0x8769, 4, struct.pack("<I", start))]
    more = directory(start, list(details)) if details else b""
    return b"II*\0\x08\0\0\0" + directory(8, [*entries, *pointer]) + more


def fuzzed_exif(seed: int) -> bytes:
    """Return a JPEG file with an EXIF block of known tags, random types and values, and damage."""
    rng = random.Random(seed)

    def entry() -> tuple[int, int, bytes]:
        kind = rng.choice(list(SIZES))
        size = SIZES[kind] * rng.choice((1, 1, 1, 2, 3, 8, 40))
        value = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size), b"7" * size))
        return rng.choice(TAGS) if rng.random() < 0.95 else rng.randrange(2**16), kind, value

    first = [entry() for _ in range(rng.randrange(8))]
    block = exif_block(first, [entry() for _ in range(rng.randrange(8))])
    if rng.random() < 0.5:
        damaged = bytearray(block)
        for _ in range(rng.choice((1, 2, 8, 30))):
            damaged[rng.randrange(len(block))] = rng.choice((0, 255, rng.randrange(256)))
        block = bytes(damaged[: rng.choice((len(block), rng.randrange(len(block))))])
    return with_exif(block)


def main() -> None:
    """Write them."""
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, help="is made")
    parser.add_argument("--count", type=COUNT, default=6000, help="of files (default: 6000)")
    args = parser.parse_args()
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {args.folder}: {error.strerror}") from None
    for seed in range(args.count):
        (args.folder / f"{seed}.jpg").write_bytes(fuzzed_exif(seed))


if __name__ == "__main__":
    sys.exit(run_main(main))
