"""The machine: devices, processes, errors, files."""

import os
import sys

# Every command imports this first. It and the commands' own files keep to what Python 3.7 reads.
if sys.version_info < (3, 10):  # noqa: UP036 - here it is found out
    found = ".".join(map(str, sys.version_info[:2]))
    sys.stderr.write(f"error: this is Python {found}; 3.10 or newer is needed\n")
    sys.exit(2)

# Where torch_npu is installed but CANN is not, `import torch` itself would fail on loading it.
# runtime.device imports torch_npu when an NPU is wanted, and explains what is missing.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
