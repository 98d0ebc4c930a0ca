"""Tiles: they cover the image once, and a network on tiles is the network on the whole."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from samples import coffee, network, pixels

from imaging.enlarge import bicubic_only, enlarge
from imaging.resize import BICUBIC
from imaging.tiling import tiles
from inference.restore import restore

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
        side_by_side = enlarge(
            image, scale, lambda y: restore(model, y), 8, tile=40, map_fn=pool.map
        )
    assert np.abs(pixels(side_by_side) - enlarged(40)).mean() < 1e-4
    bicubic = image.resize((61 * scale, 50 * scale), BICUBIC)
    assert np.abs(whole - pixels(bicubic)).max() > 2, "the network changes nothing"
    assert enlarge(image, scale, bicubic_only, 8, tile=40).tobytes() == bicubic.tobytes()


def test_an_interruption_drops_the_tiles_not_begun() -> None:
    """An executor's `map` does so once it is closed."""
    closed = []

    def map_fn(function: Callable, tiles: list) -> Iterator[np.ndarray]:
        try:
            yield from map(function, tiles)
        finally:
            closed.append(True)

    def advance(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interruption:
        enlarge(coffee(61, 50), 2, bicubic_only, 8, tile=40, advance=advance, map_fn=map_fn)
    assert closed, interruption  # which holds the frame, and with it the map
