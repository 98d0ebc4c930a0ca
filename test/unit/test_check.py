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


def with_cann(version: str, **more: object) -> Found:
    """Return an installation in which all but what `more` says fits this CANN."""
    release = next(release for release in RELEASES if release.cann == version)
    torch_npu = release.torch_npu[-1]
    found = Found(order(torch_npu).base_version, torch_npu, Cann(HOME, version, True), numpy="1.24")
    return found._replace(**more)


@pytest.mark.parametrize(
    ("cann", "numpy", "mend"),
    [
        ("8.0.0", "1.24.4", ""),
        ("8.0.0", "1.26.4", 'pip install "numpy<1.25"'),
        ("8.0.0", "2.1.0", 'pip install "numpy<1.25"'),
        ("8.1.RC1", "1.26.4", ""),
        ("8.5.0", "1.26.4", ""),
        ("8.5.0", "2.0.0", 'pip install "numpy<2"'),
        ("9.0.0", "2.3.0", ""),
        ("9.2.0", "2.3.0", ""),
    ],
)
def test_numpy_that_cann_cannot_use(cann: str, numpy: str, mend: str) -> None:
    found = problems(with_cann(cann, numpy=numpy))
    assert len(found) == bool(mend)
    if mend:
        assert found[0].startswith(f"numpy {numpy} is too new for CANN {cann}")
        assert found[0].endswith(mend)


def test_packages_that_cann_imports() -> None:
    missing = ("decorator", "protobuf==3.20.*")
    (problem,) = problems(with_cann("9.0.0", cann_missing=missing))
    assert "CANN 9.0.0" in problem
    assert problem.endswith('pip install decorator "protobuf==3.20.*"')
    assert not problems(with_cann("9.1.0", cann_missing=missing))


def test_packages_that_cann_imports_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = dict.fromkeys(installed.CANN_IMPORTS, "1.0")
    monkeypatch.setattr(installed, "_version", lambda name: versions.get(name, ""))
    assert installed.find_cann_missing() == ["protobuf==3.20.*"]
    versions |= {"protobuf": "5.29.0", "scipy": ""}
    assert installed.find_cann_missing() == ["scipy", "protobuf==3.20.*"]
    versions |= {"protobuf": "3.20.3", "scipy": "1.15"}
    assert not installed.find_cann_missing()


@pytest.mark.parametrize(
    ("torch_npu", "mend"),
    [
        ("2.13.0", "torch==2.13.0+cpu"),
        ("2.12.0.post3", "pip install torch_npu==2.12.0.post2"),
        ("2.10.0.post7", "pip install torch_npu==2.10.0.post6"),
        ("2.12.0.post2", ""),
        ("2.9.0.post9", ""),
    ],
)
def test_torch_for_cuda_beside_torch_npu(torch_npu: str, mend: str) -> None:
    found = Found(order(torch_npu).base_version, torch_npu, torch_cuda="13.0")
    if not mend:
        assert not problems(found)
        return
    (problem,) = problems(found)
    assert f"torch_npu {torch_npu} aborts" in problem
    assert mend in problem
    assert not problems(found._replace(torch_cuda=""))


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


CHIPS = {  # as torch_npu and npu-smi name them, and whether they are of the first generation
    "Ascend910A": True, "910ProA": True, "Ascend910PremiumA": True, "Ascend910B": True,
    "910B4": False, "Ascend910B2C": False, "Ascend910_9382": False, "Ascend910": False,
    "Ascend310P3": False, "": False,
}  # fmt: skip


@pytest.mark.parametrize("chip", CHIPS)
def test_chip_of_the_first_generation(chip: str) -> None:
    fits = with_cann("8.5.0", chip=chip)
    assert not problems(fits)
    (package, *_) = [*problems(fits._replace(torch="2.10.0", torch_npu="2.10.0")), ""]
    (cann, *_) = [*problems(fits._replace(cann=Cann(HOME, "9.0.0", True))), ""]
    assert ("pip install torch==2.9.0 torch_npu==2.9.0" in package) == CHIPS[chip]
    assert ("install CANN 8.5.0" in cann) == CHIPS[chip]
    assert (f"torch_npu 2.10.0 is too new for {chip}" in package) == CHIPS[chip]
    assert (f"CANN 9.0.0 is too new for {chip}" in cann) == CHIPS[chip]


SMI = """
+----------------------------------------------------------------------------------------+
| npu-smi 23.0.0                   Version: 23.0.910                                      |
+---------------------------+---------------+--------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)   Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)|
+===========================+===============+============================================+
| 4     910ProA             | OK            | 93.6        40        0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0  3161 / 32768         |
+===========================+===============+============================================+
"""


def test_chip_is_found_by_npu_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    tool = tmp_path / "npu-smi"
    assert installed.find_chip() == ""
    for script, chip in [
        (f"[ \"$*\" = info ] && cat <<'EOF'{SMI}EOF", "910ProA"),
        ("echo no driver; exit 1", ""),
    ]:
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        assert installed.find_chip() == chip
    tool.write_text("\x00")  # no program
    assert installed.find_chip() == ""


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
