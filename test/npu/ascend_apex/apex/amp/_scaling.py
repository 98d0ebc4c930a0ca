"""``amp.scale_loss`` and the state of the loss scalers."""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch

from apex.amp._scaler import LossScaler
from apex.amp._state import say, state


@contextlib.contextmanager
def scale_loss(
    loss: torch.Tensor,
    optimizers: Any,
    loss_id: int = 0,
    model: torch.nn.Module | None = None,
    delay_unscale: bool = False,
    delay_overflow_check: bool = False,
) -> Iterator[torch.Tensor]:
    """Yield the scaled loss for ``backward``; afterwards gradients are unscaled.

    An overflow (dynamic scale only) lowers the scale and makes the next ``step`` a skip. Under O1
    the fp16 copies of the weights are forgotten. ``delay_unscale`` and ``delay_overflow_check``
    are not simulated.

    Raises:
        RuntimeError: amp.initialize was not called.
    """
    if not hasattr(state, "opt_properties"):
        raise RuntimeError(
            "Invoked 'with amp.scale_loss`, but internal Amp state has not been initialized.  "
            "amp.initialize must be called before `with amp.scale_loss`."
        )
    options = state.opt_properties
    if not options.enabled:
        yield loss
        return
    if delay_unscale or delay_overflow_check:
        raise NotImplementedError("the stand-in for apex simulates no delays")
    scaler = state.loss_scalers[loss_id]
    if not options.master_weights and not scaler.dynamic and scaler.loss_scale() == 1.0:
        yield loss.float()  # apex takes a short cut here, past combine_ddp too
    else:
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            optimizer._amp_stash.before_backward()
        scaler.before_backward()
        yield loss.float() * scaler.loss_scale()
        _unscale(optimizers, scaler, loss_id)
    if options.patch_torch_functions:
        state.handle._clear_cache()


def _unscale(optimizers: list, scaler: LossScaler, loss_id: int) -> None:
    scaler.after_backward()
    for optimizer in optimizers:
        optimizer._amp_stash.after_backward(scaler)
    if scaler.update_scale():
        for optimizer in optimizers:
            _skip_next_step(optimizer, scaler, loss_id)


def _skip_next_step(optimizer: Any, scaler: LossScaler, loss_id: int) -> None:
    stash = optimizer._amp_stash
    if stash.step_is_patched:
        return
    step = optimizer.step

    def skip(closure: Any = None) -> None:
        if closure is not None:
            raise RuntimeError("Currently, Amp does not support closure use with optimizers.")
        scale = scaler.loss_scale()
        say(
            f"Gradient overflow.  Skipping step, loss scaler {loss_id} "
            f"reducing loss scale to {scale}"
        )
        stash.clear_master_gradients()
        optimizer.step = step
        stash.step_is_patched = False

    optimizer.step = skip
    stash.step_is_patched = True


def master_params(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Yield the parameters that the optimizer updates: the masters, once they exist."""
    for group in optimizer.param_groups:
        yield from group["params"]


def state_dict(destination: dict | None = None) -> dict:
    """Return scale and count of every loss scaler."""
    result = OrderedDict() if destination is None else destination
    for index, scaler in enumerate(state.loss_scalers):
        values = {"loss_scale": scaler.loss_scale(), "unskipped": scaler._unskipped}
        result[f"loss_scaler{index}"] = values
    return result


def load_state_dict(state_dict: dict) -> None:
    """Restore what ``state_dict`` returned.

    Raises:
        RuntimeError: there is something else in it.
    """
    if len(state_dict) != len(state.loss_scalers):
        print(
            f"Warning: state_dict contains {len(state_dict)} entries, "
            f"while {len(state.loss_scalers)} loss_scalers are used"
        )
    known = [name for name in state_dict if "loss_scaler" in name]
    for scaler, name in zip(state.loss_scalers, known, strict=False):
        scaler._loss_scale = state_dict[name]["loss_scale"]
        scaler._unskipped = state_dict[name]["unskipped"]
    if unexpected := [name for name in state_dict if name not in known]:
        raise RuntimeError(
            f"Error(s) in loading state_dict. Unexpected key(s) in state_dict: {unexpected}."
        )
