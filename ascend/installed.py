"""What is installed on this machine: torch, torch_npu, CANN, apex, packages.

Standard library only: it has to answer where torch is missing or cannot be imported.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from runtime.torch_build import cuda_version

ROOT = Path(__file__).resolve().parent.parent
# What CANN works with, by its installation guide, beside numpy and protobuf.
CANN_IMPORTS = (
    *("absl-py", "attrs", "cffi", "cython", "decorator", "pathlib2"),
    *("psutil", "pyyaml", "requests", "scipy", "sympy"),
)
CANN_PROTOBUF = "3.20"


class Finding(NamedTuple):
    """A sentence for the user; `bad` when something does not fit or is missing."""

    bad: bool
    text: str


class Cann(NamedTuple):
    """An installation of CANN; its version is empty where no file tells it."""

    home: Path
    version: str
    sourced: bool  # whether the environment points to it


class Found(NamedTuple):
    """What is installed here: versions, empty where something is not."""

    torch: str = ""
    torch_npu: str = ""
    cann: Cann | None = None
    apex: str = ""  # its version and whose it is
    missing: Sequence[str] = ()  # packages of requirements.txt
    torch_cuda: str = ""  # the CUDA that torch was built for
    numpy: str = ""
    cann_missing: Sequence[str] = ()  # packages that CANN works with
    chip: str = ""  # as npu-smi or torch_npu names it
    python: str = ""

    def __str__(self) -> str:
        cann = "not found"
        if self.cann:
            unsourced = "" if self.cann.sourced else ", not in this environment"
            cann = f"{self.cann.version or 'version not found'} ({self.cann.home}{unsourced})"
        cuda = f", for CUDA {self.torch_cuda}" if self.torch_cuda else ""
        rows = {
            "python": self.python,
            "torch": f"{self.torch or 'not installed'}{cuda}",
            "torch_npu": self.torch_npu or "not installed",
            "CANN": cann,
            "apex": self.apex or "not installed",
            "numpy": self.numpy or "not installed",
            "NPU": self.chip or "none that npu-smi shows",
        }
        return "\n".join(f"{name:<11}{value}" for name, value in rows.items())


def find() -> Found:
    """Look at this machine. Imports nothing that it looks for."""
    return Found(
        torch=_version("torch"),
        torch_npu=_version("torch_npu"),
        cann=find_cann(os.environ, usual_places()),
        apex=find_apex(),
        missing=[name for name in _required() if not _version(name)],
        torch_cuda=cuda_version(),
        numpy=_version("numpy"),
        cann_missing=find_cann_missing(),
        chip=find_chip(),
        python=platform.python_version(),
    )


def usual_places() -> list[Path]:
    """Return where CANN may be: for this Python, by conda or pip, or on the machine."""
    by_pip = [place for folder in sys.path for place in Path(folder).glob("ascend/cann-*")]
    conda, *machine = (Path(base, "Ascend") for base in (sys.prefix, "/usr/local", Path.home()))
    names = ("cann", "ascend-toolkit/latest", "nnae/latest")
    return [conda / name for name in names] + by_pip + [b / name for b in machine for name in names]


def find_cann(environment: Mapping[str, str], places: Sequence[Path] = ()) -> Cann | None:
    """Find CANN where its set_env.sh has pointed the environment, else in these places.

    The version stands in `{arch}-linux/ascend_toolkit_install.info`, of the smaller nnae package
    in `ascend_nnae_install.info`.
    """
    home = environment.get("ASCEND_HOME_PATH") or environment.get("ASCEND_TOOLKIT_HOME")
    for place in [Path(home)] if home else places:
        with contextlib.suppress(OSError):  # another user's
            if place.is_dir():
                return Cann(place, _cann_version(place), bool(home))
    return None


def _cann_version(home: Path) -> str:
    for file in sorted((*home.glob("ascend_*.info"), *home.glob("*-linux/ascend_*.info"))):
        text = file.read_text(encoding="utf-8", errors="replace")
        if line := re.search(r"^version=(\S+)", text, re.MULTILINE):
            return line[1]
    return ""


def find_apex() -> str:
    """Return version and maker of the apex package: three projects have that name."""
    spec = importlib.util.find_spec("apex")
    if spec is None or not spec.submodule_search_locations:
        return ""
    folder, maker = Path(next(iter(spec.submodule_search_locations))), "NVIDIA's"
    optimizers = [*folder.glob("optimizers.py"), *folder.glob("optimizers/*.py")]
    if not (folder / "amp").exists() and not (folder / "amp.py").exists():
        maker = "the unrelated project of that name on the Python package index"
    elif any(b"NpuFusedAdam" in file.read_bytes() for file in optimizers):
        maker = "Ascend's"
    return f"{_version('apex')} ({maker})"


def find_cann_missing() -> list[str]:
    """Return what `pip install` must be told for CANN; protobuf's release up to 9.0."""
    missing = [name for name in CANN_IMPORTS if not _version(name)]
    fits = _version("protobuf").startswith(f"{CANN_PROTOBUF}.")
    return missing + ([] if fits else [f"protobuf=={CANN_PROTOBUF}.*"])


def find_chip() -> str:
    """Return the name of the first chip that the driver's npu-smi lists, where there is one."""
    try:
        shown = subprocess.run(
            ["npu-smi", "info"], capture_output=True, text=True, timeout=60, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    chip = re.search(r"^\|\s*\d+\s+([A-Z]\w+|\d{3}[\w-]+)\s*\|", shown, re.MULTILINE)
    return chip[1] if chip else ""


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        known = importlib.util.find_spec(distribution) is not None
        return "of unknown version" if known else ""


def _required() -> list[str]:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    return re.findall(r"^([\w-]+)", text, re.MULTILINE)
