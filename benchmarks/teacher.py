"""A larger network that learns from the same images, and makes SRCNN's targets of them.

    python benchmarks/teacher.py --data-path dataset --scale 3 --output-path taught [--hold-out]
    python train.py --data_url taught --scale 3 --recipe fast --num-epochs 40

It writes a dataset folder whose whole training images have the teacher's answers in place of the
originals. Those hold what no network can know of the small picture, which is noise to SRCNN's
training. Each image is there three times: as prepare.py made it, and twice never rounded. A fourth
time the small picture is larger, half of the image at ×3, and only the teacher knows an answer.
"""

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from datasets import EvalDataset, ImageDataset, find_file
from imaging.metrics import exact_pair
from imaging.resize import imresize
from inference.last_layer import in_layout
from inference.restore import self_ensemble
from runtime.device import choose_device, keep_plain_formats
from runtime.distributed import World
from runtime.errors import UserError, end_at_signals, run_main
from runtime.files import whole_file
from runtime.numbers import COUNT, SEED
from runtime.options import Parser
from train import train_epoch
from training.batches import BatchPlan
from training.evaluation import mean_psnr
from training.loading import Place, is_held_out, load_training_data
from training.muon import MuonAdam
from training.precision import Precision
from training.precision_choice import choose_precision
from training.recipes import MUON, Recipe
from training.state import TrainingState

MEMORY = 4 * 2**30  # bytes that the training set may take; T91 needs 0.15e9


class Block(nn.Module):
    """Adds to its input what two convolutions make of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return N×C×H×W of the same shape."""
        return x + self.second(functional.relu(self.first(x)))


class Teacher(nn.Module):
    """A residual network (Lim et al., 2017, arXiv:1707.02921) at the small picture's resolution.

    There a pixel of the result costs little more than SRCNN's, 66,000 multiply-adds at ×3, with ten
    times as many weights.

    Args:
        scale: enlargement factor.
        width: feature maps.
        blocks: of two layers each.
    """

    def __init__(self, scale: int, width: int = 64, blocks: int = 8) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(scale**2, width, 3, padding=1)
        self.body = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.tail = nn.Conv2d(width, scale**2, 3, padding=1)
        nn.init.normal_(self.tail.weight, std=1e-3)  # starts near bicubic
        nn.init.zeros_(self.tail.get_parameter("bias"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Restore bicubic pictures, N×1×H×W, 0–1, whose sides are multiples of the scale."""
        small = functional.pixel_unshuffle(x, self.scale) - 0.5
        change = self.tail(self.body(self.head(small)))
        return x + functional.pixel_shuffle(change.float(), self.scale)

    @property
    def muon_layers(self) -> dict[str, float]:
        """The layers for Muon, all but the first and the last, at one rate."""
        layers = self.body.named_modules(prefix="body")
        return {name: 1.0 for name, layer in layers if isinstance(layer, nn.Conv2d)}


def teacher_recipe(scale: int, num_epochs: int, steps_per_epoch: int) -> Recipe:
    """Return how a teacher is trained; its crops hold 24×24 pixels of the small picture."""
    return Recipe(
        name="teacher",
        num_epochs=num_epochs,
        batch_size=4,
        lr=5e-4,
        optimizer=MUON,
        last_layer_factor=1.0,
        muon_factor=20,
        crop_size=24 * scale,
        crop_grid=scale,
        by_error=0.5,
        steps_per_epoch=steps_per_epoch,
        decay_share=0.4,
        ema_share=0.025,
    )


def train_teacher(
    data_path: Path, scale: int, recipe: Recipe, precision: Precision, *, hold_out: bool, seed: int
) -> Teacher:
    """Train on a dataset folder; prints each epoch's loss and PSNR, `modelzoo` protocol."""
    world = World(precision.device)
    plan = BatchPlan(recipe.batch_size, seed=seed)
    place = Place(world.device, lambda _: MEMORY, 0)
    data = load_training_data(data_path, scale, recipe, plan, place, hold_out=hold_out)
    eval_set = EvalDataset(find_file(data_path, "val", scale))
    measured = {eval_set.path.stem: [(lr[None], hr[None]) for lr, hr in eval_set]}
    if hold_out:
        measured["held-out"] = data.held_out
    measured = {
        name: [(lr.to(world.device), hr.to(world.device)) for lr, hr in pairs]
        for name, pairs in measured.items()
    }
    print(f"{data.description}; PSNR by the modelzoo protocol")
    keep_plain_formats(world.device)  # as Muon sees matrices
    torch.manual_seed(seed)
    teacher = in_layout(Teacher(scale).to(world.device), precision.memory_format)
    optimizer = MuonAdam(
        teacher, recipe.lr, recipe.muon_factor * recipe.lr, layers=teacher.muon_layers
    )
    steps = recipe.num_epochs * data.batches.steps_per_epoch
    state = TrainingState(teacher, optimizer, recipe, world, precision, steps)
    averaged = in_layout(Teacher(scale).to(world.device), precision.memory_format).eval()
    for epoch in range(recipe.num_epochs):
        train_epoch(state, data.batches, functional.mse_loss)
        averaged.load_state_dict(state.weights())
        psnr = {name: mean_psnr(averaged, pairs, world) for name, pairs in measured.items()}
        scores = "".join(f", {name} {value:.3f} dB" for name, value in psnr.items())
        print(f"epoch {epoch}: loss {state.mean_loss():.6f}{scores}")
        state.end_epoch(
            {
                "epoch": epoch,
                "psnr": psnr[eval_set.path.stem],
                "held_out_psnr": psnr.get("held-out"),
            }
        )
    return averaged


@contextmanager
def copied(source: Path, folder: Path) -> Iterator[h5py.File]:
    """Copy an HDF5 file into a folder and open the copy, which gets its name when it is whole."""
    with whole_file(folder / source.name) as temporary:
        shutil.copyfile(source, temporary)
        with h5py.File(temporary, "r+") as file:
            yield file


def write_pairs(data_path: Path, scale: int, target: Path) -> None:
    """Write the dataset folder with two more pairs of each image, as the `paper` protocol has them.

    The `modelzoo` protocol rounds its picture to 8 bits and clips it, on the way down and on the
    way up, these do not. The second is of the image without its first rows and columns, half of
    the scale of them, so that the small picture's pixels divide it elsewhere.
    """
    source = find_file(data_path, "train", scale, "_images")
    images = ImageDataset(source)
    with copied(source, target / "train") as file:
        file.attrs["images"] = images.images
        for kind, left_out in enumerate((0, scale // 2), start=1):
            for i, (_, hr) in enumerate(images):
                luminance = 255 * hr[0, left_out:, left_out:].double().numpy()
                for group, values in zip(("lr", "hr"), exact_pair(luminance, scale), strict=True):
                    file[f"{group}/{kind * len(images) + i}"] = values.astype(np.float32)
    with copied(find_file(data_path, "val", scale), target / "val"):
        pass


def without_originals(images: ImageDataset, scale: int) -> Iterator[np.ndarray]:
    """Yield what bicubic makes, H×W, 0–255, of small pictures that are larger than the images'.

    Their sides are an image's over half of the scale, rounded up: a half at ×3 and ×4, all at ×2.
    """
    reduction = (scale + 1) // 2
    for _, hr in images:
        pixels = 255 * hr[0].double().numpy()
        height, width = (side // reduction for side in pixels.shape)
        small = imresize(pixels, height, width)
        yield imresize(small, height * scale, width * scale)


@torch.inference_mode()
def write_taught(
    data_path: Path,
    scale: int,
    teacher: nn.Module,
    precision: Precision,
    target: Path,
    hold_out: bool,
    more: Iterable[np.ndarray],
) -> None:
    """Write the dataset folder with the teacher's answers, each the mean over 8 views.

    Answers to `more` bicubic pictures, H×W, 0–255, as many for each image, come behind them.
    Held-out images keep their originals, in their own size; the other sizes of them are not used.
    """

    def answer(low: torch.Tensor) -> np.ndarray:
        with precision.autocast():
            high = self_ensemble(teacher, low.unsqueeze(0).to(precision.device))
        return 255 * high[0, 0].cpu().numpy()

    source = find_file(data_path, "train", scale, "_images")
    images = ImageDataset(source)
    with copied(source, target / "train") as file:
        for i in range(len(images)):
            if not (hold_out and is_held_out(i, images)):
                file[f"hr/{i}"][...] = answer(images[i][0])
        for i, picture in enumerate(more, start=len(images)):
            low = picture.astype(np.float32)
            file[f"lr/{i}"], file[f"hr/{i}"] = low, answer(torch.from_numpy(low / 255).unsqueeze(0))
    with copied(find_file(data_path, "val", scale), target / "val"):
        pass


def main(argv: Sequence[str] | None = None) -> None:
    """Train a teacher and write what it teaches."""
    parser = Parser(__doc__)
    parser.add_argument("--data-path", type=Path, required=True, help="as prepare.py fills it")
    parser.add_argument("--output-path", type=Path, required=True, help="dataset folder to write")
    parser.add_argument("--scale", type=COUNT, default=3)
    parser.add_argument("--num-epochs", type=COUNT, default=20)
    parser.add_argument("--steps-per-epoch", type=COUNT, default=1000)
    parser.add_argument("--seed", type=SEED, default=1)
    parser.add_argument("--hold-out", action="store_true", help="a twentieth of the images")
    args = parser.parse_args(argv)
    images = ImageDataset(find_file(args.data_path, "train", args.scale, "_images"))
    if any(side % args.scale for shape in images.shapes for side in shape):
        raise UserError(
            f"{images.path}: sides must be multiples of {args.scale}, as prepare.py makes them"
        )
    precision = choose_precision("auto", choose_device("auto").value, apex_wanted=False).value
    recipe = teacher_recipe(args.scale, args.num_epochs, args.steps_per_epoch)
    with TemporaryDirectory() as folder:
        pairs = Path(folder)
        write_pairs(args.data_path, args.scale, pairs)
        teacher = train_teacher(
            pairs, args.scale, recipe, precision, hold_out=args.hold_out, seed=args.seed
        )
        write_taught(
            pairs, args.scale, teacher, precision, args.output_path, args.hold_out,
            without_originals(images, args.scale),
        )  # fmt: skip


if __name__ == "__main__":
    end_at_signals()
    sys.exit(run_main(main))
