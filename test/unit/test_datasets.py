"""The HDF5 files as tensors, and what is wrong with those that are none."""

import errno
import os
import pickle
import shutil
import subprocess
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from runs import start

from datasets import BLOCK, EvalDataset, ImageDataset, TrainDataset, find_file, identity
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


def test_many_patches_are_read_as_each_alone(tmp_path: Path) -> None:
    """In blocks, the last of which is not full; neither side is the other."""
    numbers = 1 + np.arange(BLOCK + 3, dtype=np.float32)[:, None, None]
    lr = numbers / 16 * np.ones((1, 2, 3), np.float32)
    dataset = TrainDataset(write(tmp_path / "a.h5", lr=lr, hr=2 * lr))
    pairs = list(dataset)
    assert len(pairs) == dataset.images == BLOCK + 3
    for index in (0, BLOCK - 1, BLOCK, BLOCK + 2):
        assert all(map(torch.equal, pairs[index], dataset[index]))
        low, high = pairs[index]
        assert torch.equal(low, torch.full((1, 2, 3), (index + 1.0) / 16 / 255))
        assert torch.equal(high, torch.full((1, 2, 3), (index + 1.0) / 8 / 255))
    assert dataset.shapes == [(2, 3)] * (BLOCK + 3)
    assert dataset.nbytes == sum(side.nbytes for side in dataset.read(0, len(dataset)))


def test_pieces_of_whole_images(tmp_path: Path) -> None:
    shapes = {"0": (9, 14), "1": (20, 7)}
    lr = {name: smooth(1, 20)[0, :h, :w] for name, (h, w) in shapes.items()}
    hr = {name: image + 1 for name, image in lr.items()}
    for kind in (ImageDataset, EvalDataset):
        dataset = kind(write(tmp_path / f"{kind.__name__}.h5", lr=lr, hr=hr))
        for stored, side in zip((lr, hr), dataset.crop(1, 11, 2, 5), strict=True):
            np.testing.assert_allclose(side[0] * 255, stored["1"][11:16, 2:7], rtol=1e-6)
        assert dataset.nbytes == sum(low.nbytes + high.nbytes for low, high in dataset)
        assert (len(dataset), dataset.shapes) == (2, [(9, 14), (20, 7)])


@pytest.mark.parametrize(
    ("name", "plain"),
    [("é" * 100, True), ("é" * 100 + "a", False), ("", False), ("a/b", False), ("a\\b", False),
     ("a\nb", False)],
)  # fmt: skip
def test_names_that_could_not_be_those_of_files_are_numbers(
    tmp_path: Path, name: str, plain: bool
) -> None:
    """So are names that are not different, or too few."""
    images = {str(i): patches(1, seed=i)[0] for i in range(2)}
    path = write(tmp_path / "a.h5", lr=images, hr=images)
    for names in ([name, "other"], ["other", name], [name], [name, name], [name, "b", "c"], "ab"):
        with h5py.File(path, "a") as file:
            file.attrs["names"] = names
        usable = plain and "other" in names
        assert EvalDataset(path).names == (names if usable else ["0", "1"])


@pytest.mark.parametrize("number", [1, 1234])
def test_each_process_opens_the_file_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The first process of a container, too, whose number is 1."""
    monkeypatch.setattr(os, "getpid", lambda: number)
    dataset = TrainDataset(write(tmp_path / "a.h5", lr=patches(), hr=patches()))
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy._file is None
    torch.testing.assert_close(copy[0], dataset[0])
    images = {"0": patches(1)[0]}
    evaluation = EvalDataset(write(tmp_path / "b.h5", lr=images, hr=images))
    assert torch.equal(evaluation.crop(0, 2, 3, 4)[1], evaluation[0][1][:, 2:6, 3:7])


def test_names_may_be_bytes(tmp_path: Path) -> None:
    """As h5py writes such, and MATLAB its texts."""
    images = {str(i): patches(1, seed=i)[0] for i in range(2)}
    path = write(tmp_path / "a.h5", lr=images, hr=images)
    with h5py.File(path, "a") as file:
        file.attrs["names"] = np.array([b"baby", b"bird"])
    assert EvalDataset(path).names == ["baby", "bird"]


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
    for count, fits in ((3, True), (1, True), (4, False), (0, False), ("many", False)):
        with h5py.File(path, "a") as file:
            file.attrs["images"] = count
        if fits:
            assert ImageDataset(path).images == count
        else:
            with pytest.raises(UserError, match=r"make it again \(prepare\.py --force\)$"):
                ImageDataset(path)


BAD_TRAIN = {
    "no hr": ({"lr": patches()}, "no dataset 'hr'"),
    "a group": ({"lr": {"0": patches()}, "hr": patches()}, "no dataset 'lr'"),
    "shapes differ": ({"lr": patches(4), "hr": patches(5)}, "differ"),
    "none": ({"lr": patches(0), "hr": patches(0)}, "no size 0"),
    "flat": ({"lr": patches()[0], "hr": patches()[0]}, "expected luminance as N×H×W, "),
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
    "cube": ({"lr": {"0": patches()}, "hr": {"0": patches()}}, "expected luminance as H×W, "),
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
    with pytest.raises(
        UserError, match=r"no readable HDF5 .*; make it again \(prepare\.py --force\)"
    ):
        TrainDataset(path)


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 206. MiB"), OSError("can't allocate memory")]
)
def test_values_for_which_memory_is_short_are_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def read(*_: object) -> None:
        raise error

    dataset = TrainDataset(write(tmp_path / "a.h5", lr=patches(), hr=patches()))
    monkeypatch.setattr("arrays.StoredArray._values", read)
    with pytest.raises(type(error), match="allocate"):
        dataset.read(0, 1)


@pytest.mark.parametrize("kind", [TrainDataset, ImageDataset])
@pytest.mark.parametrize("values", ["f4", "u1"])  # of real numbers the range is looked at first
def test_damaged_values_are_an_error_that_names_the_file(
    tmp_path: Path, values: str, kind: type
) -> None:
    path, side = tmp_path / "a.h5", np.ones((6, 5), values)
    with h5py.File(path, "w") as file:
        for name in ("lr", "hr"):
            whole = kind is ImageDataset
            dataset = file.create_dataset(
                f"{name}/0" if whole else name, data=side if whole else side[None], compression=4
            )
        place = dataset.id.get_chunk_info(0).byte_offset
    content = path.read_bytes()
    path.write_bytes(content[:place] + b"damage" + content[place + 6 :])
    with pytest.raises(
        UserError, match=rf"{path} cannot be read \(.*; it is damaged, make it .*force"
    ):
        kind(path)[0]


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


def test_values_that_are_put_together_from_other_files_are_not_followed(tmp_path: Path) -> None:
    other = write(tmp_path / "other.h5", lr=patches())
    path = write(tmp_path / "a.h5", hr=patches())
    with h5py.File(path, "a") as file:
        layout = h5py.VirtualLayout((5, 33, 33), "f4")
        layout[:] = h5py.VirtualSource(other, "lr", (5, 33, 33))
        file.create_virtual_dataset("lr", layout)
    with pytest.raises(UserError, match="'lr' keeps its values in another file, which is not foll"):
        TrainDataset(path)


def test_the_public_set_comes_before_the_samples(tmp_path: Path) -> None:
    nowhere = rf"^no folder {tmp_path}/typo; is its name right\? .* --scale 3 --download fills it$"
    with pytest.raises(UserError, match=nowhere):
        find_file(tmp_path / "typo", "train", 3)
    with pytest.raises(
        UserError, match=r"no T91_x3\.h5 in .*prepare\.py --data-path .* --download$"
    ):
        find_file(tmp_path, "train", 3)
    (tmp_path / "train").mkdir()
    for name in ("sample_x3.h5", "T91_x3.h5"):
        (tmp_path / "train" / name).touch()
        assert find_file(tmp_path, "train", 3) == tmp_path / "train" / name
    command = rf"no Set5_x2_images\.h5 in {tmp_path}/val; .* --data-path {tmp_path} --scale 2"
    own = " --train-images FOLDER --eval-images FOLDER$"
    with pytest.raises(UserError, match=command + own):
        find_file(tmp_path, "val", 2, "_images")
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=rf"{command} --download$"):
        find_file(tmp_path, "val", 2, "_images")
    (tmp_path / "val").mkdir()
    (tmp_path / "val/sample_x3.h5").touch()
    with pytest.raises(UserError, match=r"--scale 2 --sample$"):
        find_file(tmp_path, "val", 2)
    for name in ("sample_x2_images.h5", "Set5_x2_images.h5"):
        (tmp_path / "val" / name).touch()
        assert find_file(tmp_path, "val", 2, "_images") == tmp_path / "val" / name


def test_whole_images_of_the_samples_do_not_stand_in_for_the_public_patches(tmp_path: Path) -> None:
    """Or a run would train on these and be measured on Set5."""
    (tmp_path / "train").mkdir()
    for name in ("sample_x3.h5", "sample_x3_images.h5", "T91_x3.h5", "T91_x3_images.h5"):
        (tmp_path / "train" / name).touch()
        assert find_file(tmp_path, "train", 3, "_images", "").name == name


def smooth(count: int, size: int = 33) -> np.ndarray:
    return np.random.default_rng(3).uniform(16, 235, (count, size, size)).astype("f4")


KINDS = {  # names, change of the input, of the target, what the log says
    "plain": (("lr", "hr"), lambda a: a, []),
    "0-1": (("lr", "hr"), lambda a: a / 255, ["lr holds 0–1", "hr holds 0–1"]),
    "float64 0-1": (("lr", "hr"), lambda a: a.astype("f8") / 255, ["lr holds 0–1", "hr holds 0–1"]),
    "float16": (("lr", "hr"), lambda a: a.astype("f2"), []),
    "big endian": (("lr", "hr"), lambda a: a.astype(">f4"), []),
    "capitals": (("LR", "HR"), lambda a: a, []),
    "n1hw": (("lr", "hr"), lambda a: a[:, None], []),
    "nhw1": (("lr", "hr"), lambda a: a[..., None], []),
    "matlab": (("lr", "hr"), lambda a: a.transpose(1, 2, 0), ["lr has its", "hr has its"]),
    "matlab, 1": (("lr", "hr"), lambda a: a[None].transpose(2, 3, 0, 1),
                  ["lr has its", "hr has its"]),
    "caffe": (("data", "label"), lambda a: a[:, None] / 255, ["data holds 0–1", "label holds 0–1"]),
}  # fmt: skip


@pytest.mark.parametrize("cut", [0, 6])
@pytest.mark.parametrize(
    ("case", "count"),  # 33×33×33 tells nothing of MATLAB's order, and is read as usual
    [(case, count) for case in KINDS for count in (5, 33, 252) if (case, count) != ("matlab", 33)],
)
def test_patches_as_other_code_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture, case: str, count: int, cut: int
) -> None:
    """All are the same patches, in other names, axes and ranges."""
    names, change, said = KINDS[case]
    lr, hr = smooth(count), smooth(count) + 1
    middle = np.s_[:, cut : 33 - cut, cut : 33 - cut]
    path = write(tmp_path / "a.h5", **{names[0]: change(lr), names[1]: change(hr[middle])})
    dataset = TrainDataset(path)
    log = capsys.readouterr().out
    assert dataset.shape == (count, 33 - 2 * cut, 33 - 2 * cut)
    tolerance = 0.1 if case == "float16" else 1e-4
    for values, side in zip((lr, hr), dataset.read(0, count), strict=True):
        np.testing.assert_allclose(side[:, 0] * 255, values[middle], atol=tolerance)
    low, high = dataset.take(torch.tensor([4, 1]))
    np.testing.assert_allclose(low[:, 0] * 255, lr[middle][[4, 1]], atol=tolerance)
    assert torch.equal(high[1], dataset[1][1])
    crop = dataset.crop(2, 3, 1, 9)
    np.testing.assert_allclose(crop[0][0] * 255, lr[middle][2, 3:12, 1:10], atol=tolerance)
    said = said + ([f"{names[0]} is cut to its middle, 21×21"] if cut else [])
    if count == 33 and case == "matlab":  # 33 × 33 × 33: either way it is 33 patches
        return
    assert len(log.splitlines()) == len(said), log
    assert all(f"note: {path}: {line}" in log for line in said)


@pytest.mark.parametrize("unit", [1, 255])
@pytest.mark.parametrize("axes", [(), (0,), (-1,), (0, 1), (0, -1)])
def test_images_as_other_code_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture, axes: tuple[int, ...], unit: int
) -> None:
    wide = {str(i): smooth(1, 40 + i)[0, :33] for i in range(3)}
    wide["1"][:] = 0  # flat black tells nothing, whichever range it is of
    stored = {name: np.expand_dims(image / unit, axes) for name, image in wide.items()}
    dataset = EvalDataset(write(tmp_path / "a.h5", lr=stored, hr=stored))
    assert dataset.shapes == [(33, 40), (33, 41), (33, 42)]
    for name, (lr, hr) in zip(wide, dataset, strict=True):
        np.testing.assert_allclose(lr[0] * (255 / unit), wide[name] / unit, atol=1e-4)
        assert torch.equal(lr, hr)
    assert capsys.readouterr().out.count("holds 0–1") == (0 if unit == 1 else 2)


def test_flat_black_and_integers_are_0_to_255(tmp_path: Path) -> None:
    ones = np.ones((5, 33, 33), "u1")
    low, high = TrainDataset(write(tmp_path / "a.h5", lr=ones, hr=ones * 0.0)).read(0, 5)
    assert (float(low.max()), float(high.max())) == (np.float32(1 / 255), 0.0)


def test_a_black_picture_at_the_beginning_tells_no_range(tmp_path: Path) -> None:
    image = smooth(1)[0]
    images = {"0": image * 0.0, "1": image}
    dataset = EvalDataset(write(tmp_path / "a.h5", lr=images, hr=images))
    for side in dataset[1]:
        np.testing.assert_allclose(side[0], image / 255, atol=1e-6)


def test_a_range_that_changes_in_the_file_is_refused(tmp_path: Path) -> None:
    images = {"0": smooth(1)[0] / 255, "1": smooth(1)[0]}
    with pytest.raises(UserError, match=r"a\.h5: lr/1 begins with values of 0–1 and goes on"):
        EvalDataset(write(tmp_path / "a.h5", lr=images, hr=images))


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("f4", -1, 1),
        ("f4", 0, 511),
        ("f8", -128, 255),
        ("u2", 0, 65535),
        ("i2", -128, 127),
    ],
)
def test_a_range_that_is_none_of_the_known_is_refused(
    tmp_path: Path, kind: str, low: int, high: int
) -> None:
    values = np.linspace(low, high, 5 * 33 * 33).reshape(5, 33, 33).astype(kind)
    path = write(tmp_path / "a.h5", lr=values, hr=smooth(5))
    message = rf"a\.h5: lr holds values from {low} to {high}; expected 0–255 or 0–1$"
    with pytest.raises(UserError, match=message):
        TrainDataset(path).read(0, 5)


def test_numbers_beyond_float32_are_told_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", lr=np.full((5, 33, 33), 1e300), hr=smooth(5))
    with warnings.catch_warnings(), pytest.raises(UserError, match="not finite"):
        warnings.simplefilter("error")
        TrainDataset(path).read(0, 5)


@pytest.mark.parametrize("unit", [1, 255])
def test_bicubic_may_go_beyond_black_and_white(tmp_path: Path, unit: int) -> None:
    """As MATLAB's does where the image is of real numbers."""
    lr, hr = smooth(5), smooth(5)
    lr[0, 0, :2], hr[0, 0, :2] = (-51, 306), (0, 255)
    dataset = TrainDataset(write(tmp_path / "a.h5", data=lr * unit / 255, label=hr * unit / 255))
    for values, side in zip((lr, hr), dataset.read(0, 5), strict=True):
        np.testing.assert_allclose(side[:, 0] * 255, values, atol=1e-4)


def test_a_set_is_known_by_its_name_its_size_and_its_values(tmp_path: Path) -> None:
    told = set()
    for number, hr in enumerate((smooth(5), 255 - smooth(5), smooth(5)[::-1], smooth(6))):
        path = tmp_path / str(number) / "a.h5"
        path.parent.mkdir()
        told.add(identity(TrainDataset(write(path, lr=smooth(len(hr)), hr=hr))))
        images = {str(i): plane for i, plane in enumerate(hr)}
        path = write(path.with_name("b.h5"), lr=images, hr=images)
        assert identity(EvalDataset(path)) == identity(ImageDataset(path))
        told.add(identity(ImageDataset(path)))
    assert len(told) == 8
    same = TrainDataset(write(tmp_path / "a.h5", lr=smooth(5), hr=smooth(5)))
    assert identity(same) in told
    assert identity(same).startswith("a.h5 (5 samples, 43,560 bytes, CRC-32 ")


SIZES = {
    "smaller input": ((5, 11, 11), (5, 33, 33), "differ, 5×11×11 and 5×33×33; expected"),
    "odd margin": ((5, 33, 33), (5, 20, 20), "differ"),
    "other margins": ((5, 33, 33), (5, 21, 23), "differ"),
    "other number": ((5, 33, 33), (6, 33, 33), "differ"),
    "colour": ((5, 3, 33, 33), (5, 3, 33, 33), "expected luminance as N×H×W, H×W×N, N×1×H×W, "),
}  # fmt: skip


@pytest.mark.parametrize("case", SIZES)
def test_sizes_that_do_not_fit_are_named(tmp_path: Path, case: str) -> None:
    low, high, message = SIZES[case]
    path = write(tmp_path / "a.h5", lr=np.ones(low), hr=np.ones(high))
    with pytest.raises(UserError, match=message):
        TrainDataset(path)


def test_a_file_that_another_program_writes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", lr=patches(), hr=patches())
    writer = "import h5py, sys; f = h5py.File(sys.argv[1], 'a'); print('open', flush=True); input()"
    with start("-c", writer, path, stdin=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(
            UserError, match=r"a\.h5 is open in another program.*prepare\.py --force"
        ):
            TrainDataset(path)
        process.stdin.close()
    assert len(TrainDataset(path)) == 5


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As NFS without its lock service; HDF5 itself passes over ENOSYS alone."""
    path, with_locks = write(tmp_path / "a.h5", lr=patches(), hr=patches()), h5py.File

    def file(name: Path, mode: str, locking: bool | None = None) -> h5py.File:
        if locking is None:
            text = f"(unable to lock file, errno = {number}, error message = 'No locks available')"
            raise OSError(number, f"Unable to synchronously open file {text}")
        return with_locks(name, mode, locking=locking)

    monkeypatch.setattr(h5py, "File", file)
    first, second = TrainDataset(path), TrainDataset(path)
    assert torch.equal(first[1][0], second[1][0])


def test_a_file_is_open_without_a_lock_already(tmp_path: Path) -> None:
    """A process that reads was forked from one that has it open so; HDF5 wants all alike."""
    path = write(tmp_path / "a.h5", lr=patches(), hr=patches())
    with h5py.File(path, "r", locking=False):
        with pytest.raises(OSError, match="locking flag"):
            h5py.File(path, "r")
        assert len(TrainDataset(path)) == 5


def test_a_file_whose_writer_was_killed(tmp_path: Path) -> None:
    """HDF5 marks what is being written in its newer formats; the copy stands for the power cut."""
    with h5py.File(tmp_path / "written.h5", "w", libver="latest") as file:
        file.flush()
        shutil.copyfile(file.filename, tmp_path / "a.h5")
    with pytest.raises(UserError, match=r"a\.h5 is open in another program, or one that wrote it"):
        TrainDataset(tmp_path / "a.h5")


def test_values_that_gzip_shrinks_to_a_thousandth_are_there(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in ("lr", "hr"):
            flat = np.full((2000, 33, 33), 16.0, np.float32)
            file.create_dataset(name, data=flat, chunks=flat.shape, compression=9)
        assert flat.nbytes > 1000 * file["lr"].id.get_storage_size()
    assert len(TrainDataset(tmp_path / "a.h5")) == 2000
