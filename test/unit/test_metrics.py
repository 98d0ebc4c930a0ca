"""PSNR and SSIM against their definitions, the protocols against the published figures."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imaging.luminance import matlab_y, modelzoo_y
from imaging.metrics import PROTOCOLS, psnr, ssim

RNG = np.random.default_rng(3)


def test_psnr_of_a_known_error() -> None:
    a = np.zeros((4, 5))
    assert psnr(a, a + 5.0) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(a, a + 0.1, peak=1.0) == pytest.approx(20.0)
    assert psnr(a, a) == math.inf


def test_psnr_does_not_wrap_around_in_uint8() -> None:
    a, b = np.full((3, 3), 250, np.uint8), np.full((3, 3), 255, np.uint8)
    assert psnr(a, b) == psnr(b, a) == pytest.approx(20 * math.log10(255 / 5))


def test_psnr_leaves_the_border_out() -> None:
    a = RNG.uniform(0, 255, (9, 10))
    b = a + 1.0
    b[:2] = b[-2:] = b[:, :2] = b[:, -2:] = 0.0
    assert psnr(a, b, border=2) == pytest.approx(20 * math.log10(255))
    assert psnr(a, b, border=1) < 30


def test_psnr_of_colours_leaves_the_border_of_the_picture_out() -> None:
    a = RNG.uniform(0, 255, (7, 8, 3))
    b = a + np.array([3.0, 0.0, 0.0])
    b[:2] = b[-2:] = b[:, :2] = b[:, -2:] = 0.0
    assert psnr(a, b, border=2) == pytest.approx(10 * math.log10(255**2 / 3))


def test_images_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="shape"):
        psnr(np.zeros((4, 4)), np.zeros((4, 5)))
    with pytest.raises(ValueError, match="border"):
        psnr(np.zeros((6, 6)), np.zeros((6, 6)), border=3)
    with pytest.raises(ValueError, match="border"):
        psnr(np.zeros((6, 6)), np.zeros((6, 6)), border=-1)
    with pytest.raises(ValueError, match="11"):
        ssim(np.zeros((12, 12)), np.zeros((12, 12)), border=1)


def ssim_written_out(a: np.ndarray, b: np.ndarray) -> float:
    """Wang's ssim_index.m: every 11×11 window that lies inside, weighted, in a loop."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
            cov = (window * p * q).sum() - mp * mq
            values.append(
                (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
            )
    return float(np.mean(values))


def test_ssim_is_matlabs() -> None:
    a = RNG.uniform(0, 255, (24, 31)).cumsum(axis=1) % 256
    b = np.clip(a + RNG.normal(0, 25, a.shape), 0, 255)
    assert ssim(a, b) == pytest.approx(ssim_written_out(a, b), abs=1e-9)
    assert ssim(a, b, border=3) == pytest.approx(
        ssim_written_out(a[3:-3, 3:-3], b[3:-3, 3:-3]), abs=1e-9
    )
    assert ssim(a, a) == pytest.approx(1.0)


COLOURS = [(255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (100, 150, 200)]


def test_luminance_of_colours() -> None:
    """BT.601's of red is 16 + 65.481, rounded; the published file has 64.738 in its place."""
    row = np.array([COLOURS], np.uint8)
    y = matlab_y(row)
    assert (y.dtype, y.tolist()) == (np.float64, [[235, 16, 81, 145, 41, 137]])
    y = modelzoo_y(row)
    expected = [16 + (64.738 * r + 129.057 * g + 25.064 * b) / 256 for r, g, b in COLOURS]
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, [expected], rtol=1e-6)
    grey = matlab_y(row[..., 0])
    assert (grey.dtype, grey.tolist()) == (np.float64, [[255, 0, 255, 0, 0, 100]])


def test_what_a_result_undergoes_before_it_is_measured() -> None:
    levels = np.array([-7.2, 0.4, 0.5, 1.5, 254.6, 300.0])
    assert PROTOCOLS["paper"].finish(levels).tolist() == [0, 0, 1, 2, 255, 255]
    assert PROTOCOLS["modelzoo"].finish(levels).tolist() == [0, 0.4, 0.5, 1.5, 254.6, 255]


PUBLISHED = {  # Set5, bicubic: PSNR by protocol and scale; SSIM is published for `paper`
    ("modelzoo", 2): (33.71, None),
    ("modelzoo", 3): (30.92, None),
    ("modelzoo", 4): (28.47, None),
    ("paper", 2): (33.66, 0.9299),
    ("paper", 3): (30.39, 0.8682),
    ("paper", 4): (28.42, 0.8104),
}


@pytest.mark.parametrize(("protocol", "scale"), PUBLISHED)
def test_set5_bicubic_has_the_published_figures(set5: Path, protocol: str, scale: int) -> None:
    measured = []
    for path in sorted(set5.glob("*.bmp")):
        bicubic, original = PROTOCOLS[protocol].pair(Image.open(path), scale)
        measured.append(PROTOCOLS[protocol].measure(bicubic, original, scale))
    assert len(measured) == 5
    expected_psnr, expected_ssim = PUBLISHED[protocol, scale]
    mean_psnr, mean_ssim = np.mean(measured, axis=0)
    assert mean_psnr == pytest.approx(expected_psnr, abs=0.005)
    if expected_ssim:
        assert mean_ssim == pytest.approx(expected_ssim, abs=0.0001)


def test_paper_crops_and_measures_rounded_values_inside_the_border() -> None:
    image = Image.fromarray(RNG.integers(0, 256, (44, 50), dtype=np.uint8))
    paper = PROTOCOLS["paper"]
    bicubic, original = paper.pair(image, 3)
    np.testing.assert_array_equal(original, np.asarray(image)[:42, :48])
    assert not np.array_equal(bicubic, np.round(bicubic)), "the low resolution was rounded"
    almost = np.clip(original + 0.4, 0, 255)
    almost[:3] = almost[-3:] = almost[:, :3] = almost[:, -3:] = 0.0
    assert paper.measure(almost, original, 3) == (math.inf, pytest.approx(1.0))


def test_modelzoo_measures_every_pixel_unrounded_but_clamped() -> None:
    original = RNG.uniform(0, 255, (20, 20))
    original[0, 0] = 255.0
    modelzoo = PROTOCOLS["modelzoo"]
    assert modelzoo.measure(original + 0.2, original, 3)[0] < 62.5
    beyond = original.copy()
    beyond[0, 0] = 300.0
    assert modelzoo.measure(beyond, original, 3)[0] == math.inf
    beyond[0, 0] = 155.0
    assert modelzoo.measure(beyond, original, 3)[0] == pytest.approx(
        10 * math.log10(255**2 / (100**2 / 400))
    )


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_a_greyscale_image_is_its_own_luminance_in_paper(mode: str) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (33, 33), dtype=np.uint8)).convert(mode)
    paper = PROTOCOLS["paper"]
    _, original = paper.pair(image, 3)
    np.testing.assert_array_equal(original, np.asarray(image.convert("L")))
    bicubic, visible = paper.visible_pair(image, 3)
    np.testing.assert_array_equal(visible, original)
    np.testing.assert_array_equal(bicubic, paper.finish(paper.pair(image, 3)[0]))


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_what_people_see_is_what_is_measured(name: str) -> None:
    pixels = np.full((30, 30, 3), (200, 40, 90), np.uint8)
    pixels[:, 15:] = (30, 160, 60)
    image, protocol = Image.fromarray(pixels), PROTOCOLS[name]
    for visible, luminance in zip(
        protocol.visible_pair(image, 3), protocol.pair(image, 3), strict=True
    ):
        assert visible.dtype == np.uint8
        again = protocol.pair(Image.fromarray(visible), 1)[1]
        # Clipping at 0 and 255 moves Y a little beside the edge, where bicubic overshoots.
        np.testing.assert_allclose(again, luminance, atol=4)
