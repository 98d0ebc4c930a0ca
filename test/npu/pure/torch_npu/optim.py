"""``torch_npu.optim``: the fused optimizers with torch_npu's rules."""

from typing import Any

from simnpu.fused import FusedRules, fused_optimizers


class _Rules(FusedRules):
    """torch_npu's: ``zero_grad`` must keep the gradients' memory."""

    is_fused_optimizer = True

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Zero the gradients in place."""
        if set_to_none:
            raise ValueError("set_to_none is not supported in fused optimizers")
        self.check_combined()
        self.zero_gradients()

    def step(self, closure: Any = None) -> Any:
        """Update every group."""
        self.check_combined()
        return super().step(closure)


globals().update(fused_optimizers(_Rules))
