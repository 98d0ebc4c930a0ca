"""The ways to train: as it was published, fast, and on from trained weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

MOST_SMALL = 10_000  # steps in which conv2 is 3×3; in more it learns little
MUON, WHITENED_MUON = "muon", "whitened-muon"  # optimizers of our own


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run that the command line does not have to name."""

    name: str
    num_epochs: int
    batch_size: int  # of one process
    lr: float
    optimizer: str
    last_layer_factor: float  # the third layer's learning rate over the others'
    muon_factor: float = 1.0  # Muon's learning rate over `lr`, which is Adam's then
    identity_start: bool = False  # start near bicubic, see model.identity_init
    crop_size: int | None = None  # side of random crops from whole images; None: patches as filed
    crop_grid: int = 1  # crops begin at multiples of so many pixels
    by_error: float = 0.0  # share of crops that is drawn by bicubic's error: crops.py
    border: int = 0  # pixels at a crop's border that weigh as an image's own border does: crops.py
    steps_per_epoch: int = 0  # of crops, which have no natural end
    decay_share: float = 0.0  # of the run, at its end, in which the learning rate falls to 0
    small_share: float = 0.0  # of the run, at its start, in which conv2 is 3×3: growth.py
    ema_share: float = 0.0  # of the run that the moving average of the weights looks back
    centred: bool = False  # the average's last bias makes the mean error 0: centring.py

    def lr_factor(self, step: int, total_steps: int) -> float:
        """Return what the learning rate is multiplied with at `step`, counted from 0."""
        if not self.decay_share:
            return 1.0
        return min(1.0, (1 - step / total_steps) / self.decay_share)

    def is_small(self, step: int, total_steps: int) -> bool:
        """Tell whether conv2 is 3×3 at `step`, counted from 0."""
        return step < min(self.small_share * total_steps, MOST_SMALL)

    @property
    def uses_muon(self) -> bool:
        """Whether the optimizer is one of our own, which sees kernels as matrices."""
        return self.optimizer in (MUON, WHITENED_MUON)

    @property
    def planned(self) -> bool:
        """Whether what a step does depends on how many there will be."""
        return max(self.decay_share, self.small_share, self.ema_share) > 0

    def ema_decay(self, step: int, total_steps: int) -> float:
        """Return the decay of the weights' exponential moving average at `step`; 0: no average.

        It is smaller in the first steps, so that the start is forgotten.
        """
        window = self.ema_share * total_steps
        return min(1 - 1 / window, (step + 1) / (step + 10)) if window > 1 else 0.0


REFERENCE = Recipe(
    name="reference",
    num_epochs=500,
    batch_size=32,
    lr=1e-4,
    optimizer="adam",
    last_layer_factor=0.1,
)

FAST = Recipe(
    name="fast",
    num_epochs=10,
    batch_size=4,
    lr=1e-3,
    optimizer=MUON,
    last_layer_factor=0.05,
    muon_factor=10,
    identity_start=True,
    crop_size=48,
    by_error=0.5,
    steps_per_epoch=1000,
    decay_share=0.4,
    small_share=0.6,
    ema_share=0.02,
)

POLISH = replace(
    FAST,
    name="polish",
    num_epochs=60,
    batch_size=16,
    lr=5e-4,
    optimizer=WHITENED_MUON,
    last_layer_factor=0.5,
    muon_factor=1,
    border=8,  # the network's receptive radius
    decay_share=0.6,
    small_share=0.0,
    centred=True,
)

RECIPES = {recipe.name: recipe for recipe in (REFERENCE, FAST, POLISH)}


def apply_overrides(
    recipe: Recipe, wanted: Mapping[str, Any], processes: int, whole_images: bool
) -> Recipe:
    """Return the recipe with the command line's wishes.

    Several processes make larger batches: the default rate then grows by the square root of
    their number, as suits Adam (Malladi et al., 2022, arXiv:2205.10287). Where crops are wanted
    and there are only 33×33 patches, which have half of the pixels, a batch has twice as many.

    Args:
        recipe: what holds where nothing is wished.
        wanted: `num_epochs`, `batch_size`, `lr` and `optimizer`, each a value or None, and
            `init_weights`, which have no small kernels.
        processes: of the run.
        whole_images: whether the data set has them.
    """
    enough = recipe.batch_size if whole_images or not recipe.crop_size else 2 * recipe.batch_size
    return replace(
        recipe,
        num_epochs=wanted["num_epochs"] or recipe.num_epochs,
        batch_size=wanted["batch_size"] or enough,
        lr=wanted["lr"] or recipe.lr * math.sqrt(processes),
        optimizer=wanted["optimizer"] or recipe.optimizer,
        small_share=0.0 if wanted["init_weights"] else recipe.small_share,
    )
