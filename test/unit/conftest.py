"""What the tests share."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from expected_files import save_image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real T91 and Set5 images; they are not part of the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the T91 and Set5 images in {folder}")
    return folder


def blurred(hr: np.ndarray) -> np.ndarray:
    return sum(np.roll(hr, shift, axis) for shift in (-1, 0, 1) for axis in (-1, -2)) / 6


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder with 44 patches, 6 images to crop from and 3 to evaluate."""
    folder = tmp_path_factory.mktemp("data set with spaces")
    rng = np.random.default_rng(7)

    def picture(height: int, width: int) -> np.ndarray:
        coarse = rng.uniform(16, 235, (height // 8 + 1, width // 8 + 1))
        return np.kron(coarse, np.ones((8, 8)))[:height, :width].astype(np.float32)

    for name in ("train", "val"):
        (folder / name).mkdir()
    with h5py.File(folder / "train/T91_x3.h5", "w") as file:
        file["hr"] = np.stack([picture(33, 33) for _ in range(44)])
        file["lr"] = blurred(file["hr"][:])
    for path, count in (("train/T91_x3_images.h5", 6), ("val/Set5_x3.h5", 3)):
        with h5py.File(folder / path, "w") as file:
            for i in range(count):
                file[f"hr/{i}"] = picture(96 + i, 100)
                file[f"lr/{i}"] = blurred(file[f"hr/{i}"][:])
            file.attrs["names"] = [f"picture{i}" for i in range(count)]
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images whose order by number is not their order by path."""
    folder = tmp_path / "some images"
    save_image(folder / "t2.png", 97, 80)
    save_image(folder / "t10.bmp", 61, 101)
    save_image(folder / "palette.png", 70, 71, "P")
    save_image(folder / "cmyk.jpg", 64, 50, "CMYK")
    save_image(folder / "alpha.png", 50, 64, "RGBA")
    save_image(folder / "grey.png", 45, 46, "L")
    (folder / ".hidden").write_text("no image")
    (folder / "more").mkdir()
    return folder
