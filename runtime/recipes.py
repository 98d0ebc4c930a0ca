"""The two ways to train: as it was published, and fast."""

import math
from dataclasses import dataclass

MUON = "muon"  # the fast recipe's own optimizer


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run that the command line does not have to name."""

    name: str
    num_epochs: int
    batch_size: int  # of one process
    lr: float
    optimizer: str
    last_layer_factor: float  # the third layer's learning rate over the others'
    muon_factor: float | None = None  # Muon's learning rate over `lr`, which is Adam's then
    identity_start: bool = False  # start near bicubic, see model.identity_init
    crop_size: int | None = None  # side of random crops from whole images; None: patches as filed
    steps_per_epoch: int | None = None  # where crops have no natural end
    warmup_steps: int = 0
    cosine: bool = False  # learning rate down to 0 at the last step
    average_share: float = 0.0  # of the run that the moving average of the weights looks back

    def lr_factor(self, step: int, total_steps: int) -> float:
        """Return what the learning rate is multiplied with at `step`, counted from 0."""
        factor = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.cosine:
            factor *= 0.5 * (1 + math.cos(math.pi * step / total_steps))
        return factor

    def average_decay(self, total_steps: int) -> float:
        """Return the decay of the exponential moving average of the weights; 0: no average."""
        window = self.average_share * total_steps
        return 1 - 1 / window if window > 1 else 0.0


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
    batch_size=2,
    lr=5e-4,
    optimizer=MUON,
    last_layer_factor=1.0,
    muon_factor=20,
    identity_start=True,
    crop_size=96,
    steps_per_epoch=1000,
    warmup_steps=100,
    cosine=True,
    average_share=0.02,
)

RECIPES = {recipe.name: recipe for recipe in (REFERENCE, FAST)}
