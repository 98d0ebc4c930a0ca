"""Taking files apart, into what a decoder needs and what they carry beside, which may be broken."""

import struct
import zlib

from imaging import ifd
from imaging.ifd import Tiff
from imaging.metadata import Carried

XMP, IPTC, ICC = 700, 33723, 34675
# Tags that say how a TIFF file's pixels are stored (TIFF 6.0 and its supplements).
STRUCTURE = {*range(254, 260), *range(262, 267), 273, *range(277, 282), 284, *range(288, 294)}
STRUCTURE |= {301, *range(317, 329), *range(330, 337), *range(338, 344), 346, 347, 400}
STRUCTURE |= {*range(512, 522), *range(529, 533), 32997}
# Tags that stay true of an enlarged picture: texts, dates, orientation, resolution, rating, IPTC.
DESCRIPTION = {*range(269, 273), 274, 282, 283, 285, 296, 305, 306, 315, 316, 18246, 18249, 33432}
DESCRIPTION |= {IPTC, *range(40091, 40096), ifd.EXIF, ifd.GPS}
# PNG chunks that stay true of an enlarged picture, and their length where it is fixed.
PNG_KEPT: dict[bytes, int | None] = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"pHYs": 9}
PNG_KEPT |= dict.fromkeys((b"tEXt", b"zTXt", b"iTXt"), None)
MOST_PROFILE = 64 * 2**20  # bytes of a colour profile
XMP_KEY = b"XML:com.adobe.xmp\0"
JPEG_XMP, JPEG_LONG_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
APPLICATION = {*range(0xE0, 0xF0), 0xFE}  # segments of programs; comments
KEPT_JPEG = ((0xE0, b"JFIF\0"), (0xEE, b"Adobe"))  # the decoder needs them


def split(data: bytes, kind: str) -> tuple[bytes, Carried]:
    """Take a file apart.

    Args:
        data: the whole file.
        kind: its format, as Pillow names it.

    Returns:
        A file of the pixels and what decoding needs; and what it carried beside. Of formats other
        than PNG, JPEG and TIFF the file is as it was: what they carry is read with Pillow.
    """
    carried = Carried()
    if kind == "PNG":
        return _png(data, carried), carried
    if kind == "JPEG":
        return _jpeg(data, carried), carried
    if kind == "TIFF":
        return _tiff(data, carried), carried
    carried.lossless = kind == "WEBP" and _is_lossless(data)
    return data, carried


def _is_lossless(webp: bytes) -> bool:
    """Whether the pixels are in a VP8L chunk (RFC 9649)."""
    place = 12
    while place + 8 <= len(webp):
        kind, length = struct.unpack_from("<4sI", webp, place)
        if kind in (b"VP8L", b"VP8 "):
            return kind == b"VP8L"
        place += 8 + length + length % 2
    return False


def _png(data: bytes, carried: Carried) -> bytes:
    kept, left_out, place = [data[:8]], set(), 8
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        chunk = data[place : place + 12 + length]
        place += len(chunk)
        body = chunk[8:-4]
        if not kind[:1].islower():  # the pixels'
            kept.append(chunk)
        elif chunk[8 + length :] != struct.pack(">I", zlib.crc32(chunk[4 : 8 + length])):
            carried.notes.append(f"its {_name(kind)} chunk is broken and left out")
        elif kind in (b"tRNS", b"acTL", b"fcTL", b"fdAT"):
            kept.append(chunk)
        elif not _take_png(kind, body, carried):
            left_out.add(_name(kind))
    if left_out:
        carried.notes.append(f"left out: {', '.join(sorted(left_out))}")
    return b"".join(kept) + data[place:]


def _take_png(kind: bytes, body: bytes, carried: Carried) -> bool:
    """Keep one ancillary chunk; return whether it can be kept."""
    if kind == b"eXIf":
        carried.take_exif(body)
    elif kind == b"iCCP":
        try:
            packed = body[body.index(b"\0") + 2 :]
            carried.icc = zlib.decompressobj().decompress(packed, MOST_PROFILE)
        except (ValueError, zlib.error):
            carried.notes.append("its colour profile is broken and left out")
    elif kind == b"iTXt" and body.startswith(XMP_KEY + b"\0"):
        carried.xmp = body[len(XMP_KEY) + 2 :].split(b"\0", 2)[-1]
    elif kind in PNG_KEPT and PNG_KEPT[kind] in (None, len(body)):
        carried.chunks.append((kind, body))
    else:
        return False
    return True


def _jpeg(data: bytes, carried: Carried) -> bytes:
    kept, left_out, place = [data[:2]], set(), 2
    profile: dict[int, bytes] = {}  # its pieces, by number
    while place + 4 <= len(data):
        if data[place] != 0xFF:  # a segment of the wrong length
            following = data.find(b"\xff", place)
            place = len(data) if following < 0 else following
            left_out.add("what follows a segment of the wrong length")
            continue
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xDA:
            break
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        segment, body = data[place:end], data[place + 4 : end]
        if marker not in APPLICATION or (marker, body[:5]) in KEPT_JPEG:
            kept.append(segment)
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            profile.setdefault(body[12], body[14:])
        else:
            _take_jpeg(marker, body, segment, carried, left_out)
        place = max(end, place + 4)
    carried.icc = b"".join(profile[number] for number in sorted(profile))
    if left_out:
        carried.notes.append(f"left out: {', '.join(sorted(left_out))}")
    return b"".join(kept) + data[place:]


def _take_jpeg(
    marker: int, body: bytes, segment: bytes, carried: Carried, left_out: set[str]
) -> None:
    """Keep one segment that is not about pixels, or name it."""
    if marker == 0xE1 and body.startswith(b"Exif\0\0"):
        if carried.exif is None:
            carried.take_exif(body)
    elif marker == 0xE1 and body.startswith(JPEG_XMP):
        carried.xmp = body[len(JPEG_XMP) :]
    elif marker == 0xE1 and body.startswith(JPEG_LONG_XMP):
        carried.segments += segment
    elif marker == 0xED and body.startswith(b"Photoshop 3.0\0"):
        texts, others = _iptc(body[14:])
        if texts:
            carried.segments += b"\xff\xed" + struct.pack(">H", len(texts) + 16)
            carried.segments += b"Photoshop 3.0\0" + texts
        if others:
            left_out.add("Photoshop's data other than IPTC")
    elif marker == 0xFE:
        carried.comments.append(body)
    elif marker == 0xE2 and body.startswith(b"MPF\0"):
        left_out.add("a second picture (preview or gain map)")
    elif marker == 0xE0 and body.startswith(b"JFXX\0"):
        pass  # a thumbnail
    else:
        left_out.add(f"APP{marker - 0xE0}")


def _iptc(data: bytes) -> tuple[bytes, bool]:
    """Return of Photoshop's resources those of IPTC, as they are; and whether there are others."""
    found, others, place = b"", False, 0
    while data[place : place + 4] == b"8BIM" and place + 12 <= len(data):
        name = place + 6
        start = name + 1 + data[name] + (1 + data[name]) % 2
        length = int.from_bytes(data[start : start + 4], "big")
        end = start + 4 + length + length % 2
        if data[place + 4 : place + 6] == b"\x04\x04" and end <= len(data) + 1:
            found += data[place:end]
        else:
            others = True
        place = end
    return found, others


def _tiff(data: bytes, carried: Carried) -> bytes:
    """Put a directory with the tags of the pixels alone at the file's end."""
    tiff = ifd.read(data)
    if tiff is None:
        return data
    pixels = {tag: e for tag, e in tiff.first.items() if tag in STRUCTURE}
    carried.exif = Tiff(tiff.order, first={}, broken=tiff.broken)
    for tag, entry in tiff.first.items():
        if tag == XMP:
            carried.xmp = entry.value
        elif tag == ICC:
            carried.icc = entry.value
        elif tag in DESCRIPTION:
            carried.exif.first[tag] = entry
    others = tiff.first.keys() - STRUCTURE - DESCRIPTION - {XMP, ICC}
    if others:
        carried.notes.append(f"left out: TIFF tags {', '.join(map(str, sorted(others)))}")
    carried.tidy()
    if tiff.following >= len(data):
        carried.notes.append("its next page is outside the file")
        tiff.following = 0
    return ifd.with_first(data, tiff, pixels, tiff.following)


def _name(kind: bytes) -> str:
    return kind.decode("ascii", "backslashreplace")
