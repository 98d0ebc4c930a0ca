"""`train.py --check`: what is installed, what a run would use, and whether it computes right."""

import importlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ascend.installed import Found, find
from ascend.versions import RELEASES, UNKNOWN, Finding, find_release, fit, order, suggest
from training.recipes import Recipe

if TYPE_CHECKING:
    from training.precision_choice import TrainingStep


def check(
    training_step: "TrainingStep",
    recipe: Recipe,
    device_name: str,
    precision_name: str,
    loss_scale: float | str,
) -> int:
    """Print what is found, what a run with these options would use, and one step's result.

    The arguments are those of `ascend.trial.compare`.

    Returns:
        The exit status: 0; 1 where something does not fit or the step differs from the CPU's.

    Raises:
        UserError: the device or precision that was asked for is not there.
    """
    found = find()
    print(found)
    try:  # torch itself may be missing
        why_no_npu = importlib.import_module("runtime.device").why_no_npu
        trial = importlib.import_module("ascend.trial")
    except (ImportError, RuntimeError, OSError) as error:
        first_line = str(error).strip().split("\n")[0]
        failure = Finding(True, f"training cannot be imported: {first_line}")
        autoload = found.torch_npu and error.__cause__  # torch loads torch_npu, told to by the user
        why = f"torch_npu cannot be loaded ({error.__cause__})" if autoload else ""
        return _conclude(_print([failure, *judge(found, why)]))
    problems = _print(judge(found, why_no_npu() if found.torch_npu else ""))
    agrees, summary = trial.compare(training_step, recipe, device_name, precision_name, loss_scale)
    return _conclude(problems + (not agrees), summary)


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
    numbers = {order(found.torch)[0], order(found.torch_npu)[0]} - {UNKNOWN[0]}
    if len(numbers) > 1:
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


def _print(findings: Iterable[Finding]) -> int:
    """Print each finding and return the number of the bad ones."""
    problems = 0
    for finding in findings:
        first, *rest = finding.text.split("\n")
        print("\n".join([f"{'problem' if finding.bad else 'note':<11}{first}",
                         *(" " * 11 + line for line in rest)]))  # fmt: skip
        problems += finding.bad
    return problems


def _conclude(problems: int, summary: str = "") -> int:
    print(f"problems: {problems}, see above" if problems else f"fine: {summary}", flush=True)
    return 1 if problems else 0
