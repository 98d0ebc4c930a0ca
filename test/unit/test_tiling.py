"""Tiles: they cover the image once, and a network on tiles is the network on the whole."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from samples import coffee, network, pixels

from imaging.enlarge import bicubic_only, enlarge
from imaging.metrics import psnr
from imaging.resize import BICUBIC, modelzoo_pair
from imaging.tiling import tiles
from runtime.fast_cpu import for_cpu
from runtime.inference import restore
from runtime.weights import load_weights, shipped_weights

SIZES = [(1, 1), (5, 300), (97, 64), (64, 65), (200, 131)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_cores_cover_each_pixel_once(width: int, height: int) -> None:
    count = np.zeros((height, width), int)
    for tile in tiles(width, height, 64, 8):
        left, top, right, bottom = tile.core
        count[top:bottom, left:right] += 1
        assert 0 < right - left <= 64
        assert 0 < bottom - top <= 64
        assert tile.seen == (
            max(left - 8, 0),
            max(top - 8, 0),
            min(right + 8, width),
            min(bottom + 8, height),
        )
    assert (count == 1).all()


def on_tiles(model: torch.nn.Module, plane: np.ndarray, size: int, radius: int) -> np.ndarray:
    """Put a plane through the network tile by tile."""
    result = np.full(plane.shape, np.nan)
    for tile in tiles(plane.shape[1], plane.shape[0], size, radius):
        (left, top, right, bottom), (x, y, x_end, y_end) = tile
        part = restore(model, plane[y:y_end, x:x_end])
        result[top:bottom, left:right] = part[tile.inner]
    return result


@pytest.mark.parametrize("kernel_sizes", [(9, 5, 5), (3, 7, 5)])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (5, 120), (97, 64)])
def test_tiles_equal_the_whole(width: int, height: int, kernel_sizes: tuple[int, ...]) -> None:
    model = network(kernel_sizes=kernel_sizes)
    plane = np.random.default_rng(1).uniform(16, 235, (height, width)).astype(np.float32)
    whole = restore(model, plane)
    tiled = on_tiles(model, plane, 48, model.receptive_radius)
    np.testing.assert_allclose(tiled / 255, whole / 255, rtol=0, atol=1e-6)


def test_one_pixel_less_would_show() -> None:
    model = network()
    assert model.receptive_radius == 8
    plane = np.random.default_rng(1).uniform(16, 235, (100, 100)).astype(np.float32)
    error = np.abs(on_tiles(model, plane, 48, 7) - restore(model, plane)).max()
    assert error / 255 > 1e-5


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_an_enlarged_picture_does_not_depend_on_the_tile(scale: int) -> None:
    model, image = network(), coffee(61, 50)

    def enlarged(tile: int) -> np.ndarray:
        result = enlarge(image, scale, lambda y: restore(model, y), 8, tile=tile)
        return pixels(result)

    whole = enlarged(10**6)
    difference = np.abs(whole - enlarged(40))
    assert difference.max() <= 1, "more than a value on the edge of rounding"
    assert difference.mean() < 1e-4
    with ThreadPoolExecutor(3) as pool:
        side_by_side = enlarge(image, scale, lambda y: restore(model, y), 8, tile=40, each=pool.map)
    assert np.abs(pixels(side_by_side) - enlarged(40)).mean() < 1e-4
    bicubic = image.resize((61 * scale, 50 * scale), BICUBIC)
    assert np.abs(whole - pixels(bicubic)).max() > 2, "the network changes nothing"
    assert enlarge(image, scale, bicubic_only, 8, tile=40).tobytes() == bicubic.tobytes()


@pytest.mark.parametrize("kernel_sizes", [(9, 5, 5), (9, 1, 5), (9, 3, 7)])
@pytest.mark.parametrize("channels", [(64, 32), (8, 4)])
def test_the_network_for_the_cpu_is_the_same(kernel_sizes: tuple, channels: tuple) -> None:
    model = network(kernel_sizes=kernel_sizes, channels=channels)
    x = torch.rand(1, 1, 45, 70, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected, fast = model(x), for_cpu(model, bf16=False)(x)
        rounded = for_cpu(model, bf16=True)(x)
    torch.testing.assert_close(fast, expected, rtol=0, atol=2e-6)
    error = (rounded - expected).square().mean().sqrt()
    assert error < 0.5 / 255, "bfloat16 costs more than half a grey level"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bfloat16_costs_next_to_nothing(scale: int) -> None:
    """With the shipped weights; plain bfloat16 would cost up to 0.2 dB, and differ by 50 dB."""
    model = load_weights(shipped_weights(scale))
    lr, hr = modelzoo_pair(coffee(240, 240), scale)
    exact, rounded = (restore(for_cpu(model, bf16=flag), lr) for flag in (False, True))
    assert (exact != rounded).any()
    assert psnr(exact, rounded) > 70
    assert abs(psnr(exact, hr) - psnr(rounded, hr)) < 0.002
