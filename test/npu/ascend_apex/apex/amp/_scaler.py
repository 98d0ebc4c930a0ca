"""Loss scales, and how an overflow is found: in the gradients, or by the flag of the chip."""

import torch
import torch.distributed as dist
import torch_npu


class LossScaler:
    """A loss scale: a number, or one that halves at an overflow and grows in quiet times.

    A number is never checked for overflow. A dynamic scale looks at the gradients where the chip
    keeps inf and nan; where it saturates it reads the chip's overflow flag, once a backward pass,
    and ranks tell one another.
    """

    def __init__(
        self,
        loss_scale: float | str,
        init_scale: float,
        growth_factor: float,
        backoff_factor: float,
        window: int,
        limits: tuple[float | None, float],
    ) -> None:
        """Take the options of ``amp.initialize``; ``limits`` hold for a dynamic scale."""
        self.dynamic = loss_scale == "dynamic"
        self._smallest, self._largest = limits
        self._loss_scale = min(self._largest, init_scale) if self.dynamic else loss_scale
        self._growth_factor, self._backoff_factor = growth_factor, backoff_factor
        self._window = window
        self._unskipped = 0
        self._has_overflow = False
        self._keeps_inf = torch_npu.npu.utils.is_support_inf_nan()
        self._overflow_buf = torch.zeros(1, device="npu")
        self._dist_overflow_count = torch.zeros(1, device="npu")
        self._in_a_group = dist.is_initialized()

    def loss_scale(self) -> float:
        """Return the scale of the next loss."""
        return self._loss_scale

    def before_backward(self) -> None:
        """Lower the flag of a chip that saturates."""
        if self.dynamic and not self._keeps_inf:
            torch_npu.npu.clear_npu_overflow_flag()

    def after_backward(self) -> None:
        """Read the flag of a chip that saturates, on every rank."""
        self._has_overflow = False
        if not self.dynamic or self._keeps_inf:
            return
        self._has_overflow = bool(torch_npu.npu.get_npu_overflow_flag())
        if self._in_a_group:
            self._dist_overflow_count.add_(int(self._has_overflow))
            dist.all_reduce(self._dist_overflow_count)
            if not self._has_overflow:
                self._has_overflow = self._dist_overflow_count.item() != 0
            self._dist_overflow_count.zero_()

    @property
    def looks_at_gradients(self) -> bool:
        """Whether ``multiply`` finds overflow."""
        return self.dynamic and self._keeps_inf

    def multiply(self, gradients: list[torch.Tensor], factor: float) -> None:
        """Multiply gradients in place, and take note if one is not finite."""
        factor = torch.tensor(factor).npu()
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._overflow_buf, factor)
        self._has_overflow = self._overflow_buf.item() > 0
        self._overflow_buf.zero_()

    def update_scale(self) -> bool:
        """Adapt the scale after a backward pass; True when the step is to be skipped."""
        if self.dynamic and self._has_overflow:
            self._loss_scale = max(self._smallest or 0.0, self._loss_scale * self._backoff_factor)
            self._unskipped = 0
            return True
        self._unskipped += 1
        if self.dynamic and self._unskipped == self._window:
            self._loss_scale = min(self._largest, self._loss_scale * self._growth_factor)
            self._unskipped = 0
        return False
