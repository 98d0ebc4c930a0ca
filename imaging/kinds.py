"""Which kinds of picture files there are, by name and by content."""

from contextlib import suppress
from pathlib import Path

from PIL import Image

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".avif": "AVIF",
    ".heic": "HEIF",
    ".heif": "HEIF",
}
PLUGINS = {"AVIF": "pillow-avif-plugin", "HEIF": "pillow-heif"}
HEADS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
    b"GIF8": "GIF",
}
HEAD = 64  # bytes that tell the kind
BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIF", b"heix": "HEIF", b"hevc": "HEIF"}
BRANDS |= {b"heim": "HEIF", b"heis": "HEIF", b"mif1": "HEIF", b"msf1": "HEIF"}


class PictureError(ValueError):
    """A picture cannot be used; the message says why and what to do, but not which it is."""


class TooLarge(PictureError):
    """A picture has more pixels than the caller takes."""


def several(image: Image.Image) -> str:
    """Return why an open picture is not one alone, or nothing if it is.

    A phone's photograph (MPO) is, with a preview or a gain map behind it.
    """
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    return f"has {frames} frames or pages; save the one you want alone" if frames > 1 else ""


def rawmode(image: Image.Image) -> str:
    """Return how the pixels lie in an open file, in Pillow's words; empty if it does not say."""
    tile = getattr(image, "tile", None)
    args = tile[0].args if tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args or "")


def is_deep(image: Image.Image) -> bool:
    """Tell whether an open picture has 16 bits a channel."""
    return ";16" in rawmode(image) or in_deep_planes(image)


def in_deep_planes(image: Image.Image) -> bool:
    """Tell a TIFF of planes of 16 bits, of which Pillow reads 8, uncompressed ones as if of 8."""
    tags = getattr(image, "tag_v2", {})  # planar configuration, bits of each sample
    return tags.get(284) == 2 and 16 in tags.get(258, ()) and len(image.getbands()) > 1


def by_content(head: bytes) -> str | None:
    """Return the format of a file by its first bytes, as Pillow names it."""
    head = head[:HEAD]
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brands = [head[8:12], *(head[i : i + 4] for i in range(16, min(len(head), HEAD), 4))]
        known = [BRANDS[brand] for brand in brands if brand in BRANDS]
        return "AVIF" if "AVIF" in known else known[0] if known else None
    return next((kind for start, kind in HEADS.items() if head.startswith(start)), None)


def kind_of(data: bytes) -> str:
    """Return the format of a picture by its content.

    Raises:
        PictureError: it is of none that can be read here.
    """
    kind = by_content(data)
    if not data:
        raise PictureError("it is empty (0 bytes); look at where it came from")
    if kind is None:
        raise PictureError(f"not a picture of one of these kinds: {', '.join(FORMATS)}")
    Image.init()
    if kind not in Image.OPEN or kind not in Image.SAVE:
        with suppress(ImportError):
            if kind == "HEIF":
                import pillow_heif  # noqa: PLC0415 - optional

                pillow_heif.register_heif_opener()
            else:
                import pillow_avif  # noqa: F401, PLC0415 - optional; importing registers it
    if kind not in Image.OPEN or kind not in Image.SAVE:
        if kind in PLUGINS:
            raise PictureError(
                f"{kind} needs a package: pip install {PLUGINS[kind]}, or save it as PNG"
            )
        raise PictureError(f"{kind} needs another build of Pillow; or save it as PNG")
    return kind


def saved_as(kind: str) -> str:
    """Return the format in which an enlarged picture is saved: its own, but PNG for GIF."""
    return "PNG" if kind == "GIF" else kind


def saved_suffix(name: str, head: bytes) -> str:
    """Return the suffix of the enlarged picture: its own, or that of its content.

    Args:
        name: of the file.
        head: its first bytes; where there are none, the name is believed.
    """
    suffix = Path(name).suffix
    named = FORMATS.get(suffix.lower())
    kind = saved_as(by_content(head) or named or "PNG")
    return suffix if kind == named else next(s for s, k in FORMATS.items() if k == kind)
