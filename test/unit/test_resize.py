"""The two bicubics, against Pillow's own and against the kernel written out."""

import numpy as np
import pytest
from PIL import Image
from samples import noise

from imaging.resize import imresize, modelzoo_pair, modelzoo_rgb_pair

RNG = np.random.default_rng(7)
BICUBIC = Image.Resampling.BICUBIC


def keys(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def written_out(line: np.ndarray, new_size: int) -> np.ndarray:
    """Resize one line sample by sample, from the formula, with its mirror images beside it."""
    size = len(line)
    scale = new_size / size
    stretch = min(scale, 1.0)
    result = []
    for i in range(new_size):
        centre = (i + 0.5) / scale - 0.5
        weights = {j: keys(stretch * (centre - j)) for j in range(-2 * size, 3 * size)}
        mirror = np.concatenate([line, line[::-1]])
        total = sum(weight * mirror[j % (2 * size)] for j, weight in weights.items())
        result.append(total / sum(weights.values()))
    return np.array(result)


@pytest.mark.parametrize(("size", "new_size"), [(30, 10), (31, 10), (10, 30), (17, 23), (5, 2)])
def test_imresize_follows_the_formula(size: int, new_size: int) -> None:
    image = RNG.uniform(0, 255, (size, size + 3))
    expected = np.array([written_out(column, new_size) for column in image.T]).T
    expected = np.array([written_out(row, new_size + 4) for row in expected])
    np.testing.assert_allclose(imresize(image, new_size, new_size + 4), expected, atol=1e-9)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_imresize_equals_pillow_away_from_the_border(scale: int) -> None:
    """Pillow has the same kernel and antialiasing, but leaves out what lies outside."""
    image = RNG.uniform(0, 255, (60, 84)).astype(np.float32)
    small = imresize(image, 60 // scale, 84 // scale)
    pillow = Image.fromarray(image).resize((84 // scale, 60 // scale), BICUBIC)
    np.testing.assert_allclose(small[2:-2, 2:-2], np.asarray(pillow)[2:-2, 2:-2], atol=1e-3)
    large = imresize(small, 60, 84)
    pillow = Image.fromarray(small.astype(np.float32)).resize((84, 60), BICUBIC)
    inside = slice(2 * scale, -2 * scale)
    np.testing.assert_allclose(large[inside, inside], np.asarray(pillow)[inside, inside], atol=1e-3)


def test_imresize_takes_the_channels_apart() -> None:
    image = RNG.uniform(0, 255, (12, 15, 3))
    result = imresize(image, 4, 5)
    assert result.shape == (4, 5, 3)
    for channel in range(3):
        np.testing.assert_array_equal(result[..., channel], imresize(image[..., channel], 4, 5))


def test_imresize_neither_rounds_nor_clips() -> None:
    edge = np.repeat([[0.0, 0, 0, 255, 255, 255]], 6, axis=0)
    result = imresize(edge, 18, 18)
    assert result.min() < -5
    assert result.max() > 260
    assert result.dtype == np.float64


def test_imresize_keeps_a_constant_and_a_single_pixel() -> None:
    np.testing.assert_allclose(imresize(np.full((7, 5), 93.0), 20, 3), 93.0)
    np.testing.assert_allclose(imresize(np.full((1, 1), 93.0), 4, 4), 93.0)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_modelzoo_pair_is_the_published_recipe(scale: int) -> None:
    image = noise(50, 41)
    width, height = 50 - 50 % scale, 41 - 41 % scale
    hr = image.resize((width, height), BICUBIC)
    lr = hr.resize((width // scale, height // scale), BICUBIC).resize((width, height), BICUBIC)
    for result, source in zip(modelzoo_pair(image, scale), (lr, hr), strict=True):
        r, g, b = np.asarray(source, np.float32).transpose(2, 0, 1)
        assert result.dtype == np.float32
        expected = 16.0 + (64.738 * r + 129.057 * g + 25.064 * b) / 256.0
        np.testing.assert_array_equal(result, expected)


def test_modelzoo_pair_resizes_where_it_could_crop() -> None:
    image = noise(31, 31)
    _, hr = modelzoo_rgb_pair(image, 3)
    assert hr.shape == (30, 30, 3)
    assert not np.array_equal(hr, np.asarray(image)[:30, :30])


def test_modelzoo_pair_takes_any_mode() -> None:
    grey = Image.fromarray(RNG.integers(0, 256, (12, 12), dtype=np.uint8))
    lr, hr = modelzoo_pair(grey, 3)
    assert lr.shape == hr.shape == (12, 12)
    expected = 16.0 + np.asarray(grey, np.float64) * 218.859 / 256.0
    np.testing.assert_allclose(hr, expected, atol=1e-4)
