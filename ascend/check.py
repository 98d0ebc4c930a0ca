"""`train.py --check`: what is installed, what a run would use, and whether it computes right."""

import importlib
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from ascend.installed import Finding, find
from runtime.errors import first_line
from runtime.torch_build import aborts
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
    try:
        from ascend.judge import judge  # noqa: PLC0415
    except ImportError:  # of a package that versions are compared with
        names = ", ".join(found.missing)
        text = f"not installed: {names}; pip install -r requirements.txt"
        return _conclude(_print([Finding(True, text)]))
    if aborts(found.torch_npu, found.torch_cuda):  # nothing more can be imported
        return _conclude(_print(judge(found)))
    try:  # torch itself may be missing
        device = importlib.import_module("runtime.device")
        trial = importlib.import_module("ascend.trial")
    except (ImportError, RuntimeError, OSError) as error:
        failure = Finding(True, f"training cannot be imported: {first_line(error)}")
        autoload = found.torch_npu and error.__cause__  # torch loads torch_npu, told to by the user
        why = f"torch_npu cannot be loaded ({error.__cause__})" if autoload else ""
        return _conclude(_print([failure, *judge(found, why)]))
    why_no_npu = device.why_no_npu() if found.torch_npu else ""
    if found.torch_npu and not why_no_npu:
        with suppress(RuntimeError):  # a card that fails; the step will tell
            found = found._replace(chip=device.describe(device.torch.device("npu", 0)))
    problems = _print(judge(found, why_no_npu))
    agrees, summary = trial.compare(training_step, recipe, device_name, precision_name, loss_scale)
    return _conclude(problems + (not agrees), summary)


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
    print(f"problems: {problems}, see above" if problems else f"fine: {summary}")
    return 1 if problems else 0
