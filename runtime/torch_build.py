"""Which build of torch is installed, told without importing it.

Standard library only: beside some releases of torch_npu, a torch for CUDA aborts the process.
"""

import importlib.util
import re
from pathlib import Path

# Both register the allocator's option pinned_reserve_segment_size_mb, and the second to do so
# throws `Duplicated key` while a library is loaded, which nothing can catch.
ABORT_BESIDE_CUDA = {"2.10.0.post7", "2.11.0.post3", "2.12.0.post3", "2.13.0", "2.14.0"}


def cuda_version() -> str:
    """Return the CUDA that the installed torch was built for, or nothing."""
    spec = importlib.util.find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder) / "version.py"
        text = file.read_bytes() if file.is_file() else b""
        if line := re.search(rb"^cuda\b.*=\s*['\"](.+)['\"]", text, re.MULTILINE):
            return line[1].decode()
    return ""


def aborts(torch_npu: str, torch_cuda: str) -> bool:
    """Tell whether importing this torch_npu beside a torch for this CUDA ends the process."""
    return bool(torch_cuda) and torch_npu.partition("+")[0] in ABORT_BESIDE_CUDA
