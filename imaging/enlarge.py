"""Enlarging a picture: bicubic, then a network on its luminance, tile by tile."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

import numpy as np
from PIL import Image

from imaging.resize import BICUBIC
from imaging.tiling import Tile, tiles

# Large enough for the 8 pixels around it to matter little, small enough for every core to get some.
TILE = 256
RGB_TO_Y = np.array([65.481, 128.553, 24.966], np.float32) / 255.0  # ITU-R BT.601
GREY_TO_Y = np.array([219.0], np.float32) / 255.0  # as for R = G = B


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
    the bicubic picture and the result (4 bytes a pixel each) depends on the tile alone.

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
    bicubic = image.resize((image.width * scale, image.height * scale), BICUBIC)
    result = Image.new("I;16" if image.mode == "F" else image.mode, bicubic.size)
    parts = list(tiles(*bicubic.size, tile, radius))

    def restored(part: Tile) -> np.ndarray:
        pixels = np.array(bicubic.crop(part.seen), dtype=np.float32)
        return _restored(pixels, image.mode, restore)[part.inner]

    with closing(each(restored, parts)) as done:  # closed, it drops the tiles not begun
        for part, pixels in zip(parts, done, strict=True):
            result.paste(Image.fromarray(pixels), part.core)
            advance(pixels.shape[0] * pixels.shape[1])
    return result


def bicubic_only(luminance: np.ndarray) -> np.ndarray:
    """Stand in for the network where the bicubic picture itself is wanted."""
    return luminance


def _restored(pixels: np.ndarray, mode: str, restore: Callable) -> np.ndarray:
    """Put the luminance of H×W or H×W×C float32 pixels through the network; uint8 or uint16."""
    peak, dtype = (65535.0, np.uint16) if mode == "F" else (255.0, np.uint8)
    shape = pixels.shape
    pixels = pixels.reshape(*shape[:2], -1)
    weights = RGB_TO_Y if mode.startswith("RGB") else GREY_TO_Y
    colour = pixels[..., : len(weights)]
    luminance = 16.0 + colour @ weights * (255.0 / peak)
    change = (restore(luminance) - luminance) * (peak / 219.0)
    colour += change[..., None].astype(np.float32)
    return np.clip(pixels + 0.5, 0.0, peak).astype(dtype).reshape(shape)
