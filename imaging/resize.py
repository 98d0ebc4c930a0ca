"""Bicubic resizing: Pillow's, as the published data was made, and MATLAB's, as the papers use."""

import numpy as np
from PIL import Image

from imaging.luminance import modelzoo_y

BICUBIC = Image.Resampling.BICUBIC


def modelzoo_pair(image: Image.Image, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Make the (low, high resolution) luminance pair of one image by the `modelzoo` protocol.

    The image is resized (not cropped) to the largest multiple of the scale, then down by the
    scale and up again, all on RGB with Pillow's antialiased bicubic; then Y of each.

    Args:
        image: any Pillow image; it is converted to RGB.
        scale: 1 or more; the image must be at least that large on each side.

    Returns:
        (lr, hr), float32 H×W of equal shape, values 16–234.
    """
    lr, hr = modelzoo_rgb_pair(image, scale)
    return modelzoo_y(lr), modelzoo_y(hr)


def modelzoo_rgb_pair(image: Image.Image, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Make the colour pair whose luminance `modelzoo_pair` returns, as H×W×3 uint8 arrays."""
    image = image.convert("RGB")
    width, height = image.width // scale * scale, image.height // scale * scale
    hr = image.resize((width, height), BICUBIC)
    lr = hr.resize((width // scale, height // scale), BICUBIC).resize((width, height), BICUBIC)
    return np.asarray(lr), np.asarray(hr)


def imresize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize as MATLAB's `imresize(image, [height width])` does by default, for real-valued images.

    Keys' cubic convolution kernel with a = −0.5 (Keys, 1981, doi:10.1109/TASSP.1981.1163711),
    stretched by the reduction when shrinking, which is MATLAB's antialiasing; pixel centres at
    half-integers, borders mirrored with the edge pixel repeated. Nothing is rounded or clipped:
    values overshoot beside edges.

    Args:
        image: H×W or H×W×C, any real type.
        height: rows of the result, 1 or more.
        width: columns of the result, 1 or more.

    Returns:
        height×width(×C) float64.
    """
    rows = _resize_rows(np.asarray(image, dtype=np.float64), height)
    return _resize_rows(rows.swapaxes(0, 1), width).swapaxes(0, 1)


def _resize_rows(image: np.ndarray, height: int) -> np.ndarray:
    """Resize along the first axis: a weighted sum of as many shifted pictures as there are taps."""
    sources, weights = _taps(image.shape[0], height)
    weights = weights.reshape(*weights.shape, *[1] * (image.ndim - 1))
    result = np.zeros((height, *image.shape[1:]))
    for source, weight in zip(sources, weights, strict=True):
        result += weight * image[source]
    return result


def _taps(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, taps × new_size, which source pixels make each new pixel, and their weights."""
    shrink = min(new_size / size, 1.0)
    centre = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    count = int(np.ceil(4.0 / shrink)) + 2
    position = np.floor(centre - 2.0 / shrink) + np.arange(count)[:, None]
    weights = _keys_cubic(shrink * (centre - position))
    mirrored = np.mod(position.astype(np.int64), 2 * size)
    return np.minimum(mirrored, 2 * size - 1 - mirrored), weights / weights.sum(axis=0)


def _keys_cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x <= 1.0, near, np.where(x <= 2.0, far, 0.0))
