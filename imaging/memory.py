"""How much memory a picture takes."""

# Bytes a pixel of the result: the picture, and what its encoder needs beside it, as measured.
RESULT_BYTES = {"PNG": 5, "JPEG": 6, "TIFF": 5, "BMP": 4, "WEBP": 14, "AVIF": 16, "HEIF": 16}
DEEP_BYTES = 4  # a pixel and channel of 16 bits, and its copy in the file's byte order


def needed(width: int, height: int, scale: int, saved_as: str, deep_channels: int = 0) -> int:
    """Return about how many bytes it takes to enlarge a picture, without the network's share.

    Args:
        width: in pixels, of the picture as it is.
        height: in pixels.
        scale: by which it is enlarged.
        saved_as: a format, as Pillow names it.
        deep_channels: of 16 bits; 0 for a picture of 8 bits.
    """
    source = 8 + 6 * deep_channels
    result = deep_channels * DEEP_BYTES or RESULT_BYTES[saved_as]
    return width * height * (source + scale**2 * result)
