"""``torch_npu.profiler``: torch's profiler, which sees the host's side only."""

from torch.profiler import (
    ProfilerAction,
    profile,
    schedule,
    supported_activities,
    tensorboard_trace_handler,
)
from torch.profiler import ProfilerActivity as _Torch

__all__ = [
    "ProfilerAction",
    "ProfilerActivity",
    "profile",
    "schedule",
    "supported_activities",
    "tensorboard_trace_handler",
]


class ProfilerActivity:
    """The real one names the host and the card."""

    CPU = _Torch.CPU
    NPU = _Torch.PrivateUse1
