"""The HDF5 files as tensors, and what is wrong with those that are none."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from datasets import EvalDataset, ImageDataset, TrainDataset, find_file
from runtime.errors import UserError


def write(path: Path, **members: np.ndarray | dict) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in members.items():
            if isinstance(value, dict):
                group = file.create_group(name)
                for key, array in value.items():
                    group[key] = array
            else:
                file[name] = value
    return path


def patches(count: int = 5, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).uniform(16, 235, (count, 33, 33))
    return values.astype(np.float32)


def test_patches_are_scaled_to_one(tmp_path: Path) -> None:
    lr, hr = patches(seed=1), patches(seed=2)
    dataset = TrainDataset(write(tmp_path / "a.h5", lr=lr, hr=hr))
    assert len(dataset) == 5
    low, high = dataset[3]
    assert low.shape == high.shape == (1, 33, 33)
    np.testing.assert_allclose(low[0], lr[3] / 255, rtol=1e-6)
    np.testing.assert_allclose(high[0], hr[3] / 255, rtol=1e-6)


def test_each_process_opens_the_file_itself(tmp_path: Path) -> None:
    dataset = TrainDataset(write(tmp_path / "a.h5", lr=patches(), hr=patches()))
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy._file is None
    torch.testing.assert_close(copy[0], dataset[0])


def test_whole_images_keep_their_names(tmp_path: Path) -> None:
    images = {str(i): patches(1, seed=i)[0] for i in range(11)}
    path = write(tmp_path / "a.h5", lr=images, hr=images)
    assert EvalDataset(path).names == [str(i) for i in range(11)]
    with h5py.File(path, "a") as file:
        file.attrs["names"] = [f"image{i}" for i in range(11)]
    dataset = EvalDataset(path)
    assert dataset.names[10] == "image10"
    np.testing.assert_allclose(dataset[10][0][0], images["10"] / 255, rtol=1e-6)


def test_images_in_several_sizes_are_counted_once(tmp_path: Path) -> None:
    images = {str(i): patches(1, seed=i)[0] for i in range(6)}
    path = write(tmp_path / "a.h5", lr=images, hr=images)
    assert ImageDataset(path).images == 6
    for count, fits in ((3, True), (4, False), (0, False), ("many", False)):
        with h5py.File(path, "a") as file:
            file.attrs["images"] = count
        if fits:
            assert ImageDataset(path).images == count
        else:
            with pytest.raises(UserError, match="make it again"):
                ImageDataset(path)


BAD_TRAIN = {
    "no hr": ({"lr": patches()}, "no dataset 'hr'"),
    "a group": ({"lr": {"0": patches()}, "hr": patches()}, "no dataset 'lr'"),
    "shapes differ": ({"lr": patches(4), "hr": patches(5)}, "differ"),
    "none": ({"lr": patches(0), "hr": patches(0)}, "no 0"),
    "flat": ({"lr": patches()[0], "hr": patches()[0]}, "expected 3 sizes"),
    "text": ({"lr": np.full((2, 3, 3), b"x"), "hr": np.full((2, 3, 3), b"x")}, "numbers"),
}


@pytest.mark.parametrize("case", BAD_TRAIN)
def test_bad_patch_files_are_named_at_start(tmp_path: Path, case: str) -> None:
    members, message = BAD_TRAIN[case]
    path = write(tmp_path / "bad.h5", **members)
    with pytest.raises(UserError, match=message) as error:
        TrainDataset(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    hr = patches()
    hr[3, 0, 0] = value
    dataset = TrainDataset(write(tmp_path / "bad.h5", lr=patches(), hr=hr))
    with pytest.raises(UserError, match="not finite"):
        dataset.read(0, len(dataset))


BAD_EVAL = {
    "patches": ({"lr": patches(), "hr": patches()}, "no group 'lr'"),
    "empty": ({"lr": {}, "hr": {}}, "0 and 0 entries"),
    "missing": ({"lr": {"0": patches()[0]}, "hr": {}}, "1 and 0 entries"),
    "names": ({"lr": {"a": patches()[0]}, "hr": {"a": patches()[0]}}, '"0", "1"'),
    "shape": ({"lr": {"0": patches()[0]}, "hr": {"0": patches()[0, 1:]}}, "differ"),
    "cube": ({"lr": {"0": patches()}, "hr": {"0": patches()}}, "expected 2 sizes"),
}


@pytest.mark.parametrize("case", BAD_EVAL)
def test_bad_image_files_are_named_at_start(tmp_path: Path, case: str) -> None:
    members, message = BAD_EVAL[case]
    path = write(tmp_path / "bad.h5", **members)
    with pytest.raises(UserError, match=message) as error:
        EvalDataset(path)
    assert str(path) in str(error.value)


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", lr=patches(), hr=patches())
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="no readable HDF5 file"):
        TrainDataset(path)


@pytest.mark.parametrize("link", [h5py.SoftLink("/hr"), h5py.ExternalLink("other.h5", "/lr")])
def test_links_are_not_followed(tmp_path: Path, link: h5py.SoftLink | h5py.ExternalLink) -> None:
    write(tmp_path / "other.h5", lr=patches())
    path = write(tmp_path / "a.h5", hr=patches())
    with h5py.File(path, "a") as file:
        file["lr"] = link
    with pytest.raises(UserError, match="no dataset 'lr'"):
        TrainDataset(path)


def test_values_in_another_file_are_not_followed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", hr=patches())
    (tmp_path / "secret").write_bytes(bytes(patches().nbytes))
    with h5py.File(path, "a") as file:
        outside = [(str(tmp_path / "secret"), 0, patches().nbytes)]
        file.create_dataset("lr", (5, 33, 33), "f4", external=outside)
    with pytest.raises(UserError, match="not followed"):
        TrainDataset(path)


def test_the_public_set_comes_before_the_samples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prepare\.py --data-path"):
        find_file(tmp_path, "train", 3)
    (tmp_path / "train").mkdir()
    for name in ("sample_x3.h5", "T91_x3.h5"):
        (tmp_path / "train" / name).touch()
        assert find_file(tmp_path, "train", 3).name == name
