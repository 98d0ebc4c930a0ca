"""PSNR and SSIM, and the two protocols by which published SRCNN figures are measured."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from imaging.luminance import matlab_y
from imaging.resize import imresize, modelzoo_pair, modelzoo_rgb_pair

SSIM_WINDOW = 11
Pair = tuple[np.ndarray, np.ndarray]


def psnr(a: np.ndarray, b: np.ndarray, peak: float = 255.0, border: int = 0) -> float:
    """Return the peak signal-to-noise ratio, 10 log10(peak² / MSE), in dB.

    Args:
        a: image of any shape H×W(×C) and real type.
        b: image of the same shape.
        peak: largest possible value: 255.0, or 1.0 for images scaled to 0–1.
        border: pixels left out along each edge.

    Returns:
        dB, `inf` for equal images.

    Raises:
        ValueError: shapes differ, or the border leaves nothing.
    """
    a, b = _inside(a, b, border)
    error = np.mean(np.square(a - b))
    return 10.0 * math.log10(peak**2 / error) if error else math.inf


def ssim(a: np.ndarray, b: np.ndarray, border: int = 0) -> float:
    """Return the mean structural similarity of two 0–255 images, as papers get it from MATLAB.

    Gaussian window 11×11 with σ 1.5, K1 0.01, K2 0.03, mean over those windows that lie inside
    the image: `ssim_index.m` of Wang et al., 2004, doi:10.1109/TIP.2003.819861.

    Args:
        a: H×W image, 0–255, any real type; 11×11 or larger without the border.
        b: image of the same shape.
        border: pixels left out along each edge.

    Returns:
        −1 to 1, 1.0 for equal images.

    Raises:
        ValueError: shapes differ, or too little is left for one window.
    """
    from skimage.metrics import structural_similarity  # noqa: PLC0415 - half a second to load

    a, b = _inside(a, b, border)
    if min(a.shape) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs {SSIM_WINDOW}×{SSIM_WINDOW} pixels, not {a.shape}")
    return float(
        structural_similarity(
            a, b, data_range=255.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


def _inside(a: np.ndarray, b: np.ndarray, border: int) -> Pair:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"images of different shape: {a.shape} and {b.shape}")
    if border < 0 or min(a.shape[:2]) <= 2 * border:
        raise ValueError(f"no pixels inside a border of {border} in {a.shape}")
    inside = slice(border, -border or None)
    return a[inside, inside], b[inside, inside]


@dataclass(frozen=True)
class Protocol:
    """How a test pair is made of an image, and which of the result's pixels and values count.

    Attributes:
        name: as printed beside every figure.
        summary: half a sentence that tells people what it does.
        pair: (image, scale) → (bicubic, original) luminance, H×W, about 0–255; the bicubic one,
            divided by 255, is the network's input.
        visible_pair: the same to look at, uint8: H×W×3, or H×W where a greyscale image is its
            own luminance.
        finish: what a result (bicubic's or the network's, 0–255) undergoes before it is measured.
        cuts_border: whether `scale` pixels along each edge are left out.
    """

    name: str
    summary: str
    pair: Callable[[Image.Image, int], Pair]
    visible_pair: Callable[[Image.Image, int], Pair]
    finish: Callable[[np.ndarray], np.ndarray]
    cuts_border: bool

    def border(self, scale: int) -> int:
        """Return the pixels left out along each edge."""
        return scale if self.cuts_border else 0

    def measure(self, result: np.ndarray, original: np.ndarray, scale: int) -> tuple[float, float]:
        """Return (PSNR in dB, SSIM) of a result, H×W and 0–255, against the original."""
        result, border = self.finish(result), self.border(scale)
        return psnr(result, original, border=border), ssim(result, original, border=border)


def paper_pair(image: Image.Image, scale: int) -> Pair:
    """Make the (bicubic, original) luminance pair of one image by the `paper` protocol.

    The original is Y (`matlab_y`) cropped to a multiple of the scale; the other went down and up
    again by MATLAB's bicubic in floating point, neither rounded nor clipped on the way.

    Args:
        image: any 8-bit Pillow image; a greyscale one is its own Y.
        scale: 1 or more; the image must be at least that large on each side.

    Returns:
        (bicubic, original), float64 H×W of equal shape, about 0–255.
    """
    return exact_pair(matlab_y(_pixels(image)), scale)


def exact_pair(pixels: np.ndarray, scale: int) -> Pair:
    """Return (bicubic, original) of H×W or H×W×C pixels, made as in the `paper` protocol."""
    height, width = (side // scale * scale for side in pixels.shape[:2])
    original = pixels[:height, :width]
    low = imresize(original, height // scale, width // scale)
    return imresize(low, height, width), original


def _paper_visible_pair(image: Image.Image, scale: int) -> Pair:
    bicubic, original = exact_pair(_pixels(image), scale)
    return _rounded(bicubic).astype(np.uint8), original


def _pixels(image: Image.Image) -> np.ndarray:
    grey = image.mode in ("1", "L", "LA")
    return np.asarray(image.convert("L" if grey else "RGB"))


def _rounded(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(pixels + 0.5), 0.0, 255.0)  # halves up, as MATLAB's uint8()


def _clamped(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels, 0.0, 255.0)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "modelzoo",
            "image resized to a multiple of the scale, Pillow's bicubic, every pixel counted",
            modelzoo_pair,
            modelzoo_rgb_pair,
            _clamped,
            cuts_border=False,
        ),
        Protocol(
            "paper",
            "image cropped to a multiple of the scale, MATLAB's bicubic, result rounded, "
            "a border of as many pixels as the scale left out",
            paper_pair,
            _paper_visible_pair,
            _rounded,
            cuts_border=True,
        ),
    )
}


def gain(figures: Mapping[str, float]) -> float:
    """Return the dB that SRCNN is above bicubic; 0 where both restore without error."""
    bicubic, srcnn = figures["bicubic_psnr"], figures["srcnn_psnr"]
    return srcnn - bicubic if srcnn != bicubic else 0.0
