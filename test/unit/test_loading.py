"""load_training_data: what is trained on and what is held out, from memory and from disk."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from datasets import BLOCK
from runtime.errors import UserError
from training.batches import BatchPlan, PatchBatches
from training.crops import CropBatches
from training.loading import Place, TrainingData, load_training_data
from training.recipes import FAST, REFERENCE, Recipe
from training.streaming import StreamedBatches

CPU = torch.device("cpu")
PATCHES = BLOCK + 47  # more than are read at once
IMAGES = 41  # three of them, numbers 0, 20 and 40, are held out
WHOLE = 2**17  # the number that the files hold as 1
CROPS = replace(FAST, crop_size=5, steps_per_epoch=60)
WITHOUT_LIMIT, NOTHING = float("inf"), -1.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches and images whose pixels tell which they are and where, and low from high."""
    folder = tmp_path_factory.mktemp("numbered")
    (folder / "train").mkdir()
    with h5py.File(folder / "train/T91_x3.h5", "w") as file:
        number = np.arange(PATCHES, dtype=np.float32).reshape(-1, 1, 1)
        numbered = number + np.linspace(0, 0.5, 7 * 6, dtype=np.float32).reshape(7, 6)
        file["hr"] = numbered / WHOLE
        file["lr"] = file["hr"][:] / 2
    with h5py.File(folder / "train/T91_x3_images.h5", "w") as file:
        for i in range(IMAGES):
            pixels = 1000 * i + np.arange(8 * 9, dtype=np.float32).reshape(8, 9)
            file[f"hr/{i}"], file[f"lr/{i}"] = pixels / WHOLE, pixels / WHOLE / 2
        file.attrs["names"] = [f"{i}.png" for i in range(IMAGES)]
    return folder


def load(
    folder: Path, recipe: Recipe, budget: float, *, hold_out: bool = True, **plan: int
) -> TrainingData:
    plan = {"batch_size": 8, "seed": 3, **plan}
    place = Place(CPU, lambda device: budget, num_workers=0)
    return load_training_data(folder, 3, recipe, BatchPlan(**plan), place, hold_out=hold_out)


def first_pixels(data: TrainingData, epoch: int = 0) -> list[float]:
    """The lowest number of each sample of an epoch."""
    values = []
    for lr, hr, _ in data.batches.epoch(epoch):
        assert torch.equal(lr, hr / 2), "low and high resolution belong together, in this order"
        values += (WHOLE * hr).amin(dim=(1, 2, 3)).tolist()
    return values


WAYS = [(WITHOUT_LIMIT, PatchBatches), (NOTHING, StreamedBatches)]


@pytest.mark.parametrize(("budget", "kind"), WAYS)
def test_every_patch_but_the_last_twentieth_is_trained_on_once(
    folder: Path, budget: float, kind: type
) -> None:
    data = load(folder, REFERENCE, budget)
    assert type(data.batches) is kind
    kept = PATCHES - PATCHES // 20
    seen = [round(value) for value in first_pixels(data)]
    assert len(seen) == len(set(seen)) == kept // 8 * 8
    assert max(seen) < kept and seen != sorted(seen)
    ((lr, hr),) = data.held_out
    assert torch.equal(lr, hr / 2)
    assert (WHOLE * hr[:, 0, 0, 0]).round().tolist() == list(range(kept, PATCHES))
    assert f"{kept:,} patches of 7×6" in data.description
    assert f"; {PATCHES - kept} more patches held out" in data.description


@pytest.mark.parametrize(("budget", "kind"), WAYS)
def test_without_holding_out_every_patch_is_trained_on(
    folder: Path, budget: float, kind: type
) -> None:
    data = load(folder, REFERENCE, budget, hold_out=False, batch_size=PATCHES)
    assert sorted(round(value) for value in first_pixels(data)) == list(range(PATCHES))
    assert data.held_out == []
    assert "held out" not in data.description


@pytest.mark.parametrize(("budget", "kind"), [(WITHOUT_LIMIT, CropBatches), WAYS[1]])
def test_no_crop_is_of_an_image_that_is_held_out(folder: Path, budget: float, kind: type) -> None:
    data = load(folder, CROPS, budget)
    assert type(data.batches) is kind
    corners = {divmod(round(value), 1000) for value in first_pixels(data)}
    assert {image for image, _ in corners} == set(range(IMAGES)) - {0, 20, 40}
    assert {divmod(corner, 9) for _, corner in corners} == {
        (top, left) for top in range(4) for left in range(5)
    }, "crops reach the last row and column of an image of 8×9"
    assert [round(WHOLE * hr[0, 0, 0, 0].item()) for _, hr in data.held_out] == [0, 20000, 40000]
    assert all(lr.shape == (1, 1, 8, 9) and torch.equal(lr, hr / 2) for lr, hr in data.held_out)
    assert f"from {IMAGES - 3} whole images of" in data.description
    assert "; 3 more images held out" in data.description


@pytest.mark.parametrize("recipe", [REFERENCE, CROPS])
def test_the_disk_gives_what_memory_gives(folder: Path, recipe: Recipe) -> None:
    memory, disk = (load(folder, recipe, budget, seed=5) for budget in (WITHOUT_LIMIT, NOTHING))
    for epoch in (0, 1):
        pairs = zip(memory.batches.epoch(epoch, 2), disk.batches.epoch(epoch, 2), strict=True)
        for one, other in pairs:
            for values, others in zip(one, other, strict=True):
                assert values is others is None or torch.equal(values, others)
    assert first_pixels(memory, 0) != first_pixels(memory, 1)
    if recipe is CROPS:
        weights = torch.cat([batch.weights for batch in memory.batches.epoch(0)])
        assert weights.min() < 1 < weights.max() < 2, "drawn by error, half of them"
    for budget in (WITHOUT_LIMIT, NOTHING):
        (lr, *_), (other_lr, *_) = (
            next(load(folder, recipe, budget, seed=seed).batches.epoch(1)) for seed in (5, 6)
        )
        assert not torch.equal(lr, other_lr)


@pytest.mark.parametrize("budget", [WITHOUT_LIMIT, NOTHING])
@pytest.mark.parametrize("recipe", [REFERENCE, CROPS])
def test_two_processes_share_the_samples_of_one(
    folder: Path, recipe: Recipe, budget: float
) -> None:
    whole = load(folder, recipe, budget, batch_size=8)
    parts = [load(folder, recipe, budget, batch_size=4, rank=r, world_size=2) for r in (0, 1)]
    epochs = (whole.batches.epoch(1), *(part.batches.epoch(1) for part in parts))
    for both, first, second in zip(*epochs, strict=True):
        assert torch.equal(both.high, torch.cat([first.high, second.high]))
        if recipe is CROPS:
            assert torch.equal(both.weights, torch.cat([first.weights, second.weights]))


def test_memory_of_the_computer_is_taken_where_the_device_has_none(folder: Path) -> None:
    asked = []

    def budget(device: torch.device) -> float:
        asked.append(device.type)
        return WITHOUT_LIMIT if device == CPU else NOTHING

    place = Place(torch.device("meta"), budget, num_workers=0)
    data = load_training_data(folder, 3, REFERENCE, BatchPlan(8), place, hold_out=False)
    assert asked == ["meta", "cpu"]
    assert isinstance(data.batches, PatchBatches)
    assert data.batches.lr.device == CPU
    lr, hr, _ = next(data.batches.epoch(0))
    assert lr.device.type == hr.device.type == "meta"
    assert "held on cpu" in data.description


@pytest.mark.parametrize("budget", [WITHOUT_LIMIT, NOTHING])
def test_too_few_for_one_batch_is_an_error(folder: Path, budget: float) -> None:
    with pytest.raises(UserError, match="too few for one batch; lower --batch-size"):
        load(folder, REFERENCE, budget, batch_size=PATCHES)
    kept = PATCHES - PATCHES // 20
    assert load(folder, REFERENCE, budget, batch_size=kept).batches.steps_per_epoch == 1


def test_few_patches_hold_one_out(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with h5py.File(tmp_path / "train/T91_x3.h5", "w") as file:
        file["lr"] = file["hr"] = np.ones((5, 4, 4), np.float32)
    data = load(tmp_path, REFERENCE, WITHOUT_LIMIT, batch_size=1)
    assert data.batches.steps_per_epoch == 4
    assert [len(lr) for lr, _ in data.held_out] == [1]


def test_one_image_cannot_be_held_out(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with h5py.File(tmp_path / "train/T91_x3_images.h5", "w") as file:
        file["lr/0"] = file["hr/0"] = np.ones((9, 9), np.float32)
    with pytest.raises(UserError, match=r"T91_x3_images\.h5 has one image; .* take --select eval"):
        load(tmp_path, CROPS, WITHOUT_LIMIT)


def budget_of(nbytes: float) -> Callable[[torch.device], float]:
    return lambda _: nbytes


@pytest.mark.parametrize(
    ("recipe", "nbytes", "what"),
    [
        (REFERENCE, 8 * PATCHES * 7 * 6, f"{PATCHES:,} patches of 7×6 from {{}}/T91_x3.h5, {{}}"),
        (
            CROPS,
            8 * IMAGES * 8 * 9,
            f"random crops of 5×5 from {IMAGES} whole images of {{}}/T91_x3_images.h5, {{}}",
        ),
    ],
)
def test_a_set_that_just_fits_lies_on_the_device(
    folder: Path, recipe: Recipe, nbytes: int, what: str
) -> None:
    meta = torch.device("meta")
    for room, where in ((nbytes, "held on meta"), (nbytes - 1, "read from disk by 0 workers")):
        place = Place(meta, budget_of(room), num_workers=0)
        data = load_training_data(folder, 3, recipe, BatchPlan(8), place, hold_out=False)
        assert data.description == what.format(folder / "train", where)
        assert data.batches.device == meta
        if room == nbytes:
            assert data.batches.lr.device == data.batches.hr.device == meta
    place = Place(meta, budget_of(NOTHING), num_workers=3)
    data = load_training_data(folder, 3, recipe, BatchPlan(8), place, hold_out=False)
    assert data.description.endswith("read from disk by 3 workers")
    assert data.batches.num_workers == 3


@pytest.mark.parametrize("budget", [WITHOUT_LIMIT, NOTHING])
def test_crops_of_patches_where_there_are_no_whole_images(
    folder: Path, tmp_path: Path, budget: float
) -> None:
    """As large as patches are, not square here; the last are held out: neighbours overlap."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train/T91_x3.h5").symlink_to(folder / "train/T91_x3.h5")
    data = load(tmp_path, CROPS, budget)
    lr, *_ = next(data.batches.epoch(0))
    assert lr.shape == (8, 1, 6, 6)
    assert data.batches.steps_per_epoch == 60
    out = range(PATCHES - PATCHES // 20, PATCHES)
    assert not {round(value) for value in first_pixels(data)} & set(out)
    assert [round(WHOLE * hr[0, 0, 0, 0].item()) for _, hr in data.held_out] == list(out)
    kept = f"{PATCHES - len(out):,} patches, as there are no whole images of {tmp_path}"
    assert data.description.startswith(f"random crops of 6×6 from {kept}")
    assert data.description.endswith(f"; {len(out)} more images held out")
