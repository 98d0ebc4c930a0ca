"""The machine: devices, processes, errors, files."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

# Every command imports this first. It and the commands' own files keep to what Python 3.7 reads.
if sys.version_info < (3, 10):  # noqa: UP036 - here it is found out
    found = ".".join(map(str, sys.version_info[:2]))
    sys.stderr.write(f"error: this is Python {found}; 3.10 or newer is needed\n")
    sys.exit(2)


def say_what_is_missing(
    kind: "type[BaseException]", error: BaseException, trace: "TracebackType | None"
) -> None:
    """Tell in one line why a command could not be loaded: it lacks packages, or Ctrl-C ended it."""
    if issubclass(kind, ModuleNotFoundError):
        sys.stderr.write(f"error: {error} (for {sys.executable}); run `. .venv/bin/activate` "
                         f"first, or pip install -r requirements.txt, for all but training "
                         f"requirements-dev.txt\n")  # fmt: skip
    elif issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")  # Python ends as the signal ends it
    else:
        sys.__excepthook__(kind, error, trace)


program = Path(sys.argv[0]).resolve()
if program.suffix == ".py" and Path(__file__).resolve().parents[1] in program.parents:
    sys.excepthook = say_what_is_missing  # not in other people's programs, and not in a shell

# Where torch_npu is installed but CANN is not, `import torch` itself would fail on loading it.
# runtime.device imports torch_npu when an NPU is wanted, and explains what is missing.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

# onnxruntime's own builds else tell Microsoft that they run, and keep a number of this computer in
# its user's cache, from their import on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# The profiler of a torch for GPUs else tells what it does, and as an error that there is no GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
