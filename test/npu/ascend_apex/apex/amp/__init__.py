"""``apex.amp``: mixed precision by optimisation level."""

from apex.amp._casts import disable_casts
from apex.amp._initialize import initialize
from apex.amp._scaling import load_state_dict, master_params, scale_loss, state_dict
from apex.amp._state import state as _amp_state

__all__ = [
    "_amp_state",
    "disable_casts",
    "initialize",
    "load_state_dict",
    "master_params",
    "scale_loss",
    "state_dict",
]
