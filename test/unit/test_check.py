"""train.py --check: what fits together, what is missing, whether a step computes right."""

import sys
from pathlib import Path

import pytest
import torch
from commands import assert_one_line_error, run

from ascend import installed, trial
from ascend.check import check
from ascend.installed import Cann, Found, find_apex, find_cann
from ascend.judge import judge
from ascend.versions import RELEASES, fit, order, suggest
from runtime.device import Choice
from train import training_step
from training.precision import Precision
from training.recipes import RECIPES

HOME = Path("/opt/cann")
NO_LIBRARY = (
    "torch_npu cannot be loaded (libhccl.so: cannot open shared object file: No such file or "
    "directory); source CANN's set_env.sh first"
)


def problems(found: Found, why_no_npu: str = "") -> list[str]:
    return [finding.text for finding in judge(found, why_no_npu) if finding.bad]


def test_versions_are_compared_as_versions() -> None:
    versions = ["2.10.1", "2.10.0", "2.10.0.post17", "2.9.0", "2.10.0rc2", "2.10.0.post4"]
    ordered = ["2.9.0", "2.10.0rc2", "2.10.0", "2.10.0.post4", "2.10.0.post17", "2.10.1"]
    assert sorted(versions, key=order) == ordered
    assert order("2.13.0+cpu") == order("2.13.0") == order("2.13")
    assert order("8.3.RC1") == order("8.3.0rc1") < order("8.3.0")
    assert order("8.5.0.alpha003") < order("8.5.0-beta.1") < order("8.5.0")


def test_the_table_names_each_torch_npu_once_and_in_order() -> None:
    names = [order(version) for release in RELEASES for version in release.torch_npu]
    assert len(set(names)) == len(names)
    canns = [order(release.cann) for release in RELEASES]
    assert canns == sorted(canns, reverse=True)
    for release in RELEASES:
        assert order(release.oldest) <= order(release.cann) <= order(release.newest)


# `pip index versions torch_npu`, from 2.1.0.post10 on: older ones came out for CANN 8.0.RC3.
PUBLISHED = """
2.14.0 2.13.0 2.12.0.post3 2.12.0.post2 2.12.0 2.11.0.post3 2.11.0.post2 2.11.0 2.10.0.post7
2.10.0.post6 2.10.0.post4 2.10.0.post2 2.10.0 2.9.1 2.9.0.post9 2.9.0.post8 2.9.0.post6 2.9.0.post4
2.9.0.post2 2.9.0 2.8.0.post5 2.8.0.post4 2.8.0.post2 2.8.0 2.7.1.post11 2.7.1.post10 2.7.1.post8
2.7.1.post6 2.7.1.post4 2.7.1.post2 2.7.1 2.6.0.post5 2.6.0.post3 2.6.0 2.5.1.post1 2.5.1
2.4.0.post4 2.4.0.post2 2.3.1.post6 2.3.1.post4 2.1.0.post17 2.1.0.post13 2.1.0.post12 2.1.0.post10
"""


def test_every_published_release_is_in_the_table() -> None:
    assert {v for release in RELEASES for v in release.torch_npu} == set(PUBLISHED.split())


@pytest.mark.parametrize(
    ("torch_npu", "cann", "bad", "part"),
    [
        ("2.9.0.post8", "9.1.0", False, "released for each other"),
        ("2.9.1", "9.0.0", False, "released for each other"),
        ("2.5.1", "8.3.RC1", False, "work together; released for it was CANN 8.1.RC1"),
        ("2.5.1", "8.5.0", True, "needs CANN 8.0.RC2 to 8.3.RC1, best 8.1.RC1"),
        ("2.13.0", "9.2.0", False, "released for each other"),
        ("2.9.0.post2", "9.0.0", False, "released for each other"),
        ("2.1.0.post17", "8.3.rc1", False, "released for each other"),
        ("2.13.0", "9.0.0", False, "work together; released for it was CANN 9.2.0"),
        ("2.13.0", "9.2.3", False, "work together"),
        ("2.13.0", "8.3.RC1", True, "needs CANN 8.5.0 to 9.2.0, best 9.2.0"),
        ("2.8.0", "9.0.0", True, "needs CANN 8.0.RC2 to 8.3.RC1"),
        ("2.8.0", "10.0.0", False, "newer than the versions known here"),
        ("2.99.0", "9.2.0", False, "not in the table"),
    ],
)
def test_pairs_of_torch_npu_and_cann(torch_npu: str, cann: str, bad: bool, part: str) -> None:
    finding = fit(torch_npu, cann)
    assert finding.bad == bad
    assert part in finding.text
    assert torch_npu in finding.text and cann in finding.text


def test_a_torch_npu_is_suggested_for_the_torch_that_is_there() -> None:
    assert suggest("2.10.0+cpu", "9.0.0") == "pip install torch_npu==2.10.0.post2"
    assert suggest("2.10.0", "8.5.0") == "pip install torch_npu==2.10.0.post7"
    assert suggest("2.7.1", "8.2.RC1") == "pip install torch_npu==2.7.1.post6"  # what works with it
    assert suggest("2.4.1", "9.0.0") == "pip install -r requirements-npu.txt"


def test_what_fits_is_no_problem() -> None:
    found = Found("2.13.0+cpu", "2.13.0", Cann(HOME, "9.2.0", True), "0.1 (Ascend's)")
    assert not problems(found)
    assert not problems(Found(torch="2.13.0"))


def test_another_torch_than_torch_npu_needs() -> None:
    found = Found("2.10.0", "2.1.0.post17", Cann(HOME, "9.0.0", True))
    (problem,) = problems(found)
    assert "torch 2.10.0 and torch_npu 2.1.0.post17 do not go together" in problem
    assert "pip install torch_npu==2.10.0.post2" in problem


def test_packages_that_are_missing_are_named() -> None:
    assert problems(Found(torch="2.13.0", missing=["h5py", "tqdm"])) == [
        "not installed: h5py, tqdm; pip install -r requirements.txt"
    ]
    assert "torch" in installed._required()


def test_cann_without_torch_npu() -> None:
    (problem,) = problems(Found("2.12.0", cann=Cann(HOME, "9.1.0", False)))
    assert "torch_npu is not: pip install torch_npu==2.12.0.post2" in problem


def test_torch_npu_without_cann_is_explained() -> None:
    (problem,) = problems(Found("2.13.0", "2.13.0"), NO_LIBRARY)
    assert "(libhccl.so: cannot open shared object file: No such file or directory)." in problem
    assert "plain `import torch` fails" in problem
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in problem
    assert "install CANN 9.2.0, then source its set_env.sh" in problem
    assert "pip uninstall torch_npu" in problem


def test_cann_that_is_not_sourced_is_named(tmp_path: Path) -> None:
    home = tmp_path / "ascend-toolkit" / "latest"
    home.mkdir(parents=True)
    (home.parent / "set_env.sh").touch()
    found = Found("2.13.0", "2.13.0", Cann(home, "9.2.0", False))
    (problem,) = problems(found, NO_LIBRARY)
    assert f"source {home.parent / 'set_env.sh'}" in problem
    assert f"CANN       9.2.0 ({home}, not in this environment)" in str(found)


@pytest.mark.parametrize(
    "file", ["x86_64-linux/ascend_toolkit_install.info", "ascend_nnae_install.info"]
)
def test_cann_is_found_by_its_files(tmp_path: Path, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("package_name=CANN\nversion=8.3.RC1\ninnerversion=V100\n")
    expected = Cann(tmp_path, "8.3.RC1", True)
    assert find_cann({"ASCEND_HOME_PATH": str(tmp_path)}) == expected
    assert find_cann({"ASCEND_TOOLKIT_HOME": str(tmp_path)}) == expected
    assert find_cann({}, [tmp_path / "no", tmp_path]) == expected._replace(sourced=False)


def test_cann_whose_version_no_file_tells(tmp_path: Path) -> None:
    cann = find_cann({"ASCEND_HOME_PATH": str(tmp_path)})
    assert cann == Cann(tmp_path, "", True)
    assert "version not found" in str(Found(cann=cann))
    assert not problems(Found("2.13.0", "2.13.0", cann))
    assert find_cann({"ASCEND_HOME_PATH": str(tmp_path / "no")}) is None
    assert "CANN       not found" in str(Found())


APEXES = {
    "the unrelated project": {"__init__.py": "import pyramid\n", "models.py": ""},
    "NVIDIA's": {"__init__.py": "", "amp/__init__.py": "", "optimizers/fused_adam.py": ""},
    "Ascend's": {
        "__init__.py": "",
        "amp/__init__.py": "",
        "optimizers/__init__.py": "from .npu_fused_adam import NpuFusedAdam\n",
    },
}


@pytest.mark.parametrize("maker", APEXES)
def test_whose_apex_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maker: str) -> None:
    """It is not imported for that: the unrelated one cannot be."""
    for name, text in APEXES[maker].items():
        file = tmp_path / "apex" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    apex = find_apex()
    assert maker in apex
    assert "apex" not in sys.modules
    with_npu = problems(Found("2.13.0", "2.13.0", Cann(HOME, "9.2.0", True), apex))
    assert len(with_npu) == (maker != "Ascend's")
    assert all("pip uninstall apex" in problem for problem in with_npu)
    assert not problems(Found("2.13.0", apex=apex))


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


def test_a_machine_with_a_cpu_alone_passes_and_is_told_so() -> None:
    """Needs no dataset."""
    result = run("train.py", "--check", "--precision=fp32", env={"CUDA_VISIBLE_DEVICES": ""})
    assert result.returncode == 0, result.stderr
    assert f"torch      {torch.__version__}" in result.stdout
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


@pytest.fixture
def torch_npu_without_cann(tmp_path: Path) -> Path:
    """A folder with a torch_npu that fails as the real one does, and is loaded by torch itself."""
    package = tmp_path / "torch_npu"
    package.mkdir()
    error = "libhccl.so: cannot open shared object file: No such file or directory"
    (package / "__init__.py").write_text(f"raise ImportError({error!r})\n")
    metadata = tmp_path / "torch_npu-2.13.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0\n")
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


def test_a_machine_without_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    result = run("train.py", "--check", env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    assert "No module named 'torch'" in result.stdout
    assert not result.stderr
