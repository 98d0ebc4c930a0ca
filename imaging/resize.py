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
    image = image.convert("RGB")
    width, height = image.width // scale * scale, image.height // scale * scale
    hr = image.resize((width, height), BICUBIC)
    lr = hr.resize((width // scale, height // scale), BICUBIC).resize((width, height), BICUBIC)
    return modelzoo_y(np.asarray(lr)), modelzoo_y(np.asarray(hr))
