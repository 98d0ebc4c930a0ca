"""Makes a virtual environment with chosen versions, and takes it away again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_stubs
from legs import Leg

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "versions"
_CUDA = ("nvidia-", "cuda-", "triton")  # packages that only a GPU needs: gigabytes
_ABOUT = """
import importlib.metadata as m, json, platform, re
packages = {d.metadata["Name"].lower(): d.version for d in m.distributions()}
needs = [re.match(r"[\\w.-]+", need)[0] for need in m.requires("torch") or []]
print(json.dumps({"python": platform.python_version(), "packages": packages, "needs": needs}))
"""


class Unprepared(RuntimeError):
    """The environment cannot be had; the message says why."""


class Environment:
    """The environment of a leg, below build/versions; use it in a ``with`` block.

    ``versions`` has the release of each package that is in it, and of Python.
    """

    def __init__(self, leg: Leg) -> None:
        self.leg = leg
        self.folder = FOLDER / "environment"
        self.python = self.folder / "bin" / "python"
        self.versions: dict[str, str] = {}

    def __enter__(self) -> "Environment":
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self._prepare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def run_tests(self, arguments: tuple[str, ...], report: Path, log: Path) -> int:
        """Run pytest here; return its exit status, leave its report (JUnit's XML) and output."""
        command = [self.python, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}"]
        environment = {
            **os.environ,
            "CI": "true",  # the real torch_npu, Chromium and the public images, or failure
            "NPU_SIM_CACHE": str(self.folder / "npu-sim"),
            "NPU_SIM_TORCH_NPU": self.leg.torch_npu or "",
            "NPU_SIM_CANN": self.leg.cann,
            # numpy.testing of numpy 1.22 knows Python's own distutils only.
            "SETUPTOOLS_USE_DISTUTILS": "stdlib" if self.leg.python < "3.12" else "local",
        }
        with log.open("w") as file:
            return subprocess.run(
                [*command, *arguments],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode

    def _prepare(self) -> None:
        _uv("venv", "--quiet", "--seed", f"--python={self.leg.python}", self.folder)
        # torch alone first: what it needs from CUDA is known then, and left out. Not from uv's
        # cache, which would keep a copy of each of these large packages.
        self._install("--no-deps", "--no-cache", self.leg.torch)
        about = self._about()
        cuda = [name for name in about["needs"] if name.startswith(_CUDA)]
        excludes = self.folder / "excludes.txt"
        excludes.write_text("\n".join(cuda))
        resolution = {"lowest": "lowest-direct", "newest": "highest"}[self.leg.packages]
        wanted = ["-r", ROOT / "requirements-dev.txt", self.leg.torch]
        self._install(f"--resolution={resolution}", f"--excludes={excludes}", *wanted)
        if cuda:
            (torch,) = self.folder.glob("lib/python*/site-packages/torch")
            _attempt("the stubs of CUDA's libraries", lambda: cuda_stubs.make(torch))
        about = self._about()
        self.versions = {"python": about["python"], **about["packages"]}

    def _install(self, *arguments: str | Path) -> None:
        _uv("pip", "install", "--quiet", f"--python={self.python}", *arguments)

    def _about(self) -> dict:
        command = [self.python, "-c", _ABOUT]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def _uv(*arguments: str | Path) -> None:
    uv = shutil.which("uv", path=Path(sys.executable).parent) or "uv"
    environment = {**os.environ, "PYENV_VERSION": _versions_of_pyenv()}
    if "PIP_FIND_LINKS" in os.environ:  # where pip finds packages, uv finds them
        environment.setdefault("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"].replace(" ", ","))
    command = [uv, *map(str, arguments)]
    options = {"capture_output": True, "text": True, "env": environment}
    _attempt(" ".join(command[:3]), lambda: subprocess.run(command, check=True, **options))


def _versions_of_pyenv() -> str:
    """Every Python 3 that pyenv has: its commands fail for those that it is not told to use."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    return ":".join(path.name for path in root.glob("versions/3.1*"))


def _attempt(what: str, action) -> None:
    try:
        action()
    except FileNotFoundError as error:
        raise Unprepared(f"{what}: {error.filename} is not installed") from error
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "no message").strip().splitlines()
        raise Unprepared(f"{what}: {' '.join(map(str.strip, lines))[:300]}") from error
