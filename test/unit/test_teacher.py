"""The teacher: near bicubic at first, trained like any network, its answers in a dataset folder."""

import signal
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from dataset_files import blocks, save_dataset, save_images

import train
from benchmarks import teacher
from benchmarks.teacher import Teacher, main
from datasets import EvalDataset, ImageDataset
from imaging.metrics import exact_pair
from imaging.resize import imresize
from runtime.errors import UserError, run_main


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Return a folder with 5 training images of 78×81, each in another size, too."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    save_dataset(folder)
    save_images(folder / "val/Set5_x3.h5", [blocks(np.random.default_rng(2), 30, 33)])
    rng, path = np.random.default_rng(3), folder / "train/T91_x3_images.h5"
    save_images(path, [blocks(rng, 78, 81) for _ in range(5)] + [blocks(rng, 72, 75)] * 5)
    with h5py.File(path, "a") as file:
        file.attrs["images"] = 5
    return folder


def test_it_starts_near_bicubic_at_the_small_pictures_resolution() -> None:
    torch.manual_seed(1)
    network, picture = Teacher(scale=3, blocks=1), torch.rand(2, 1, 48, 51)
    answer = network(picture).detach()
    assert answer.shape == picture.shape
    assert 0 < (answer - picture).abs().max() < 0.1
    inner = slice(18, 30)  # the borders reach 4 of the small picture's pixels
    for shift, same in ((3, True), (1, False)):
        moved = network(picture.roll(shift, dims=2)).detach()
        away = (moved - answer.roll(shift, dims=2))[:, :, inner, inner].abs().max()
        assert (away < 1e-6) == same
    assert network.muon_layers == {"body.0.first": 1.0, "body.0.second": 1.0}


@pytest.mark.parametrize("hold_out", [False, True])
def test_its_answers_take_the_originals_place(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
    *, hold_out: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(teacher, "Teacher", partial(Teacher, blocks=2))  # is quicker
    monkeypatch.setattr("training.loading.HELD_OUT", 4)
    target = tmp_path / "taught"
    words = ["--data-path", dataset, "--output-path", target, "--num-epochs=2"]
    main([*map(str, words), "--steps-per-epoch=30", *["--hold-out"] * hold_out])
    log = capsys.readouterr().out
    assert log.count(", held-out ") == (2 if hold_out else 0)
    assert log.count(", Set5_x3 ") == 2
    name = "train/T91_x3_images.h5"
    before, after = ImageDataset(dataset / name), ImageDataset(target / name)
    assert (after.images, len(after)) == (5, 4 * 10)
    with h5py.File(target / name) as file:
        assert list(file.attrs["names"]) == before.names
    errors = []
    for i in range(10):  # small pictures of half of the images' sides
        luminance = 255 * before[i][1][0].double().numpy()
        height, width = (side // 2 for side in luminance.shape)
        enlarged = imresize(imresize(luminance, height, width), 3 * height, 3 * width)
        low, answer = after[3 * 10 + i]
        torch.testing.assert_close(low[0].double(), torch.from_numpy(enlarged / 255))
        assert 0 < (answer - low).abs().mean() < 0.1
    for i in range(3 * 10):
        low, high = before[i % 10]
        if i >= 10:
            luminance = 255 * high[0].double().numpy()
            first = 0 if i < 20 else 1  # row and column
            exact = exact_pair(luminance[first:, first:], scale=3)
            low, high = (torch.from_numpy(side / 255).float().unsqueeze(0) for side in exact)
        same, answer = after[i]
        kept = hold_out and i % 5 in (0, 4)
        if i < 10:
            assert torch.equal(low, same)
            assert torch.equal(high, answer) == kept
        torch.testing.assert_close(same, low, rtol=0, atol=1e-6)
        assert torch.allclose(answer, high, rtol=0, atol=1e-6) == kept
        if not kept:
            errors.append([float((x - high).square().mean()) for x in (low, answer)])
    bicubic, taught = np.mean(errors, axis=0)
    assert taught < 0.8 * bicubic, "it has learnt something"
    pairs, copied = (EvalDataset(folder / "val/Set5_x3.h5") for folder in (dataset, target))
    for pair, copy in zip(pairs, copied, strict=True):
        assert all(map(torch.equal, pair, copy))


def test_images_that_it_cannot_take(dataset: Path, tmp_path: Path) -> None:
    path = dataset / "train/T91_x3_images.h5"
    save_images(path, [blocks(np.random.default_rng(1), 80, 81)])
    with pytest.raises(UserError, match=r"T91_x3_images\.h5: sides must be multiples of 3"):
        main(["--data-path", str(dataset), "--output-path", str(tmp_path / "taught")])
    assert not (tmp_path / "taught").exists()


def test_ctrl_c_ends_it_in_one_line(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train, "training_step", interrupted)
    words = ["--data-path", str(dataset), "--output-path", str(tmp_path / "taught")]
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run_main(lambda: main(words)) == 130
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert not (tmp_path / "taught").exists()
