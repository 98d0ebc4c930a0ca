"""The machine: devices, processes, errors, files."""

import os

# Where torch_npu is installed but CANN is not, `import torch` itself would fail on loading it.
# runtime.device imports torch_npu when an NPU is wanted, and explains what is missing.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
