"""Random crops: pieces of the images in all views, the same from memory and from disk."""

from dataclasses import replace
from itertools import compress
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from datasets import ImageDataset, TrainDataset
from model import SRCNN
from runtime.errors import UserError
from training.batches import BatchPlan
from training.crops import CropBatches, RandomCrops
from training.loading import Place, load_training_data
from training.recipes import FAST, POLISH
from training.streaming import StreamedBatches, crop_reader

CPU = torch.device("cpu")


def image(height: int, width: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    lr = torch.arange(first, first + height * width, dtype=torch.float64).reshape(1, height, width)
    return lr, lr + 0.5


def all_views(crop: torch.Tensor) -> list[torch.Tensor]:
    return [torch.rot90(side, k) for side in (crop, crop.flip(1)) for k in range(4)]


def test_crops_are_pieces_of_the_images_in_all_eight_views() -> None:
    images = [image(9, 7, 0), image(6, 11, 1000), image(4, 30, 5000)]
    shapes = [tuple(lr.shape[1:]) for lr, _ in images]
    batches = CropBatches(images, RandomCrops(shapes, 5, 40, BatchPlan(6, seed=3)), CPU)
    possible = {
        tuple(view.flatten().tolist()): (number, v)
        for number, (lr, _) in enumerate(images)
        for top in range(lr.shape[1] - 4)
        for left in range(lr.shape[2] - 4)
        for v, view in enumerate(all_views(lr[0, top : top + 5, left : left + 5]))
    }
    seen = set()
    for lr, hr, weights in batches.epoch(0):
        assert lr.shape == (6, 1, 5, 5)
        assert torch.equal(hr, lr + 0.5)
        assert weights.tolist() == [[[[1.0]]]] * 6
        seen |= {possible[tuple(crop.flatten().tolist())] for crop in lr}
    assert seen == {(number, view) for number in (0, 1) for view in range(8)}


def test_crops_on_a_grid_begin_at_its_points() -> None:
    crops = RandomCrops([(12, 15), (9, 9)], 6, 200, BatchPlan(2, seed=1), grid=3).draw(0)
    places = set(zip(crops.image.tolist(), crops.top.tolist(), crops.left.tolist(), strict=True))
    first = {(0, top, left) for top in (0, 3, 6) for left in (0, 3, 6, 9)}
    assert places == first | {(1, top, left) for top in (0, 3) for left in (0, 3)}


@pytest.mark.parametrize(("grid", "side"), [(1, 16), (3, 5)])
def test_crops_are_drawn_by_their_error_and_weigh_the_less(grid: int, side: int) -> None:
    """All is compared with crops that are looked at one by one."""
    rng, size, count = torch.Generator().manual_seed(5), 6, 40_000
    images = []
    for height, width in ((45, 30), (22, 26), (6, 40)):
        contrast = torch.linspace(0, 0.3, width).expand(1, height, width)
        lr = torch.rand(1, height, width, generator=rng)
        images.append((lr, lr + contrast * torch.randn(1, height, width, generator=rng)))
    shapes = [tuple(lr.shape[1:]) for lr, _ in images]
    crops = RandomCrops(shapes, size, count, BatchPlan(1, seed=2), grid, by_error=0.5)
    assert all(one is other for one, other in zip(images, crops.watch(images), strict=True))
    cells: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for number, (height, width) in enumerate(shapes):
        for row in range((height - size) // grid + 1):
            for column in range((width - size) // grid + 1):
                place = (number, row // side, column // side)
                cells.setdefault(place, []).append((grid * row, grid * column))
    errors = {}
    for place, corners in cells.items():  # of the pixels that its crops see
        lr, hr = images[place[0]]
        (top, left), (bottom, right) = corners[0], corners[-1]
        window = np.s_[0, top : bottom + size, left : right + size]
        errors[place] = float((lr[window] - hr[window]).square().mean())
    total = sum(len(corners) for corners in cells.values())
    mean = sum(errors[place] * len(corners) for place, corners in cells.items()) / total
    drawn = crops.draw(0)
    seen: dict[tuple[int, int, int], int] = {}
    corners_seen = set()
    for image, top, left, weight in zip(*(v.tolist() for v in drawn[:4]), strict=True):
        place = (image, top // grid // side, left // grid // side)
        assert weight == pytest.approx(1 / (0.5 + 0.5 * errors[place] / mean), rel=1e-5)
        seen[place] = seen.get(place, 0) + 1
        corners_seen.add((image, top, left))
    assert len(corners_seen) == total, "every crop can be drawn"
    for place, corners in cells.items():
        expected = count * len(corners) / total * (0.5 + 0.5 * errors[place] / mean)
        assert abs(seen[place] - expected) < 5 * expected**0.5
    evenly = float(np.mean([left for corners in cells.values() for _, left in corners]))
    weighted = float((drawn.weight * drawn.left).mean())
    assert (
        weighted
        == pytest.approx(evenly, rel=0.02)
        != pytest.approx(float(drawn.left.float().mean()), rel=0.1)
    )


def test_crops_of_images_without_an_error_are_drawn_evenly() -> None:
    flat = torch.full((1, 40, 60), 0.5)
    crops = RandomCrops([(40, 60)], 8, 500, BatchPlan(2), by_error=0.5)
    assert len(list(crops.watch([(flat, flat)]))) == 1
    assert set(crops.draw(0).weight.tolist()) == {1.0}


def test_crops_are_smaller_where_all_images_are() -> None:
    shapes = [(64, 64), (48, 90), (51, 70), (10, 10)]
    crops = RandomCrops(shapes, 96, 10, BatchPlan(2))
    assert crops.size == 51
    assert crops.large == [True, False, True, False]
    assert RandomCrops([*shapes, (96, 100)], 96, 10, BatchPlan(2)).size == 96


def write(path: Path, *, whole: bool) -> Path:
    rng = np.random.default_rng(4)
    shapes = [(12, 20), (30, 12), (9, 40), (15, 15)]
    with h5py.File(path, "w") as file:
        for name in ("lr", "hr"):
            if not whole:
                file[name] = rng.uniform(0, 255, (9, 12, 12)).astype(np.float32)
            for number, shape in enumerate(shapes if whole else ()):
                file[f"{name}/{number}"] = rng.uniform(0, 255, shape).astype(np.float32)
    return path


def from_disk(
    dataset: ImageDataset | TrainDataset, crops: RandomCrops, workers: int
) -> StreamedBatches:
    numbers = list(compress(range(len(dataset)), crops.large))
    reader = crop_reader(dataset, numbers, crops)
    return StreamedBatches(reader, crops.plan, crops.steps_per_epoch, CPU, workers)


@pytest.mark.parametrize(("whole", "border"), [(True, 0), (False, 0), (True, 2)])
def test_crops_from_disk_are_those_from_memory(tmp_path: Path, whole: bool, border: int) -> None:
    path = write(tmp_path / "images.h5", whole=whole)
    dataset = ImageDataset(path) if whole else TrainDataset(path)
    plan = BatchPlan(3, rank=1, world_size=2, seed=8)
    crops = RandomCrops(dataset.shapes, 10, 6, plan, by_error=0.5, border=border)
    assert len(crops) == (3 if whole else 9)
    resident, streamed = CropBatches(dataset, crops, CPU), from_disk(dataset, crops, 2)
    for epoch, start in ((0, 0), (1, 4)):
        expected, actual = (list(b.epoch(epoch, start)) for b in (resident, streamed))
        assert len(actual) == 6 - start
        for one, other in zip(expected, actual, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
            assert one.weights.shape == ((3, 1, 10, 10) if border else (3, 1, 1, 1))
    assert len(set(crops.draw(0).weight.tolist())) > 3


def test_a_worker_that_reads_crops_passes_on_the_users_error(tmp_path: Path) -> None:
    path = write(tmp_path / "images.h5", whole=True)
    with h5py.File(path, "a") as file:
        for number in range(4):
            file[f"hr/{number}"][:] = np.nan
    dataset = ImageDataset(path)
    batches = from_disk(dataset, RandomCrops(dataset.shapes, 10, 4, BatchPlan(1)), 1)
    with pytest.raises(UserError, match=r"images\.h5: hr/\d holds values that") as error:
        next(batches.epoch(0))
    assert "\n" not in str(error.value)


def test_what_is_held_out_is_held_out_in_all_sizes(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    path = write(tmp_path / "train" / "T91_x3_images.h5", whole=True)
    with h5py.File(path, "a") as file:
        file.attrs["images"] = 2  # in two sizes: 0 and 2 are one, 1 and 3 the other
    recipe = replace(FAST, crop_size=9)
    place = Place(CPU, lambda _: 1e9, 0)
    data = load_training_data(tmp_path, 3, recipe, BatchPlan(2), place, hold_out=True)
    assert isinstance(data.batches, CropBatches)
    crops = data.batches.crops
    assert list(zip(crops.heights, crops.widths, strict=True)) == [(30, 12), (15, 15)]
    assert [tuple(lr.shape) for lr, _ in data.held_out] == [(1, 1, 12, 20)]


def test_small_images_and_the_fast_recipe(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    path = write(tmp_path / "train" / "T91_x3_images.h5", whole=True)
    place = Place(CPU, lambda _: 1e9, 0)
    data = load_training_data(tmp_path, 3, FAST, BatchPlan(2), place, hold_out=False)
    lr, *_ = next(data.batches.epoch(0))
    assert lr.shape == (2, 1, 12, 12)
    assert data.description == (
        "random crops of 12×12 from 3 whole images (smaller than 48×48, as all images are) "
        f"(1 smaller left out) of {path}, held on cpu"
    )


def test_borders_of_crops_weigh_what_those_of_the_images_do() -> None:
    """Of pixels drawn evenly by weight, as many lie at a border as in the images."""
    shapes, border = [(40, 60), (100, 50), (30, 90)], 4
    crops = RandomCrops(shapes, 36, 1, BatchPlan(2, seed=1), border=border)
    at_border = inside = 0
    for height, width in shapes[:2]:  # crops of the third do not fit in
        for row in range(height):
            for column in range(width):
                far = border <= row < height - border and border <= column < width - border
                inside, at_border = inside + far, at_border + (not far)
    images = [image(*shape, 0) for shape in shapes]
    for _, _, weights in CropBatches(images, crops, CPU).epoch(0):
        assert weights.shape == (2, 1, 36, 36)
        for (sample,) in weights:
            middle = sample[border:-border, border:-border]
            assert float(sample.mean()) == pytest.approx(1, rel=1e-5)
            share = 1 - float(middle.sum() / sample.sum())
            assert share == pytest.approx(at_border / (at_border + inside), rel=1e-5)
            assert len(set(middle.flatten().tolist())) == 1
            assert len(set(sample.flatten().tolist())) == 2
    whole = RandomCrops([(33, 33)] * 5, 33, 1, BatchPlan(2), border=border).pixel_weights
    torch.testing.assert_close(whole, torch.ones(1, 1, 33, 33))  # patches are their images
    assert RandomCrops([(16, 16)], 16, 1, BatchPlan(1), border=8).pixel_weights.tolist() == [
        [[[1]]]
    ]


def test_polishing_has_the_border_that_the_network_cannot_see_beyond(tmp_path: Path) -> None:
    assert POLISH.border == SRCNN().receptive_radius
    (tmp_path / "train").mkdir()
    write(tmp_path / "train" / "T91_x3_images.h5", whole=True)
    place = Place(CPU, lambda _: 1e9, 0)
    for border, lighter in ((4, True), (0, False)):
        recipe = replace(POLISH, border=border)
        data = load_training_data(tmp_path, 3, recipe, BatchPlan(2), place, hold_out=False)
        weights = next(data.batches.epoch(0)).weights
        assert (float(weights[0].min()) < float(weights[0].max())) == lighter
