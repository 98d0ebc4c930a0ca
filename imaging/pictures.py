"""Before and after, side by side, for people to look at."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAD, FONT_SIZE, ZOOM_SHARE = 12, 16, 0.2
MIN_PANEL = 280  # pixels: room for the caption; smaller images are enlarged
NEAREST = Image.Resampling.NEAREST
BOX_COLOUR = (230, 60, 40)


def save_strip(
    file: Path | str | BinaryIO,
    name: str,
    bicubic: np.ndarray,
    output: np.ndarray,
    original: np.ndarray,
    *,
    psnrs: tuple[float, float],
) -> None:
    """Save a PNG strip: bicubic, SRCNN and the original, with the most changed region enlarged.

    Args:
        file: the PNG file; its folder must exist. Or an open one.
        name: the image's name, for the caption.
        bicubic: H×W luminance or H×W×3 RGB, 0–255, any real type.
        output: the network's, same shape.
        original: same shape.
        psnrs: dB of bicubic and of the output, for the captions.
    """
    pictures = [_as_image(pixels) for pixels in (bicubic, output, original)]
    captions = (f"Bicubic  {psnrs[0]:.2f} dB", f"SRCNN  {psnrs[1]:.2f} dB", f"Original  {name}")
    region = most_changed(bicubic, output)
    panels = [
        _panel(picture, caption, region)
        for picture, caption in zip(pictures, captions, strict=True)
    ]
    width = sum(panel.width for panel in panels) + PAD * (len(panels) + 1)
    strip = Image.new("RGB", (width, panels[0].height + 2 * PAD), "white")
    for i, panel in enumerate(panels):
        strip.paste(panel, (PAD + i * (panel.width + PAD), PAD))
    strip.save(file, "PNG")


def most_changed(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int]:
    """Return (top, left, side) of the square in which two images differ most.

    Its side is a fifth of the shorter side of the image (but at least 16 pixels where there are
    so many); the sum of squared differences decides.

    Args:
        before: H×W or H×W×C, any real type.
        after: the same shape.
    """
    difference = np.square(np.asarray(after, np.float64) - np.asarray(before, np.float64))
    difference = difference.reshape(*difference.shape[:2], -1).sum(axis=2)
    shorter = min(difference.shape)
    side = min(max(round(ZOOM_SHARE * shorter), 16), shorter)
    total = np.pad(difference.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return int(top), int(left), side


def with_luminance(rgb: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Exchange the luminance of a colour image and keep its Cb and Cr.

    Adding the same amount to R, G and B moves Y alone: by (65.481 + 128.553 + 24.966) / 255 of it.

    Args:
        rgb: H×W×3, 0–255.
        before: Y of `rgb`, H×W, 16–235 (ITU-R BT.601).
        after: the Y wanted instead, H×W.

    Returns:
        H×W×3 uint8.
    """
    change = (np.asarray(after, np.float64) - before) * (255.0 / 219.0)
    return np.clip(rgb + change[..., None] + 0.5, 0.0, 255.0).astype(np.uint8)


def _as_image(pixels: np.ndarray) -> Image.Image:
    pixels = np.clip(np.asarray(pixels, np.float64) + 0.5, 0.0, 255.0).astype(np.uint8)
    return Image.fromarray(pixels).convert("RGB")


def _panel(picture: Image.Image, caption: str, region: tuple[int, int, int]) -> Image.Image:
    """Stack the caption, the picture with the region framed, and the region enlarged."""
    top, left, side = region
    zoom = picture.crop((left, top, left + side, top + side))
    enlarge = -(-MIN_PANEL // picture.width)
    picture = picture.resize((picture.width * enlarge, picture.height * enlarge), NEAREST)
    zoom = zoom.resize((picture.width, picture.width), NEAREST)
    text_height = FONT_SIZE + PAD
    panel = Image.new(
        "RGB", (picture.width, text_height + picture.height + PAD + zoom.height), "white"
    )
    draw = ImageDraw.Draw(panel)
    draw.text((0, 0), caption, fill="black", font=ImageFont.load_default(FONT_SIZE))
    panel.paste(picture, (0, text_height))
    x, y, size = left * enlarge, text_height + top * enlarge, side * enlarge
    draw.rectangle((x, y, x + size - 1, y + size - 1), outline=BOX_COLOUR, width=2)
    panel.paste(zoom, (0, text_height + picture.height + PAD))
    return panel
