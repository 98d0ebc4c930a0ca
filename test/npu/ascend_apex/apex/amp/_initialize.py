"""``amp.initialize``: refusals first, then the changes to models and optimizers."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from simnpu import record
from torch.nn.parallel import DataParallel, DistributedDataParallel

from apex.amp import _casts, _models
from apex.amp._optimizer import process_optimizer
from apex.amp._scaler import LossScaler
from apex.amp._state import Options, choose_options, say, state


def initialize(
    models: Any,
    optimizers: Any = None,
    enabled: bool = True,
    opt_level: str = "O1",
    cast_model_type: torch.dtype | None = None,
    patch_torch_functions: bool | None = None,
    keep_batchnorm_fp32: bool | str | None = None,
    master_weights: bool | None = None,
    loss_scale: float | str | None = None,
    cast_model_outputs: torch.dtype | None = None,
    num_losses: int = 1,
    verbosity: int = 1,
    dynamic_init_scale: float = 2.0**16,
    scale_growth_factor: float = 2.0,
    scale_backoff_factor: float = 0.5,
    scale_window: int = 2000,
    min_loss_scale: float | None = None,
    max_loss_scale: float = 2.0**24,
    combine_grad: bool | None = None,
    combine_ddp: bool | None = None,
    ddp_replica_count: int = 4,
    user_cast_preferred: bool | None = None,
    check_combined_tensors: bool | None = None,
) -> Any:
    """Prepare models and optimizers for mixed precision.

    The signature is apex's. ``user_cast_preferred`` is not simulated; ``ddp_replica_count`` and
    ``check_combined_tensors`` change no result.

    Returns:
        Models and optimizers, single or in lists as they were given.

    Raises:
        RuntimeError: apex refuses the models, the optimizers or the options.
        TypeError: the optimizers or models are neither one nor a list.
        ValueError: ``combine_ddp`` without a process group.
    """
    given = {"loss_scale": loss_scale, "combine_grad": combine_grad, "combine_ddp": combine_ddp}
    names = [type(optimizer).__name__ for optimizer in _as_list(optimizers)]
    record.apex_initialize.append({"opt_level": opt_level, "optimizers": names} | given)
    state.verbosity = verbosity
    if not enabled:
        state.opt_properties = Options(enabled=False)
        return models if optimizers is None else (models, optimizers)
    state.opt_properties = options = choose_options(
        opt_level,
        cast_model_type=cast_model_type,
        patch_torch_functions=patch_torch_functions,
        keep_batchnorm_fp32=keep_batchnorm_fp32,
        master_weights=master_weights,
        check_combined_tensors=check_combined_tensors,
        **given,
    )
    for name, value in asdict(options).items():
        say(f"{name:22} : {value}")
    _check_kind("optimizers", optimizers, torch.optim.Optimizer)
    _check_kind("models", models, torch.nn.Module)
    for model in _as_list(models):
        _check_model(model)
    _convert_models(_as_list(models), _as_list(optimizers), options, cast_model_outputs)
    for optimizer in _as_list(optimizers):
        process_optimizer(optimizer, options)
    factors = dynamic_init_scale, scale_growth_factor, scale_backoff_factor, scale_window
    limits = min_loss_scale, max_loss_scale
    scalers = (LossScaler(options.loss_scale, *factors, limits) for _ in range(num_losses))
    state.loss_scalers = list(scalers)
    if options.patch_torch_functions:
        state.handle = _casts.Handle()
        for optimizer in _as_list(optimizers):
            optimizer.step = _without_casts(optimizer.step)
    _prepare_combining(_as_list(models), _as_list(optimizers), options)
    return models if optimizers is None else (models, optimizers)


def _as_list(value: Any) -> Sequence[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _check_kind(what: str, value: Any, kind: type) -> None:
    optional = what == "optimizers" and value is None
    if not optional and not isinstance(value, (kind, list)):
        raise TypeError(f"{what} must be either a single one or a list of {what}.")


def _check_model(model: torch.nn.Module) -> None:
    if isinstance(model, (DistributedDataParallel, DataParallel)):
        raise RuntimeError(
            f"Incoming model is an instance of {type(model).__name__}. Parallel wrappers should "
            "only be applied to the model(s) AFTER they have been returned from amp.initialize."
        )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found = f"Found param {name} with type {tensor.dtype} on {tensor.device}, expected "
        if tensor.dtype == torch.float16:
            raise RuntimeError(
                f"{found}torch.npu.FloatTensor. When using amp.initialize, you do not need to call "
                ".half() on your model before passing it."
            )
        if tensor.is_floating_point() and tensor.device.type != "npu":
            raise RuntimeError(
                f"{found}torch.npu.FloatTensor. When using amp.initialize, you need to provide a "
                "model with parameters located on a Npu device."
            )


def _convert_models(
    models: Any, optimizers: Any, options: Options, outputs: torch.dtype | None
) -> None:
    dtype = options.cast_model_type
    for model in models:
        if dtype:
            keep = bool(options.keep_batchnorm_fp32)
            _models.convert_model(model, dtype, outputs or torch.float32, keep)
        elif outputs is not None:
            _models.cast_outputs(model, outputs)
    if dtype:
        for optimizer in optimizers:  # casts the states that it may have
            optimizer.load_state_dict(optimizer.state_dict())


def _without_casts(step: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with _casts.disable_casts():
            return step(*args, **kwargs)

    return call


def _prepare_combining(models: Any, optimizers: Any, options: Options) -> None:
    if options.combine_grad or any(optimizer.is_npu_fused_optimizer for optimizer in optimizers):
        torch.nn.Module.zero_grad = _zero_grad_in_place
        say("Warning: torch.nn.Module.zero_grad() keeps the gradients, for combined grad.")
    if options.combine_ddp:
        for model in models:
            for parameter in model.parameters():
                dist.broadcast(parameter, 0)
            model._amp_combines_ddp = True
        _refuse_wrapping()


def _zero_grad_in_place(self: torch.nn.Module, set_to_none: bool = False) -> None:
    """``Module.zero_grad`` once gradients are combined: they must keep their memory."""
    assert set_to_none is False, "For combined grad, `set_to_none` must be False."
    for parameter in self.parameters():
        if parameter.grad is not None:
            parameter.grad.detach_().zero_()


def _refuse_wrapping() -> None:
    """With ``combine_ddp`` gradients are averaged already: a wrapper would do it twice.

    (On a card that goes unnoticed.)
    """
    wrap = DistributedDataParallel.__init__

    def checked(self: Any, module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        if getattr(module, "_amp_combines_ddp", False):
            raise RuntimeError("combine_ddp=True replaces DistributedDataParallel; do not wrap.")
        wrap(self, module, *args, **kwargs)

    DistributedDataParallel.__init__ = checked
