"""What of an installation does not fit, and the command that mends it."""

import re
from collections.abc import Iterator

from ascend.installed import Finding, Found
from ascend.versions import RELEASES, UNKNOWN, find_release, fit, order, suggest
from runtime.torch_build import aborts

# The newest that Ascend's ModelZoo (install_guide.md) has for Ascend 910A and its kin; torch_npu's
# COMPATIBILITY.md lists them on. The old name Ascend910B, without a digit behind it, is of them.
FIRST_GENERATION = re.compile(r"(Ascend)?910(Pro|Premium)?[AB]")
LAST_TORCH_NPU, LAST_CANN = "2.9.0", "8.5.0"
NUMPY_BOUNDS = (("8.1", "1.25"), ("9.0", "2"))  # CANN older than the first: numpy below the second
NUMPY_2_ALONE = "3.13"  # Python from this on, where CANN 8.5 takes numpy 2 (its installation guide)
PROTOBUF_UNTIL = "9.1"  # CANN older than this asks for one release of protobuf


def judge(found: Found, why_no_npu: str = "") -> Iterator[Finding]:
    """Say what does not fit or is missing, and what to install or to source.

    Args:
        found: what is installed.
        why_no_npu: the reason of `runtime.device.why_no_npu`, where torch_npu is installed.
    """
    if found.missing:
        packages = ", ".join(found.missing)
        yield Finding(True, f"not installed: {packages}; pip install -r requirements.txt")
    if found.cann and found.cann.version:
        yield from _judge_packages(found, found.cann.version)
    if FIRST_GENERATION.fullmatch(found.chip):
        yield from _judge_first_generation(found)
    if found.torch_npu:
        yield from _judge_npu(found, why_no_npu)
    elif found.cann:
        yield Finding(True, f"CANN is here, torch_npu is not: {_suggestion(found)}")
    else:
        yield Finding(False, "for an NPU, install CANN and source its set_env.sh, then "
                             "pip install -r requirements-npu.txt")  # fmt: skip
    if found.apex and "Ascend's" not in found.apex:
        yield Finding(
            bool(found.torch_npu),
            "this apex is not Ascend's, and training does not use it: pip uninstall apex. "
            "Ascend's is built from its own repository, see docs/npu.md",
        )


def _judge_packages(found: Found, cann: str) -> Iterator[Finding]:
    """Judge the Python packages that CANN itself works with."""
    bound = next((bound for end, bound in NUMPY_BOUNDS if _older(cann, end)), "")
    bound = bound if _older(found.python, NUMPY_2_ALONE) else ""
    if bound and order(found.numpy) >= order(bound):
        yield Finding(True, f"numpy {found.numpy} is too new for CANN {cann}, which then fails at "
                            f'the first use of a card: pip install "numpy<{bound}"')  # fmt: skip
    bounds = _older(cann, PROTOBUF_UNTIL)
    missing = [name for name in found.cann_missing if bounds or "=" not in name]
    if missing:
        words = (f'"{name}"' if "=" in name else name for name in missing)
        yield Finding(True, f"packages that CANN {cann} works with are missing or of another "
                            f"version: pip install {' '.join(words)}")  # fmt: skip


def _older(version: str, end: str) -> bool:
    return order(version).release < order(end).release


def _judge_first_generation(found: Found) -> Iterator[Finding]:
    newer = found.cann and order(found.cann.version).release[:2] > order(LAST_CANN).release[:2]
    if newer or order(found.torch_npu) > order(LAST_TORCH_NPU):
        yield Finding(False, f"{found.chip} is a chip of the first generation, for which Ascend's "
                             f"ModelZoo has nothing newer than torch_npu {LAST_TORCH_NPU} and CANN "
                             f"{LAST_CANN}; torch_npu's own list still has it")  # fmt: skip


def _judge_npu(found: Found, why_no_npu: str) -> Iterator[Finding]:
    if aborts(found.torch_npu, found.torch_cuda):
        torch = order(found.torch)
        yield Finding(True, f"torch_npu {found.torch_npu} aborts beside a torch for CUDA: pip "
                            f"install torch=={torch}+cpu, from PyTorch's index of CPU builds, "
                            f"or {_suggestion(found)}")  # fmt: skip
    versions = {order(found.torch), order(found.torch_npu)} - {UNKNOWN}
    if len({version.base_version for version in versions}) > 1:
        pair = f"torch {found.torch} and torch_npu {found.torch_npu}"
        yield Finding(True, f"{pair} do not go together, theirs must be the same number: "
                            f"{_suggestion(found)}")  # fmt: skip
    elif found.cann and found.cann.version:
        yield fit(found.torch_npu, found.cann.version)
    if why_no_npu.startswith("torch_npu cannot be loaded"):
        remedy = f"With an NPU: {_set_env(found)}; test/env_npu.sh does so."
        if "undefined symbol" in why_no_npu:
            remedy = (f"It needs another torch (a symbol that begins with _Z) or another CANN: "
                      f"{_suggestion(found)}")  # fmt: skip
        yield Finding(
            True,
            f"{why_no_npu.partition(';')[0]}.\n"
            f"Elsewhere a plain `import torch` fails, too: torch loads torch_npu by itself, which "
            f"this project prevents with TORCH_DEVICE_BACKEND_AUTOLOAD=0.\n"
            f"{remedy}\n"
            f"Without one: pip uninstall torch_npu",
        )
    elif why_no_npu:
        yield Finding(False, why_no_npu)


def _set_env(found: Found) -> str:
    if found.cann is None:
        release = find_release(found.torch_npu) or RELEASES[0]
        return f"install CANN {release.cann}, then source its set_env.sh"
    places = (found.cann.home, found.cann.home.parent)
    script = next((p / "set_env.sh" for p in places if (p / "set_env.sh").is_file()), None)
    return f"source {script or f'{found.cann.home}/set_env.sh'}"


def _suggestion(found: Found) -> str:
    return suggest(found.torch, found.cann.version if found.cann else "", found.torch_cuda)
