"""What ``amp.initialize`` leaves for the other functions of amp: levels, options, loss scalers."""

from dataclasses import dataclass, field, replace

import torch


@dataclass(frozen=True)
class Options:
    """The properties of an optimisation level, after the caller's overrides."""

    opt_level: str = ""
    cast_model_type: torch.dtype | None = None
    patch_torch_functions: bool = False
    keep_batchnorm_fp32: bool | None = None
    master_weights: bool | None = None
    loss_scale: float | str = 1.0
    combine_grad: bool | None = None
    combine_ddp: bool | None = None


LEVELS = {
    "O0": Options("O0", torch.float32, master_weights=False),
    "O1": Options("O1", patch_torch_functions=True, loss_scale="dynamic"),
    "O2": Options("O2", torch.float16, False, True, True, "dynamic"),
    "O3": Options("O3", torch.float16, False, False, False),
}


def choose_options(opt_level: str, **overrides: object) -> Options:
    """Start from a level and apply the overrides that are not None.

    Raises:
        RuntimeError: apex refuses the combination.
    """
    if opt_level not in LEVELS:
        raise RuntimeError(
            f"Unexpected optimization level {opt_level}. Options are 'O0', 'O1', 'O2', 'O3'."
        )
    given = {name: value for name, value in overrides.items() if value is not None}
    if given.get("loss_scale", "dynamic") != "dynamic":
        given["loss_scale"] = float(given["loss_scale"])
    options = replace(LEVELS[opt_level], **given)
    if opt_level == "O1" and options.master_weights is not None:
        raise RuntimeError("It doesn't make sense to use master_weights with O1.")
    if opt_level == "O1" and options.keep_batchnorm_fp32 is not None:
        raise RuntimeError("With opt_level O1, keep_batchnorm_fp32 should be None.")
    for name in ("combine_grad", "combine_ddp"):
        if getattr(options, name) and opt_level not in ("O1", "O2"):
            raise RuntimeError(f"{name}=True needs opt_level='O1' or opt_level='O2'.")
    return options


@dataclass
class LossScaler:
    """A loss scale: a number, or one that halves at an overflow and grows in quiet times."""

    dynamic: bool
    _loss_scale: float
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    window: int = 2000
    smallest: float | None = None
    largest: float = 2.0**24
    _unskipped: int = 0
    _has_overflow: bool = False

    def loss_scale(self) -> float:
        """Return the scale of the next loss."""
        return self._loss_scale

    def update_scale(self) -> bool:
        """Adapt the scale after a backward pass; True when the step is to be skipped."""
        if self.dynamic and self._has_overflow:
            self._loss_scale = max(self.smallest or 0.0, self._loss_scale * self.backoff_factor)
            self._unskipped = 0
            return True
        self._unskipped += 1
        if self.dynamic and self._unskipped == self.window:
            self._loss_scale = min(self.largest, self._loss_scale * self.growth_factor)
            self._unskipped = 0
        return False


@dataclass
class State:
    """The one state of amp in a process."""

    options: Options | None = None
    enabled: bool = False
    verbosity: int = 1
    loss_scalers: list[LossScaler] = field(default_factory=list)


state = State()


def say(message: str) -> None:
    """Print, unless ``amp.initialize(verbosity=0)``."""
    if state.verbosity > 0:
        print(message)
