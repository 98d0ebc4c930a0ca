"""``torch_npu.npu.amp``: a loss scaler with torch_npu's options and messages."""

from functools import partial
from typing import Any

import torch

from torch_npu.npu.utils import clear_npu_overflow_flag

autocast = partial(torch.autocast, "npu")


class GradScaler(torch.amp.GradScaler):
    """torch's scaler, with a static mode that looks for no overflow, as torch_npu's."""

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        dynamic: bool = True,
        enabled: bool = True,
    ) -> None:
        """Take torch's options, and ``dynamic=False`` for a scale that never changes."""
        super().__init__("npu", init_scale, growth_factor, backoff_factor, growth_interval, enabled)
        self._dynamic = dynamic
        self._flag_is_clear = False

    def scale(self, outputs: Any) -> Any:
        """Multiply a loss on the card by the scale."""
        if self._enabled and isinstance(outputs, torch.Tensor) and outputs.device.type != "npu":
            raise ValueError("Device type of outputs should be npu.")
        if self._enabled and self._dynamic and not self._flag_is_clear:
            clear_npu_overflow_flag()
            self._flag_is_clear = True
        return super().scale(outputs)

    def _maybe_opt_step(self, optimizer: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._dynamic:
            return optimizer.step(*args, **kwargs)
        if sum(found.item() for found in state["found_inf_per_device"].values()):
            print("Gradient overflow. Skipping step")
            return None
        return optimizer.step(*args, **kwargs)

    def update(self, new_scale: float | None = None) -> None:
        """Adapt the scale, or set it; a static one stays."""
        if not self._enabled:
            return
        self._flag_is_clear = False
        before = self.get_scale()
        super().update(before if new_scale is None and not self._dynamic else new_scale)
        if new_scale is None and self.get_scale() < before:
            print(f"Loss scaler reducing loss scale to {self.get_scale()}")

    def state_dict(self) -> dict:
        """Return torch's state and the mode."""
        return super().state_dict() | ({"dynamic": self._dynamic} if self._enabled else {})

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over a state."""
        super().load_state_dict(state_dict)
        if self._enabled:
            self._dynamic = state_dict["dynamic"]
