"""Enlarging a picture: bicubic, then a network on its luminance, tile by tile."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

import numpy as np
from PIL import Image

from imaging.luminance import RGB_TO_Y
from imaging.photo import PictureError
from imaging.resize import BICUBIC
from imaging.tiling import Tile, tiles

# Large enough for the 8 pixels around it to matter little, small enough for every core to get some.
TILE = 256


def silent(pixels: int) -> None:
    """Report no progress."""


def one_by_one(function: Callable, items: Iterable) -> Iterator:
    """Do what an executor's `map` does, here and now."""
    yield from map(function, items)


def enlarge(
    image: Image.Image,
    scale: int,
    restore: Callable[[np.ndarray], np.ndarray],
    radius: int,
    *,
    tile: int = TILE,
    advance: Callable[[int], object] = silent,
    each: Callable = one_by_one,
) -> Image.Image:
    """Enlarge a picture by an integer factor.

    Luminance goes through the network. Colour is the bicubic picture's: adding the same amount to
    R, G and B changes Y and leaves Cb and Cr. Transparency is bicubic. The working memory beside
    the bicubic picture and the result (4 bytes a pixel each) depends on tile and threads alone.

    Args:
        image: mode L, LA, RGB or RGBA, or F with 0–65535 for 16-bit greyscale.
        scale: 2 or more.
        restore: takes and returns H×W luminance, 16–235 (the network).
        radius: how many pixels far `restore` looks.
        tile: largest side of a tile, in pixels of the result.
        advance: called after each tile with its number of pixels.
        each: the `map` of an executor, for tiles side by side.

    Returns:
        The picture in the same mode, I;16 for F.
    """
    size = (image.width * scale, image.height * scale)
    if image.mode in ("LA", "RGBA"):
        colours = continued(image, 3 + radius // scale)
        result = enlarge(colours, scale, restore, radius, tile=tile, advance=advance, each=each)
        result.putalpha(image.getchannel("A").resize(size, BICUBIC))
        return result
    bicubic = image.resize(size, BICUBIC)
    result = Image.new("I;16" if image.mode == "F" else image.mode, size)
    parts = list(tiles(*size, tile, radius))

    def restored(part: Tile) -> np.ndarray:
        pixels = np.array(bicubic.crop(part.seen), np.float32)
        return _restored(pixels, image.mode, restore)[part.inner]

    with closing(each(restored, parts)) as done:  # closed, it drops the tiles not begun
        for part, pixels in zip(parts, done, strict=True):
            result.paste(Image.fromarray(pixels), part.core)
            advance(pixels.shape[0] * pixels.shape[1])
    return result


def bicubic_only(luminance: np.ndarray) -> np.ndarray:
    """Stand in for the network where the bicubic picture itself is wanted."""
    return luminance


def continued(image: Image.Image, reach: int) -> Image.Image:
    """Return the colours of a picture, continued to where it is transparent.

    What lies under transparent pixels is arbitrary, often black. The border would be taken for an
    edge of the picture: bicubic would overshoot there, and the network sharpen it.

    Args:
        image: mode LA or RGBA.
        reach: pixels by which the visible picture is continued.

    Returns:
        The picture in mode L or RGB.
    """
    *colours, alpha = image.split()
    visible = np.asarray(alpha) > 8  # fainter pixels have hardly a colour, for rounding
    if not visible.all():
        colours = [_continued(np.array(band, np.float32), visible, reach) for band in colours]
    return Image.merge(image.mode.removesuffix("A"), colours)


def _continued(plane: np.ndarray, visible: np.ndarray, reach: int) -> Image.Image:
    """Give each pixel beside known ones their mean, again and again."""
    known = visible.copy()
    for _ in range(reach):
        count = _neighbours(known.astype(np.float32))
        total = _neighbours(plane * known)
        new = ~known & (count > 0)
        plane[new] = total[new] / count[new]
        known |= new
    return Image.fromarray((plane + 0.5).astype(np.uint8))


def _neighbours(plane: np.ndarray) -> np.ndarray:
    """Return the sum of the four neighbours of each pixel."""
    padded = np.pad(plane, 1)
    return padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]


def _restored(pixels: np.ndarray, mode: str, restore: Callable) -> np.ndarray:
    """Put the luminance of pixels in mode L, RGB or F through the network; uint8 or uint16."""
    peak, dtype = (65535.0, np.uint16) if mode == "F" else (255.0, np.uint8)
    if mode == "RGB":
        luminance = 16.0 + pixels @ (RGB_TO_Y.astype(np.float32) / np.float32(255.0))
    else:
        luminance = 16.0 + pixels * np.float32(219.0 / peak)
    change = ((restore(luminance) - luminance) * (peak / 219.0)).astype(np.float32)
    if not np.isfinite(change).all():
        raise PictureError("the network makes values that are not finite of it; other weights?")
    pixels += change[..., None] if mode == "RGB" else change
    return np.clip(pixels + 0.5, 0.0, peak).astype(dtype)
