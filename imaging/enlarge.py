"""Enlarging a picture: bicubic, then a network on its luminance, tile by tile."""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import NamedTuple

import numpy as np
from PIL import Image

from imaging.decoding import Picture, shape
from imaging.kinds import PictureError
from imaging.luminance import RGB_TO_Y
from imaging.resize import BICUBIC
from imaging.tiling import Tile, tiles

# Large enough for the 8 pixels around it to matter little, small enough for every core to get some.
TILE = 256
FEWEST_LEVELS = 64  # with fewer, what the network would sharpen is their rounding
REACH = 3  # pixels of the source beside a tile that its bicubic enlargement can depend on


class Levels(NamedTuple):
    """The range of a picture's levels: what the network sees as black and white."""

    black: float
    white: float
    peak: float  # the highest level there can be


def silent(pixels: int) -> None:
    """Report no progress."""


def enlarge(
    image: Picture,
    scale: int,
    restore: Callable[[np.ndarray], np.ndarray],
    radius: int,
    *,
    tile: int = TILE,
    advance: Callable[[int], object] = silent,
    map_fn: Callable[..., Iterable[np.ndarray]] = map,
) -> Picture:
    """Enlarge a picture by an integer factor.

    Luminance goes through the network. Colour is the bicubic picture's: adding the same amount to
    R, G and B changes Y and leaves Cb and Cr. Transparency is bicubic. The network sees the picture
    mirrored beyond its borders, as far as it looks. A picture of one single colour stays that. The
    working memory beside picture and result depends on tile and threads alone.

    Args:
        image: 1–4 channels, as `imaging.decoding` gives them.
        scale: 2 or more.
        restore: takes H×W luminance, 16–235 (the network), and returns that or what of it lies
            `radius` or more from the border.
        radius: how many pixels far `restore` looks.
        tile: largest side of a tile, in pixels of the result.
        advance: called after each tile with its number of pixels.
        map_fn: `map`, or that of an executor for tiles side by side.

    Returns:
        The enlarged picture, of the same kind.
    """
    height, width, channels = shape(image)
    result: Picture
    if isinstance(image, Image.Image):
        result = Image.new(image.mode, (width * scale, height * scale))
    else:
        result = np.empty((height * scale, width * scale, channels), np.uint16)
    levels = _levels(image)

    def enlarged(part: Tile) -> np.ndarray:
        pixels = _bicubic(image, part, scale, radius)
        core = pixels[(slice(None), *part.inner)]
        if levels.white > levels.black:
            colours = slice(channels - 1 + channels % 2)
            core[colours] += _change(pixels[colours], levels, restore, radius, part)
        core += 0.5
        core = np.clip(core, 0, levels.peak, out=core).transpose(1, 2, 0)
        return core.astype(np.uint8 if isinstance(image, Image.Image) else np.uint16, order="C")

    def results() -> Generator[np.ndarray, None, None]:
        yield from map_fn(enlarged, parts)  # closed, that of an executor drops the tiles not begun

    parts = list(tiles(width * scale, height * scale, tile, radius))
    with closing(results()) as done:
        for part, pixels in zip(parts, done, strict=True):
            if isinstance(result, Image.Image):
                result.paste(Image.fromarray(pixels if channels > 1 else pixels[..., 0]), part.core)
            else:
                left, top, right, bottom = part.core
                result[top:bottom, left:right] = pixels
            advance(pixels.shape[0] * pixels.shape[1])
    return result


def bicubic_only(luminance: np.ndarray) -> np.ndarray:
    """Stand in for the network where the bicubic picture itself is wanted."""
    return luminance


def _levels(image: Picture) -> Levels:
    """Find the range of levels that the network shall see; none if there is but one colour.

    Levels of 16 bits often fill a part of the range only: 10 or 12 bits of it, say. The network,
    made for 0–255, would change them by more than they differ. The least and the greatest are the
    range, but single pixels far away from all others (hot ones, stars) are not in it. There is no
    range, either, where there are too few levels.
    """
    if isinstance(image, Image.Image):
        extrema = [image.getchannel(band).getextrema() for band in image.mode.removesuffix("A")]
        return Levels(0, 255 * any(low != high for low, high in extrema), 255)
    colours = image[..., : image.shape[2] - 1 + image.shape[2] % 2]
    low, high = colours.min(axis=(0, 1)), colours.max(axis=(0, 1))
    if (low == high).all():
        return Levels(0, 0, 65535)
    step = max(int((colours.size / 2**20) ** 0.5), 1)  # a million of them tell enough
    lower, upper = np.percentile(colours[::step, ::step], (0.1, 99.9))
    margin = (upper - lower) / 4
    black, white = max(low.min(), lower - margin), min(high.max(), upper + margin)
    if white - black < FEWEST_LEVELS:
        return Levels(0, 0, 65535)
    return Levels(float(black), float(white), 65535)


def _bicubic(image: Picture, part: Tile, scale: int, radius: int) -> np.ndarray:
    """Enlarge what a tile sees, as float32 C×H×W; the same as cut out of the enlarged whole."""
    height, width, channels = shape(image)
    transparent = channels % 2 == 0
    continuation = 3 + radius // scale if transparent else 0
    x, y, x_end, y_end = part.seen  # of the result; then of the source, what covers it
    x, y, x_end, y_end = x // scale, y // scale, -(-x_end // scale), -(-y_end // scale)
    margin = REACH + continuation
    left, top = max(x - margin, 0), max(y - margin, 0)
    right, bottom = min(x_end + margin, width), min(y_end + margin, height)
    if isinstance(image, Image.Image):
        pixels = np.atleast_3d(np.asarray(image.crop((left, top, right, bottom))))
    else:  # Pillow resizes no 16 bits, but floats
        pixels = image[top:bottom, left:right]
    bands = list(np.moveaxis(pixels, 2, 0))
    if transparent:
        bands = continued(bands, continuation)
    size = ((x_end - x) * scale, (y_end - y) * scale)
    box = (x - left, y - top, x_end - left, y_end - top)
    enlarged = [
        Image.fromarray(band if band.dtype == np.uint8 else band.astype(np.float32)).resize(
            size, BICUBIC, box
        )
        for band in bands
    ]
    seen = Tile(part.seen, (x * scale, y * scale, x_end * scale, y_end * scale)).inner
    return np.array([np.asarray(band)[seen] for band in enlarged], np.float32)


def continued(bands: list[np.ndarray], reach: int) -> list[np.ndarray]:
    """Continue the colours of a picture to where it is transparent.

    What lies under transparent pixels is arbitrary, often black. The border would be taken for an
    edge of the picture: bicubic would overshoot there, and the network sharpen it.

    Args:
        bands: H×W each, uint8 or uint16, the last of them the opacity.
        reach: pixels by which the visible picture is continued.
    """
    *colours, alpha = bands
    visible = alpha > np.iinfo(alpha.dtype).max / 32  # fainter pixels have hardly a colour
    if not visible.all():
        colours = [_continued(band, visible, reach) for band in colours]
    return [*colours, alpha]


def _continued(band: np.ndarray, visible: np.ndarray, reach: int) -> np.ndarray:
    """Give each pixel beside known ones their mean, again and again."""
    plane, known = band.astype(np.float32), visible.copy()
    for _ in range(reach):
        count = _neighbours(known.astype(np.float32))
        total = _neighbours(plane * known)
        new = ~known & (count > 0)
        plane[new] = total[new] / count[new]
        known |= new
    return (plane + 0.5).astype(band.dtype)


def _neighbours(plane: np.ndarray) -> np.ndarray:
    """Return the sum of the four neighbours of each pixel."""
    padded = np.pad(plane, 1)
    return padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]


def _change(
    pixels: np.ndarray, levels: Levels, restore: Callable, radius: int, part: Tile
) -> np.ndarray:
    """Return H×W, what the network adds to a tile's core, of its 1×H×W or 3×H×W pixels."""
    scaled = np.clip((pixels - levels.black) * (1 / (levels.white - levels.black)), 0, 1)
    weights = RGB_TO_Y if len(pixels) == 3 else np.array([219.0])
    luminance = 16 + np.einsum("c,chw->hw", weights.astype(np.float32), scaled)
    rows, columns = part.inner
    beyond = [  # pixels of the mirrored picture, where the tile sees less far than the network
        (radius - rows.start, radius - (luminance.shape[0] - rows.stop)),
        (radius - columns.start, radius - (luminance.shape[1] - columns.stop)),
    ]
    restored, core = restore(np.pad(luminance, beyond, mode="symmetric")), luminance[part.inner]
    margin = (len(restored) - len(core)) // 2
    restored = restored[margin : margin + core.shape[0], margin : margin + core.shape[1]]
    change = ((restored - core) * ((levels.white - levels.black) / 219.0)).astype(np.float32)
    if not np.isfinite(change).all():
        raise PictureError("the network makes values that are not finite of it; other weights?")
    return change
