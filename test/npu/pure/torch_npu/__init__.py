"""A stand-in for torch_npu in pure Python, for machines where the real wheel cannot be had.

Tensors are real PrivateUse1 tensors over host memory, so dispatcher, device checks, autograd, DDP's
reducer, autocast and serialisation are torch's own. Not there: streams, ``Generator("npu")``,
``torch.compile``, and everything of torch_npu that training does not use.
"""

import importlib.metadata
import os

# import torch would load torch_npu, which is being loaded: the real one does the same.
_autoload_switch = os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD")
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

import torch  # noqa: E402, F401
from simnpu import hccl  # noqa: E402
from simnpu.kernels import clear_float_status as npu_clear_float_status  # noqa: E402
from simnpu.kernels import get_float_status as npu_get_float_status  # noqa: E402

from torch_npu import _device, npu, optim, profiler  # noqa: E402
from torch_npu._formats import get_npu_format, npu_format_cast  # noqa: E402

__version__ = importlib.metadata.version("torch_npu")
__all__ = [
    "__version__",
    "get_npu_format",
    "npu",
    "npu_clear_float_status",
    "npu_format_cast",
    "npu_get_float_status",
    "optim",
    "profiler",
]

_device.install(npu)
hccl.register()


def _autoload() -> None:
    """Entry point of ``torch.backends``: importing was all."""
    if _autoload_switch is None:
        os.environ.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)
    else:
        os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = _autoload_switch


_autoload()
