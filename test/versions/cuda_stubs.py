"""Lets a CUDA build of torch be imported without the three gigabytes of CUDA's libraries.

The package index has CUDA builds of most releases only. On a machine without a GPU none of CUDA's
functions is called, but the loader wants each library that torch names, and each function in it.
"""

import re
import subprocess
from pathlib import Path

_LIBRARY = re.compile(r"lib(cu|nv|nccl)")
_FUNCTION = re.compile(
    r"(__cuda|cuda|cublas|cudnn|cudss|cufft|cuFile|cupti|curand|cusolver|cusparse|nccl|nv[A-Z]|nvrtc"
    r"|nvshmem|nvtx)\w*|cu[A-Z]\w*"
)
_ALL = "libcuda_stubs.so"  # every function; the libraries that torch names only lead to it
# What torch asks at import and in is_available(): no GPU (cudaErrorNoDevice), no driver.
_ANSWERS = """
int cudaGetDeviceCount(int *count) { *count = 0; return 100; }
int cudaDriverGetVersion(int *version) { *version = 0; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 0; return 0; }
const char *cudaGetErrorName(int error) { return "cudaErrorNoDevice"; }
const char *cudaGetErrorString(int error) { return "no CUDA here: its libraries are stubs"; }
"""


def make(torch: Path) -> None:
    """Put the missing libraries into the folder of an installed torch.

    Raises:
        FileNotFoundError: gcc or binutils are not installed.
        subprocess.CalledProcessError: one of them failed.
    """
    folder = torch / "lib"
    libraries = [*folder.glob("*.so*"), *torch.glob("_C*.so")]
    present = {path.name for path in libraries}
    missing = sorted(filter(_LIBRARY.match, _needed(libraries) - present))
    undefined, defined = _symbols(libraries)
    answered = set(re.findall(r"(\w+)\(", _ANSWERS))
    functions = sorted(filter(_FUNCTION.fullmatch, undefined - defined - answered))
    source = _ANSWERS + "".join(f"long {name}() {{ return 999; }}\n" for name in functions)
    _compile(folder / _ALL, "-", input=source)
    link = ["-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN", "-L", folder, f"-l:{_ALL}"]
    for name in missing:
        _compile(folder / name, "/dev/null", f"-Wl,-soname,{name}", *link)


def _needed(libraries: list[Path]) -> set[str]:
    table = _output("readelf", "--dynamic", *libraries)
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", table))


def _symbols(libraries: list[Path]) -> tuple[set[str], set[str]]:
    """Names that the libraries look for, and names that they have."""
    undefined, defined = set(), set()
    for line in _output("nm", "--dynamic", "--no-sort", *libraries).splitlines():
        if match := re.fullmatch(r"[0-9a-f]* +(\w) (\w+).*", line):
            (undefined if match[1] == "U" else defined).add(match[2])
    return undefined, defined


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _compile(library: Path, source: str, *options: str | Path, **more: str) -> None:
    command = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", "-o", library, "-x", "c", source]
    subprocess.run([*command, "-x", "none", *options], check=True, text=True, **more)
