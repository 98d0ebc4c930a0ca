"""What ``amp.initialize`` leaves for the other functions of amp: levels and options."""

from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Options:
    """The properties of an optimisation level, after the caller's overrides."""

    opt_level: str = ""
    enabled: bool = True
    cast_model_type: torch.dtype | None = None
    patch_torch_functions: bool = False
    keep_batchnorm_fp32: bool | None = None
    master_weights: bool | None = None
    loss_scale: float | str = 1.0
    combine_grad: bool | None = None
    combine_ddp: bool | None = None
    check_combined_tensors: bool | None = None


LEVELS = {
    "O0": Options("O0", cast_model_type=torch.float32, master_weights=False),
    "O1": Options("O1", patch_torch_functions=True, loss_scale="dynamic"),
    "O2": Options(
        "O2",
        cast_model_type=torch.float16,
        keep_batchnorm_fp32=True,
        master_weights=True,
        loss_scale="dynamic",
    ),
    "O3": Options(
        "O3", cast_model_type=torch.float16, keep_batchnorm_fp32=False, master_weights=False
    ),
}


def choose_options(opt_level: str, **overrides: Any) -> Options:
    """Start from a level and apply the overrides that are not None.

    Raises:
        RuntimeError: apex refuses the combination.
    """
    if opt_level not in LEVELS:
        raise RuntimeError(
            f"Unexpected optimization level {opt_level}. Options are 'O0', 'O1', 'O2', 'O3'."
        )
    given = {name: value for name, value in overrides.items() if value is not None}
    _check(opt_level, given)
    if given.get("loss_scale", "dynamic") != "dynamic":
        given["loss_scale"] = float(given["loss_scale"])
    keep = given.get("keep_batchnorm_fp32")
    if keep is not None:
        given["keep_batchnorm_fp32"] = {"True": True, "False": False}.get(keep, keep)
    return replace(LEVELS[opt_level], **given)


def _check(opt_level: str, given: dict[str, Any]) -> None:
    if opt_level == "O1":
        if given.get("cast_model_type", torch.float32) not in (torch.float32, False):
            raise RuntimeError("O1 inserts casts around Torch functions rather than model weights.")
        if "keep_batchnorm_fp32" in given:
            raise RuntimeError("With opt_level O1, keep_batchnorm_fp32 should be None.")
        if "master_weights" in given:
            raise RuntimeError("It doesn't make sense to use master_weights with O1.")
    elif given.get("patch_torch_functions"):
        raise RuntimeError("patch_torch_functions=True should only be set by opt_level='O1'.")
    assert given.get("keep_batchnorm_fp32", True) in (True, False, "True", "False"), (
        "keep_batchnorm_fp32 must be a boolean, the string 'True' or 'False', or None"
    )
    combined = given.get("combine_grad") or given.get("check_combined_tensors")
    if combined and opt_level not in ("O1", "O2"):
        raise RuntimeError(
            "combine_grad=True or check_combined_tensors=True should only be set by selecting "
            "opt_level='O1' or opt_level='O2'."
        )
    if "combine_ddp" in given and not given.get("combine_grad"):
        raise RuntimeError("Combine_grad should be True when combine_ddp using.. \n")


class AmpState:
    """The one state of amp in a process.

    ``initialize`` adds ``opt_properties`` and ``loss_scalers``, and under O1 only the ``handle`` of
    the casts: before that, looking for one is an AttributeError, as with apex.
    """

    def __init__(self) -> None:
        """Start with nothing initialized."""
        self.verbosity = 1


state: Any = AmpState()


def say(message: str) -> None:
    """Print, unless ``amp.initialize(verbosity=0)``."""
    if state.verbosity > 0:
        print(message)
