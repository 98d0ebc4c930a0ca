"""Builds what the real torch_npu needs on a machine without CANN, into a folder of its own.

The folder holds ``site/`` (the torch_npu wheel, unpacked beside the environment: every process
that can import it would load it with torch and fail without the driver), ``lib/`` (the stand-ins
for CANN's libraries) and ``cann/`` (the files by which CANN's version is recognised).
"""

import fcntl
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.torch_build import aborts, cuda_version

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
DRIVER = HERE / "driver.c"
CANN_VERSION = os.environ.get("NPU_SIM_CANN", "9.0.0")
# What is installed where CANN is, beside what the tests install.
_CANN_IMPORTS = {"absl-py": "2.3.1", "decorator": "5.2.1", "cffi": "1.17.1", "cython": "3.1.2",
                 "pathlib2": "2.3.7", "protobuf": "3.20.3"}  # fmt: skip
_COMPANIONS = (
    *("hccl", "ge_runner", "graph", "acl_op_compiler", "acl_tdt_channel"),
    *("ascend_hal", "msprofiler", "opapi"),
)


class Unavailable(RuntimeError):
    """The real torch_npu cannot run here; the message says why."""


def required_version() -> str:
    """The torch_npu release that ``NPU_SIM_TORCH_NPU`` or else requirements-npu.txt names."""
    if chosen := os.environ.get("NPU_SIM_TORCH_NPU"):
        return chosen
    text = (ROOT / "requirements-npu.txt").read_text(encoding="utf-8")
    found = re.search(r"^torch[_-]npu==([\w.]+)", text, re.MULTILINE)
    if not found:
        raise Unavailable("requirements-npu.txt names no release of torch_npu")
    return found[1]


def cache() -> Path:
    """Where builds are kept; ``NPU_SIM_CACHE`` moves it."""
    return Path(os.environ.get("NPU_SIM_CACHE", ROOT / "build" / "npu-sim"))


def build() -> Path:
    """Build what is missing and return the folder; safe to call from several processes.

    Raises:
        Unavailable: no wheel, no compiler, not Linux, or a torch that torch_npu does not go with.
    """
    if sys.platform != "linux":
        raise Unavailable(f"torch_npu is for Linux, this is {sys.platform}")
    python = f"cp{sys.version_info.major}{sys.version_info.minor}-{platform.machine()}"
    version = required_version()
    _check_torch(version)
    folder = cache() / f"torch_npu-{version}-{python}"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        _once(folder / "site", version, lambda site: _unpack_wheel(version, site))
        driver = f"{CANN_VERSION} {_digest(DRIVER, Path(__file__))}"
        _once(folder / "lib", driver, _compile_driver)
        _once(folder / "cann", f"{CANN_VERSION} {_digest(Path(__file__))}", _pretend_toolkit)
    return folder


def _check_torch(version: str) -> None:
    needed = version.partition(".post")[0]
    installed = importlib.metadata.version("torch").partition("+")[0]
    if installed != needed:
        raise Unavailable(f"torch_npu {version} needs torch {needed}, here is {installed}")
    cuda = cuda_version()
    if aborts(version, cuda):
        raise Unavailable(f"torch_npu {version} aborts beside a torch for CUDA {cuda}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _once(folder: Path, stamp: str, make) -> None:
    """Fill ``folder`` by ``make(folder)``, unless it was filled for the same stamp before."""
    done = folder / "complete"
    if done.is_file() and done.read_text() == stamp:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    make(folder)
    done.write_text(stamp)


def _digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _run(command: list[str | Path], what: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise Unavailable(f"{what}: {error.filename} is not installed") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip() or "no message").splitlines()[-1]
        raise Unavailable(f"{what}: {reason}") from error


def _unpack_wheel(version: str, site: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    packages = [f"torch-npu=={version}", "pyyaml"]
    pip += ["--retries", "1", "--timeout", "30"]
    _run([*pip, "--target", site, *packages], f"the wheel of torch_npu {version}")


def _compile_driver(lib: Path) -> None:
    library = ["gcc", "-shared", "-fPIC", "-O1", "-w"]
    version = f'-DCANN_VERSION="{CANN_VERSION}"'
    _run([*library, version, "-o", lib / "libascendcl.so", DRIVER], "compiling the driver")
    link = ["-L", lib, "-Wl,--no-as-needed", "-lascendcl"]
    for name in _COMPANIONS:
        empty = ["-x", "c", "/dev/null", "-o", lib / f"lib{name}.so"]
        _run([*library, *empty, *link], f"compiling lib{name}")


def _pretend_toolkit(cann: Path) -> None:
    """Lay out the few files of an installed CANN toolkit that are read without an NPU."""
    arch = f"{platform.machine()}-linux"
    for name in ("runtime", "compiler", "opp", arch):
        (cann / name).mkdir()
    information = f"package_name=Ascend-cann-toolkit\nversion={CANN_VERSION}\narch={arch}\n"
    (cann / arch / "ascend_toolkit_install.info").write_text(information)
    for name, version in _CANN_IMPORTS.items():  # metadata is all that is read of them
        package = cann / "python" / f"{name}-{version}.dist-info"
        package.mkdir(parents=True)
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (package / "METADATA").write_text(about)
    settings = f'export ASCEND_HOME_PATH="{cann}"\nexport ASCEND_OPP_PATH="{cann}/opp"\n'
    (cann / "set_env.sh").write_text(settings)
