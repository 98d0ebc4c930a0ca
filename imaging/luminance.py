"""Luminance (Y) of colour images, in the two conventions that published figures rest on."""

import numpy as np

RGB_TO_Y = np.array([65.481, 128.553, 24.966])  # ITU-R BT.601 for R, G, B of 0–1; Y is 16 more


def modelzoo_y(rgb: np.ndarray) -> np.ndarray:
    """Return Y as the published HDF5 files hold it: 16 + (64.738 R + 129.057 G + 25.064 B) / 256.

    64.738 is a slip for ITU-R BT.601's 65.738 that came with the published code: white becomes
    234 instead of 235. It stays so that files and figures remain comparable; use it for the
    `modelzoo` protocol only.

    Args:
        rgb: H×W×3 array, 0–255, uint8 or float32.

    Returns:
        H×W float32, 16–234, not rounded.
    """
    r, g, b = np.moveaxis(np.asarray(rgb), -1, 0)
    y = r * np.float32(64.738)
    y += g * np.float32(129.057)  # in place: half the time of the formula in one line
    y += b * np.float32(25.064)
    y /= 256.0
    y += 16.0
    return y


def matlab_y(image: np.ndarray) -> np.ndarray:
    """Return Y as MATLAB's `rgb2ycbcr` gives it for 8-bit images, which the papers measure on.

    Y = round(16 + (65.481 R + 128.553 G + 24.966 B) / 255), ITU-R BT.601. A greyscale image is
    its own Y.

    Args:
        image: H×W (greyscale) or H×W×3 (RGB) uint8 array.

    Returns:
        H×W float64 with whole values, 16–235 for colour and 0–255 for greyscale.
    """
    pixels = np.asarray(image, dtype=np.float64)
    if pixels.ndim == 2:
        return pixels
    luminance = 16.0 + pixels @ RGB_TO_Y / 255.0
    return np.floor(luminance + 0.5)  # MATLAB rounds halves up; np.round would go to even
