"""A stand-in for Ascend's apex, which no package index has: amp and the fused optimizers.

Options, refusals, messages and arithmetic are those of apex on torch_npu; its speed is not. It
records every ``amp.initialize``, so that a test can prove that a run went through it.
"""

from apex import amp, optimizers

__all__ = ["amp", "optimizers"]
