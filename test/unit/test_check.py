"""train.py --check, run: its trial of a step, and what it says where something is missing."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import ROOT, assert_one_line_error, run

from ascend import trial
from ascend.check import check
from ascend.installed import Cann, Found
from runtime.device import Choice
from runtime.errors import UserError
from train import main, training_step
from training.precision import Precision
from training.recipes import RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_right_step_is_within_the_tolerance(
    capsys: pytest.CaptureFixture, recipe: str, precision: str
) -> None:
    agrees, summary = trial.compare(training_step, RECIPES[recipe], "cpu", precision, 32.0)
    assert agrees
    assert summary == f"training would run on cpu in {precision}"
    output = capsys.readouterr().out
    assert f"precision  {precision} (as asked)" in output
    assert "one step   loss 0." in output
    assert "problem" not in output


@pytest.mark.parametrize(("best", "right"), [(torch.bfloat16, True), (torch.float32, False)])
def test_muons_steps_may_be_as_coarse_as_a_card_takes_them(
    monkeypatch: pytest.MonkeyPatch, best: torch.dtype, right: bool
) -> None:
    """In bf16 where a card has it, whatever convolutions are in."""
    on_cpu_and_card = iter([torch.float32, torch.bfloat16])
    monkeypatch.setattr("training.muon.matrix_type", lambda _: next(on_cpu_and_card))
    monkeypatch.setattr(trial, "matrix_type", lambda _: best, raising=False)
    assert trial.compare(training_step, RECIPES["fast"], "cpu", "fp32", 32.0)[0] == right
    assert not list(on_cpu_and_card)


@pytest.mark.parametrize(("recipe", "apex"), [("reference", True), ("fast", False)])
def test_it_tries_what_a_run_would_take(
    monkeypatch: pytest.MonkeyPatch, recipe: str, apex: bool
) -> None:
    """The card of this process, of several; apex where the recipe's optimizer can use it."""
    asked = []

    def choose_device(*words: object) -> Choice:
        asked.append(words)
        return Choice(trial.CPU, "auto")

    def choose_precision(*_: object, apex_wanted: bool, loss_scale: float) -> Choice:
        asked.append((apex_wanted, loss_scale))
        return Choice(Precision(), "auto")

    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(trial, "choose_device", choose_device)
    monkeypatch.setattr(trial, "choose_precision", choose_precision)
    _, summary = trial.compare(training_step, RECIPES[recipe], "auto", "auto", 32.0)
    assert asked == [("auto", 3), (apex, 32.0)]
    assert summary.endswith(" in fp32, as this machine has no NPU and no GPU that can be used")


def test_how_far_a_step_lies_from_the_cpus_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    steps = iter([(2.0, torch.tensor([3.0, 4.0])), (1.5, torch.tensor([3.0, 4.25]))])
    monkeypatch.setattr(trial, "take_step", lambda *_: next(steps))
    assert not trial.compare(training_step, RECIPES["reference"], "cpu", "fp32", 32.0)[0]
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert lines[0].endswith(
        "loss 1.500000, on the CPU in fp32 2.000000; off by 2.5e-01 of it (allowed: 1e-03),"
    )
    assert "change by 5.0e-02 of it (allowed: 1e-01): problem" in lines[1]


def test_other_machines_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check in a job of many cards needs none of them but its own."""
    for name, value in {"RANK_SIZE": "16", "RANK_ID": "1", "RANK_TABLE_FILE": "/gone"}.items():
        monkeypatch.setenv(name, value)
    assert trial.compare(training_step, RECIPES["reference"], "cpu", "fp32", 32.0)[0]


class Wrong(Precision):
    """Computes something else than it should."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def _step(self, optimizer: torch.optim.Optimizer) -> bool:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad *= torch.linspace(-1, self.factor, parameter.grad.shape[0]).view(
                    -1, *[1] * (parameter.dim() - 1)
                )
        return super()._step(optimizer)


@pytest.mark.parametrize("factor", [1.0, float("nan")])
def test_a_wrong_step_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, factor: float
) -> None:
    wrong = Choice(Wrong(factor), "as asked")
    monkeypatch.setattr(trial, "choose_precision", lambda *_, **__: wrong)
    assert check(training_step, RECIPES["reference"], "cpu", "fp32", 32.0) == 1
    output = capsys.readouterr().out
    assert "problem, this device computes something else" in output
    assert output.endswith("problems: 1, see above\n")


def test_an_overflow_is_tried_again() -> None:
    class Overflowing(Precision):
        def _step(self, optimizer: torch.optim.Optimizer) -> bool:
            return self.skipped == 2 and super()._step(optimizer)

    precision = Overflowing()
    loss, change = trial.take_step(training_step, RECIPES["reference"], precision)
    expected_loss, expected = trial.take_step(training_step, RECIPES["reference"], Precision())
    assert precision.skipped == 2
    assert loss == expected_loss
    assert torch.equal(change, expected)


def test_the_weights_that_an_optimizer_holds_are_compared() -> None:
    """With apex O2 those in fp32 are there alone."""

    class Masters(Precision):
        def master_params(
            self, _: object, optimizer: torch.optim.Optimizer
        ) -> dict[str, torch.Tensor]:
            held = (weight for group in optimizer.param_groups for weight in group["params"])
            return {str(number): weight.detach() for number, weight in enumerate(held)}

    loss, change = trial.take_step(training_step, RECIPES["reference"], Masters())
    expected_loss, expected = trial.take_step(training_step, RECIPES["reference"], Precision())
    assert loss == expected_loss
    assert torch.equal(change, expected)


def checked(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    found: Found,
    modules: dict[str, object] | Exception,
) -> tuple[int, list[str]]:
    """Return the status of a check where that is found, and the lines that follow it.

    The modules stand for what is imported for the trial of a step.
    """

    def import_module(name: str) -> object:
        if isinstance(modules, Exception):
            raise modules
        return modules[name]

    monkeypatch.setattr("ascend.check.find", lambda: found)
    monkeypatch.setattr("ascend.check.importlib", SimpleNamespace(import_module=import_module))
    status = check(training_step, RECIPES["reference"], "cpu", "fp32", 32.0)
    output = capsys.readouterr().out
    assert output.startswith(f"{found}\n")
    return status, output.removeprefix(f"{found}\n").splitlines()


NO_CANN = Found("2.13.0", "2.13.0")
BACKEND = RuntimeError("Failed to load the backend extension: torch_npu.\nYou can disable it")
BACKEND.__cause__ = ImportError("libhccl.so: cannot open shared object file")


@pytest.mark.parametrize(
    ("found", "modules", "starts"),
    [
        (
            NO_CANN._replace(torch_cuda="13.0"),
            {},
            ["problem    torch_npu 2.13.0 aborts beside a", "problems: 1, see above"],
        ),
        (
            NO_CANN,
            BACKEND,
            [
                "problem    training cannot be imported: Failed to load the backend extension: t",
                "problem    torch_npu cannot be loaded (libhccl.so: cannot open shared object",
                "           Elsewhere a plain `import torch` fails, too: ",
                "           With an NPU: install CANN 9.2.0, ",
                "           Without one: pip uninstall torch_npu",
                "problems: 2, see above",
            ],
        ),
        (
            NO_CANN,
            ModuleNotFoundError("No module named 'torch'"),
            [
                "problem    training cannot be imported: No module named 'torch'",
                "problems: 1, see above",
            ],
        ),
    ],
    ids=["torch for CUDA", "a torch_npu that torch loads", "no torch"],
)
def test_what_keeps_training_from_being_imported(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    found: Found,
    modules: dict[str, object] | Exception,
    starts: list[str],
) -> None:
    status, lines = checked(monkeypatch, capsys, found, modules)
    assert status == 1
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)


def test_a_machine_without_what_versions_are_compared_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "ascend.judge", None)  # importing it fails
    assert checked(monkeypatch, capsys, Found(missing=["packaging", "tqdm"]), {}) == (
        1,
        [
            "problem    not installed: packaging, tqdm; pip install -r requirements.txt",
            "problems: 1, see above",
        ],
    )


@pytest.mark.parametrize(
    ("why", "chip", "agrees", "end"),
    [
        ("", "Ascend910_9382", True, "fine: a sentence"),
        ("", "Ascend910A", True, "fine: a sentence"),
        ("torch_npu finds no card", "unknown", True, "fine: a sentence"),
        ("", "Ascend910_9382", False, "problems: 1, see above"),
        ("", "", False, "problems: 1, see above"),
    ],
)
def test_an_npu_is_judged_by_the_name_that_it_tells(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    why: str,
    chip: str,
    agrees: bool,
    end: str,
) -> None:
    """With CANN 9.2 and its torch_npu, both newer than ModelZoo has for the first generation."""

    def describe(device: str) -> str:
        if not chip:
            raise RuntimeError("Initialize:NPU function error: aclInit, error code is 500001")
        return {"npu:0": chip}[device]

    device = SimpleNamespace(
        why_no_npu=lambda: why,
        describe=describe,
        torch=SimpleNamespace(device=lambda kind, number: f"{kind}:{number}"),
    )
    step = SimpleNamespace(compare=lambda *_: (agrees, "a sentence"))
    modules = {"runtime.device": device, "ascend.trial": step}
    found = NO_CANN._replace(cann=Cann(Path("/opt/cann"), "9.2.0", True))
    status, lines = checked(monkeypatch, capsys, found, modules)
    assert (status, lines[-1]) == (int("problems" in end), end)
    assert (f"note       {why}" in lines) == bool(why)
    of_chip = [
        line for line in lines if line.startswith(f"note       {chip} is a chip of the first")
    ]
    assert len(of_chip) == (chip == "Ascend910A")


def test_a_machine_with_a_cpu_alone_passes_and_is_told_so() -> None:
    """Needs no dataset."""
    result = run("train.py", "--check", "--precision=fp32", env={"CUDA_VISIBLE_DEVICES": ""})
    assert result.returncode == 0, result.stderr
    assert f"torch      {version('torch')}" in result.stdout
    assert "torch_npu  not installed" in result.stdout
    assert "device     cpu, " in result.stdout
    assert "no npu: torch_npu is not installed" in result.stdout
    assert "off by 0.0e+00 of it" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.startswith("fine: training would run on cpu in fp32, as this machine has no NPU")


def test_a_device_that_is_not_there() -> None:
    result = run("train.py", "--check", "--device=npu")
    assert_one_line_error(result, "--device npu: torch_npu is not installed")
    assert "pip install -r requirements-npu.txt" in result.stdout


def test_an_optimizer_that_is_not_there(capsys: pytest.CaptureFixture) -> None:
    """The step is taken by the one that would train."""
    words = ["--check", "--device=cpu", "--precision=fp32"]
    with pytest.raises(UserError, match="--optimizer lamb is NpuFused only"):
        main([*words, "--optimizer=lamb"])
    assert main([*words, "--recipe=polish", "--optimizer=sgd"]) == 0
    assert "fine: training would run on cpu in fp32" in capsys.readouterr().out


def test_torch_for_cuda_is_told_without_being_imported(tmp_path: Path) -> None:
    """The process would abort at `import torch_npu`, or at `import torch`, which loads it."""
    for package in ("torch", "torch_npu"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("import os\nos.abort()\n")
        (tmp_path / f"{package}-2.13.0.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.13.0\n"
        (tmp_path / f"{package}-2.13.0.dist-info" / "METADATA").write_text(metadata)
    (tmp_path / "torch/version.py").write_text(
        "from typing import Optional\n__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n"
    )
    result = run("train.py", "--check", env={"PYTHONPATH": str(tmp_path), "ASCEND_HOME_PATH": ""})
    assert (result.returncode, result.stderr) == (1, "")
    assert "torch      2.13.0, for CUDA 13.0" in result.stdout
    assert "problem    torch_npu 2.13.0 aborts" in result.stdout
    assert result.stdout.splitlines()[-1] == "problems: 1, see above"


@pytest.fixture
def torch_npu_without_cann(tmp_path: Path) -> Path:
    """A folder with a torch_npu that fails as the real one does, and is loaded by torch itself.

    Of no release, as some are refused beside a torch for CUDA.
    """
    package = tmp_path / "torch_npu"
    package.mkdir()
    error = "libhccl.so: cannot open shared object file: No such file or directory"
    (package / "__init__.py").write_text(f"raise ImportError({error!r})\n")
    metadata = tmp_path / "torch_npu-2.13.0.post0.dist-info"
    metadata.mkdir()
    about = "Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0.post0\n"
    (metadata / "METADATA").write_text(about)
    entry_points = "[torch.backends]\ntorch_npu = torch_npu:_autoload\n"
    (metadata / "entry_points.txt").write_text(entry_points)
    return tmp_path


@pytest.mark.parametrize("autoload", ["", "1"], ids=["as set by this project", "by the user"])
def test_torch_npu_without_cann(torch_npu_without_cann: Path, autoload: str) -> None:
    """Reported whether torch can be imported or, as the user's variable says otherwise, not."""
    environment = {"PYTHONPATH": str(torch_npu_without_cann), "ASCEND_HOME_PATH": ""}
    if autoload:
        environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = autoload
    result = run("train.py", "--check", "--precision=fp32", env=environment)
    assert result.returncode == 1, result.stderr
    assert not result.stderr
    assert "torch_npu  2.13.0" in result.stdout
    assert "CANN       not found" in result.stdout
    assert "libhccl.so: cannot open shared object file" in result.stdout
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in result.stdout
    assert "set_env.sh" in result.stdout
    assert ("one step" in result.stdout) == (not autoload)
    assert ("training cannot be imported" in result.stdout) == bool(autoload)
    assert result.stdout.splitlines()[-1] == f"problems: {2 if autoload else 1}, see above"


def test_the_launcher_loads_no_torch_npu_that_fails(torch_npu_without_cann: Path) -> None:
    """A process that it starts tells why there is no NPU, and goes on."""
    program = [sys.executable, ROOT / "test/torchrun.py", "--help"]
    as_in_a_script = ["env", "-u", "TORCH_DEVICE_BACKEND_AUTOLOAD", *program]
    environment = os.environ | {"PYTHONPATH": str(torch_npu_without_cann)}
    result = subprocess.run(as_in_a_script, env=environment, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_machine_without_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    result = run("train.py", "--check", env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    assert "No module named 'torch'" in result.stdout
    assert not result.stderr
