"""What of an installation does not fit, and the command that mends it."""

from collections.abc import Iterator

from ascend.installed import Finding, Found
from ascend.versions import RELEASES, UNKNOWN, find_release, fit, order, suggest


def judge(found: Found, why_no_npu: str = "") -> Iterator[Finding]:
    """Say what does not fit or is missing, and what to install or to source.

    Args:
        found: what is installed.
        why_no_npu: the reason of `runtime.device.why_no_npu`, where torch_npu is installed.
    """
    if found.missing:
        packages = ", ".join(found.missing)
        yield Finding(True, f"not installed: {packages}; pip install -r requirements.txt")
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
            "Ascend's is built from its own repository, see README.md, Ascend NPU",
        )


def _judge_npu(found: Found, why_no_npu: str) -> Iterator[Finding]:
    versions = {order(found.torch), order(found.torch_npu)} - {UNKNOWN}
    if len({version.base_version for version in versions}) > 1:
        pair = f"torch {found.torch} and torch_npu {found.torch_npu}"
        yield Finding(True, f"{pair} do not go together, theirs must be the same number: "
                            f"{_suggestion(found)}")  # fmt: skip
    elif found.cann and found.cann.version:
        yield fit(found.torch_npu, found.cann.version)
    if why_no_npu.startswith("torch_npu cannot be loaded"):
        script = _set_env(found)
        yield Finding(
            True,
            f"{why_no_npu.partition(';')[0]}.\n"
            f"Elsewhere a plain `import torch` fails, too: torch loads torch_npu by itself, which "
            f"this project prevents with TORCH_DEVICE_BACKEND_AUTOLOAD=0.\n"
            f"With an NPU: {script}; test/env_npu.sh does so.\n"
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
    return suggest(found.torch, found.cann.version if found.cann else "")
