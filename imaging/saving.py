"""Writing enlarged pictures with what they carry; and 16 bits a channel, which Pillow cannot."""

import io
import mmap
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

from imaging import ifd
from imaging.decoding import Picture
from imaging.ifd import Directory, Entry, Tiff
from imaging.metadata import Carried

MODES = ("L", "LA", "RGB", "RGBA")  # by the number of channels
PNG_COLOUR = (0, 4, 2, 6)  # PNG's numbers for them
ASPECT = "left out: the aspect ratio of its pixels"
ROWS = 64  # compressed at a time
QUALITY: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 4},  # 2 % more bytes than by 6, in two fifths of the time
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 90, "subsampling": "4:4:4"},
    "HEIF": {"quality": 95},
}
LOSSLESS_TIFF = ("tiff_lzw", "tiff_adobe_deflate", "packbits")
BIGGEST_TIFF = 2**32 - 2**26  # bytes; larger ones need 64-bit offsets


def save_options(carried: Carried, info: dict, kind: str, channels: int, deep: bool) -> dict:
    """Return what Pillow's `save` shall write; what it or the format cannot take is noted.

    Args:
        carried: by the original.
        info: what Pillow says of the original.
        kind: the format of the result.
        channels: 1–4.
        deep: of 16 bits.
    """
    options: dict[str, Any] = {**QUALITY.get(kind, {})}
    wanted: dict[str, Any] = {}
    if carried.lossless:
        options = {"lossless": True, "exact": True}
    if kind == "TIFF":  # its tags are added to the written file
        options["compression"] = _compression(info, carried, deep or channels in (2, 4))
    elif kind == "PNG":
        wanted = _png_metadata(carried, info)
    else:
        wanted = {"xmp": carried.xmp, "dpi": info.get("dpi"), "extra": carried.segments}
        wanted["comment"] = b"\n".join(carried.comments)
        if info.get("jfif_unit") == 0 and len(set(info.get("jfif_density", ()))) > 1:
            carried.notes.append(ASPECT)
    if carried.exif and carried.exif.first and kind != "TIFF":
        wanted["exif"] = (b"Exif\0\0" if kind == "JPEG" else b"") + ifd.block(carried.exif)
    wanted["icc_profile"] = carried.icc
    for key, value in wanted.items():
        if value and _fits(kind, {**options, key: value}):
            options[key] = value
        elif value:
            carried.notes.append(f"{kind} cannot hold its {key}, which is left out")
    return options


def _fits(kind: str, options: dict) -> bool:
    """Try it with a picture of one pixel, as the real one would be lost late."""
    try:
        file = io.BytesIO()
        Image.new("RGB", (1, 1)).save(file, kind, **options)
        if "exif" in options:
            with Image.open(file) as written:
                written.load()
                dict(written.getexif())
    except Exception:  # whatever it is: the picture goes on without
        return False
    return True


def _png_metadata(carried: Carried, info: dict) -> dict:
    chunks, wanted = PngImagePlugin.PngInfo(), {"dpi": info.get("dpi")}
    for kind, body in carried.chunks:
        if kind != b"pHYs":
            chunks.add(kind, body)
        elif body[8]:
            lengths = (int.from_bytes(body[i : i + 4], "big") * 0.0254 for i in (0, 4))  # per metre
            wanted["dpi"] = tuple(lengths)
        elif body[:4] != body[4:8]:
            carried.notes.append(ASPECT)
    for comment in carried.comments:
        chunks.add_text("Comment", comment.decode("utf-8", "replace"))
    if carried.xmp:
        chunks.add(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + carried.xmp)
    return wanted | {"pnginfo": chunks if chunks.chunks else None}


def _compression(info: dict, carried: Carried, plain: bool) -> str:
    """Return how an enlarged TIFF is compressed: as it was, or losslessly where that cannot be."""
    found = info.get("compression", "raw")
    if found in ("raw", *LOSSLESS_TIFF) or (found == "jpeg" and not plain):
        return found
    if found != "tiff_deflate":
        carried.notes.append(f"{found} compression becomes Deflate")
    return "tiff_adobe_deflate"


def write(result: Picture, kind: str, file: Path | BinaryIO, options: dict) -> None:
    """Write a picture.

    Args:
        result: what is made of the original.
        kind: the format, as Pillow names it.
        file: a path or an open file.
        options: as Pillow's `save` takes them.
    """
    if isinstance(result, np.ndarray) and result.shape[2] == 1:
        result = Image.fromarray(result[..., 0])
    if isinstance(result, Image.Image):
        if kind == "TIFF" and result.width * result.height * len(result.mode) > BIGGEST_TIFF:
            options = {**options, "big_tiff": True}
        result.save(file, kind, **options)
    elif kind == "PNG":
        _png(result, file, options)
    else:
        _tiff(result, file, options)


def _png(pixels: np.ndarray, file: Path | BinaryIO, options: dict) -> None:
    """Take all but the pixels from a small picture that Pillow writes."""
    small = io.BytesIO()
    channels = pixels.shape[2]
    Image.new(MODES[channels - 1], (1, 1)).save(small, "PNG", **options)
    data, place, before, after = small.getvalue(), 33, b"", b""
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        chunk = data[place : place + 12 + length]
        place += len(chunk)
        if kind == b"IDAT":
            before, after = after, b""
        else:
            after += chunk
    height, width = pixels.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOUR[channels - 1], 0, 0, 0)
    stream = file.open("wb") if isinstance(file, Path) else file
    try:
        stream.write(data[:8] + _chunk(b"IHDR", head) + before)
        packer = zlib.compressobj()
        above = np.zeros((1, width * channels * 2), np.uint8)
        for top in range(0, height, ROWS):
            rows = pixels[top : top + ROWS].astype(">u2").view(np.uint8)
            rows = rows.reshape(len(rows), -1)
            filtered = np.full((len(rows), rows.shape[1] + 1), 2, np.uint8)  # less the row above
            filtered[:, 1:] = rows - np.concatenate([above, rows[:-1]])
            above = rows[-1:]
            if packed := packer.compress(filtered.tobytes()):
                stream.write(_chunk(b"IDAT", packed))
        stream.write(_chunk(b"IDAT", packer.flush()) + after)
    finally:
        if isinstance(file, Path):
            stream.close()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _tiff(pixels: np.ndarray, file: Path | BinaryIO, options: dict) -> None:
    import tifffile  # noqa: PLC0415 - loads slowly, needed seldom

    channels = pixels.shape[2]
    tifffile.imwrite(
        file,
        pixels,
        bigtiff=pixels.nbytes > BIGGEST_TIFF,
        photometric="rgb" if channels > 2 else "minisblack",
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression=None if options["compression"] == "raw" else "zlib",
        planarconfig="contig",
        iccprofile=options.get("icc_profile"),
        metadata=None,
        software=False,
    )


def add_tags(file: Path | BinaryIO, tags: Tiff, xmp: bytes) -> None:
    """Give a TIFF file that has just been written more tags, by a new directory at its end."""
    more: Directory = {700: Entry(1, xmp)} if xmp else {}
    if isinstance(file, Path):
        with file.open("rb+") as stream:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
                written = ifd.read(view)
            _append(stream, written, tags, more)
    else:
        file.seek(0)
        _append(file, ifd.read(file.read()), tags, more)


def _append(stream: BinaryIO, written: Tiff | None, tags: Tiff, more: Directory) -> None:
    if written is None:
        raise ValueError("what was written is no TIFF file")
    first = tags.first if tags.order == written.order else ifd.swapped(tags.first)
    start = stream.seek(0, io.SEEK_END)
    start += stream.write(b"\0" * (start % 2))
    directory = first | more | written.first
    if 282 in first:  # the resolution as it was, not the writer's
        directory |= {tag: first[tag] for tag in (282, 283, 296) if tag in first}
    stream.write(ifd.write(directory, start, written.order, written.big))
    stream.seek(8 if written.big else 4)
    stream.write(struct.pack(written.order + ("Q" if written.big else "I"), start))
