"""``apex.optimizers``: the fused optimizers with apex's rules."""

from typing import Any

from simnpu.fused import FusedRules, Lamb, fused_optimizers

__all__ = ["Lamb", "NpuFusedAdadelta", "NpuFusedAdam", "NpuFusedLamb", "NpuFusedSGD"]  # noqa: F822


class _Rules(FusedRules):
    """apex's: nothing works before ``amp.initialize``, which also sees to ``zero_grad``."""

    is_npu_fused_optimizer = True

    def step(self, closure: Any = None) -> Any:
        """Update every group."""
        if not hasattr(self, "_amp_stash"):
            name = type(self).__name__
            raise RuntimeError(f"apex.optimizers.{name} should be used with AMP.")
        self.check_combined()
        return super().step(closure)


globals().update(fused_optimizers(_Rules))
