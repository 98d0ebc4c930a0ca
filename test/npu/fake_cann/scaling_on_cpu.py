"""CPU kernels of loss scaling, for torch before 2.3, which has them for CUDA only."""

import torch


def install(library: torch.library.Library) -> None:
    """Register what is missing with a library that implements aten."""
    for kernel in (_amp_foreach_non_finite_check_and_unscale_, _amp_update_scale_):
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{kernel.__name__}", "CPU"):
            library.impl(kernel.__name__, kernel, "CPU")


def _amp_foreach_non_finite_check_and_unscale_(
    gradients: list[torch.Tensor], found_inf: torch.Tensor, factor: torch.Tensor
) -> None:
    for gradient in gradients:
        if not torch.isfinite(gradient).all():
            found_inf.fill_(1)
        gradient.mul_(factor)


def _amp_update_scale_(
    scale: torch.Tensor,
    growth_tracker: torch.Tensor,
    found_inf: torch.Tensor,
    growth_factor: float,
    backoff_factor: float,
    growth_interval: int,
) -> torch.Tensor:
    if found_inf.item():
        growth_tracker.zero_()
        return scale.mul_(backoff_factor)
    growth_tracker.add_(1)
    if growth_tracker.item() == growth_interval:
        growth_tracker.zero_()
        scale.mul_(growth_factor)
    return scale
