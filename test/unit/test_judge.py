"""What is found on a machine, and what of it does not fit."""

import platform
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import ROOT

from ascend import installed
from ascend.installed import Cann, Found, find, find_apex, find_cann
from ascend.judge import judge
from ascend.versions import RELEASES, order
from runtime import torch_build

HOME = Path("/opt/cann")
NO_LIBRARY = (
    "torch_npu cannot be loaded (libhccl.so: cannot open shared object file: No such file or "
    "directory); source CANN's set_env.sh first"
)


def problems(found: Found, why_no_npu: str = "") -> list[str]:
    return [finding.text for finding in judge(found, why_no_npu) if finding.bad]


def test_what_fits_is_no_problem() -> None:
    found = Found("2.13.0+cpu", "2.13.0", Cann(HOME, "9.2.0", True), "0.1 (Ascend's)")
    assert not problems(found)
    assert not problems(Found(torch="2.13.0"))


def test_another_torch_than_torch_npu_needs() -> None:
    found = Found("2.10.0", "2.1.0.post17", Cann(HOME, "9.0.0", True))
    (problem,) = problems(found)
    assert "torch 2.10.0 and torch_npu 2.1.0.post17 do not go together" in problem
    assert "pip install torch_npu==2.10.0.post2" in problem


def test_a_torch_that_is_missing_is_no_other_torch() -> None:
    assert not problems(Found("", "2.13.0", Cann(HOME, "9.2.0", True)))


def test_packages_that_are_missing_are_named() -> None:
    assert problems(Found(torch="2.13.0", missing=["h5py", "tqdm"])) == [
        "not installed: h5py, tqdm; pip install -r requirements.txt"
    ]
    assert "torch" in installed._required()


def test_what_is_found_and_how_it_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    monkeypatch.setattr(installed, "_version", lambda name: "" if name == "h5py" else f"{name}'s")
    monkeypatch.setattr(installed, "cuda_version", lambda: "13.0")
    monkeypatch.setattr(installed, "find_apex", lambda: "0.1 (Ascend's)")
    monkeypatch.setattr(installed, "find_chip", lambda: "910B4")
    found = find()
    cann, cann_missing = Cann(tmp_path, "", True), ["protobuf==3.20.*"]
    assert found == Found(
        *("torch's", "torch_npu's", cann, "0.1 (Ascend's)", ["h5py"], "13.0", "numpy's"),
        *(cann_missing, "910B4", platform.python_version()),
    )
    assert str(found).splitlines() == [
        f"python     {platform.python_version()}",
        "torch      torch's, for CUDA 13.0",
        "torch_npu  torch_npu's",
        f"CANN       version not found ({tmp_path})",
        "apex       0.1 (Ascend's)",
        "numpy      numpy's",
        "NPU        910B4",
    ]
    assert str(Found()).splitlines() == [
        "python     ",
        "torch      not installed",
        "torch_npu  not installed",
        "CANN       not found",
        "apex       not installed",
        "numpy      not installed",
        "NPU        none that npu-smi shows",
    ]


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
    found = problems(with_cann(cann, numpy=numpy, python="3.12.9"))
    assert len(found) == bool(mend)
    if mend:
        assert found[0].startswith(f"numpy {numpy} is too new for CANN {cann}")
        assert found[0].endswith(mend)


def test_numpy_2_is_what_cann_takes_on_a_python_that_has_no_other() -> None:
    for python in ("3.13.0", "3.14.2"):
        assert not problems(with_cann("8.5.0", numpy="2.2.0", python=python))


@pytest.mark.parametrize("version", ["8.2.RC1.alpha003", "8.2.RC1-beta.1", "8.2.rc1.alpha1"])
def test_an_early_version_of_a_cann_is_taken_for_it(version: str) -> None:
    found = with_cann("8.2.RC1", numpy="1.26.4")
    assert problems(found._replace(cann=Cann(HOME, version, True))) == []


def test_packages_that_cann_imports() -> None:
    missing = ("decorator", "protobuf==3.20.*")
    (problem,) = problems(with_cann("9.0.0", cann_missing=missing))
    assert "CANN 9.0.0" in problem
    assert problem.endswith('pip install decorator "protobuf==3.20.*"')
    (problem,) = problems(with_cann("9.1.0", cann_missing=missing))
    assert problem.endswith("pip install decorator"), "any protobuf does"
    assert not problems(with_cann("9.1.0", cann_missing=missing[1:]))


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


def test_torch_npu_of_every_build_aborts() -> None:
    assert torch_build.aborts("2.13.0+git1234567", "13.0")
    assert not torch_build.aborts("2.13.0+git1234567", "")


def test_the_pair_that_is_named_does_not_abort_on_any_machine() -> None:
    """Without `+cpu` pip takes a torch for CUDA, on ARM, too, from 2.11 on."""
    lines = (ROOT / "requirements-npu.txt").read_text().splitlines()
    (torch_npu,) = (line.partition("==")[2] for line in lines if line.startswith("torch_npu=="))
    assert torch_build.aborts(torch_npu, "13.0")
    assert [line for line in lines if line.startswith("torch==")] == [f"torch=={torch_npu}+cpu"]


@pytest.mark.parametrize(
    ("version_file", "cuda"),
    [
        ("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nhip = None\n", "13.0"),
        ('cuda = "12.6"\n', "12.6"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.3'\n", ""),
        (None, ""),
    ],
)
def test_the_cuda_of_torch_is_read_from_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version_file: str | None, cuda: str
) -> None:
    if version_file is not None:
        (tmp_path / "version.py").write_text(version_file)
    specs = {"torch": SimpleNamespace(submodule_search_locations=[str(tmp_path)])}
    monkeypatch.setattr("importlib.util.find_spec", specs.get)
    assert torch_build.cuda_version() == cuda
    specs.clear()
    assert torch_build.cuda_version() == ""


CHIPS = {  # as torch_npu and npu-smi name them, and whether they are of the first generation
    "Ascend910A": True, "910ProA": True, "Ascend910PremiumA": True, "Ascend910B": True,
    "910B4": False, "Ascend910B2C": False, "Ascend910_9382": False, "Ascend910": False,
    "Ascend310P3": False, "": False,
}  # fmt: skip


@pytest.mark.parametrize("chip", CHIPS)
def test_chip_of_the_first_generation(chip: str) -> None:
    """What is newer than ModelZoo has for it is told, but no fault: torch_npu still lists it."""
    fits = with_cann("8.5.0", chip=chip)
    for found, told in [
        (fits, False),
        (fits._replace(torch="2.12.0", torch_npu="2.12.0"), CHIPS[chip]),
        (fits._replace(cann=Cann(HOME, "9.1.0", True)), CHIPS[chip]),
        (fits._replace(cann=None, torch="2.12.0", torch_npu="2.12.0"), CHIPS[chip]),
    ]:
        assert not problems(found)
        notes = [finding.text for finding in judge(found) if "first generation" in finding.text]
        assert len(notes) == told
        assert all(note.startswith(f"{chip} is a chip of the first") for note in notes)
        assert all("torch_npu 2.9.0 and CANN 8.5.0" in note for note in notes)


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


def test_cann_without_torch_npu_beside_a_torch_for_cuda() -> None:
    (problem,) = problems(Found("2.12.0", cann=Cann(HOME, "9.2.0", False), torch_cuda="13.0"))
    assert "torch_npu is not: pip install torch_npu==2.12.0.post2" in problem


def test_cann_without_torch_npu() -> None:
    (problem,) = problems(Found("2.12.0", cann=Cann(HOME, "9.1.0", False)))
    assert "torch_npu is not: pip install torch_npu==2.12.0.post2" in problem


@pytest.mark.parametrize(
    ("torch_npu", "cann"), [("2.13.0", "9.2.0"), ("2.9.0", "8.5.0"), ("2.99.0", "9.2.0")]
)
def test_torch_npu_without_cann_is_explained(torch_npu: str, cann: str) -> None:
    (problem,) = problems(Found(torch_npu, torch_npu), NO_LIBRARY)
    assert "(libhccl.so: cannot open shared object file: No such file or directory)." in problem
    assert "plain `import torch` fails" in problem
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in problem
    assert f"install CANN {cann}, then source its set_env.sh" in problem
    assert "pip uninstall torch_npu" in problem


def test_torch_npu_that_was_built_for_another_torch_is_not_told_to_source_cann() -> None:
    found = Found("2.12.0", "2.12.0.post3", Cann(HOME, "9.2.0", True))
    why = "torch_npu cannot be loaded (libtorch_npu.so: undefined symbol: _ZN2at4_ops); see"
    (problem,) = problems(found, why)
    assert "(libtorch_npu.so: undefined symbol: _ZN2at4_ops)." in problem
    assert "or another CANN: pip install torch_npu==2.12.0.post3" in problem
    assert "set_env.sh" not in problem
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
    (tmp_path / file).write_bytes(b"package_name=\xff\nversion=8.3.RC1\ninnerversion=V100\n")
    expected = Cann(tmp_path, "8.3.RC1", True)
    assert find_cann({"ASCEND_HOME_PATH": str(tmp_path)}) == expected
    assert find_cann({"ASCEND_TOOLKIT_HOME": str(tmp_path)}) == expected
    assert find_cann({}, [tmp_path / "no", tmp_path]) == expected._replace(sourced=False)


@pytest.mark.parametrize(
    "place", ["Ascend/cann", "Ascend/ascend-toolkit/latest", "packages/ascend/cann-9.1.0"]
)
def test_cann_of_conda_and_pip_is_found_with_this_python(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before that of the machine, which may be another."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "packages")])
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "Ascend" / "cann").mkdir(parents=True)
    (tmp_path / place).mkdir(parents=True)
    assert find_cann({}, installed.usual_places()) == Cann(tmp_path / place, "", False)
    (tmp_path / place).rmdir()
    machine = find_cann({}, installed.usual_places())
    assert machine == Cann(tmp_path / "home" / "Ascend" / "cann", "", False)


def test_cann_whose_version_no_file_tells(tmp_path: Path) -> None:
    cann = find_cann({"ASCEND_HOME_PATH": str(tmp_path)})
    assert cann == Cann(tmp_path, "", True)
    assert "version not found" in str(Found(cann=cann))
    assert not problems(Found("2.13.0", "2.13.0", cann))
    assert not problems(Found("2.13.0", "2.13.0", cann, numpy="2.2.0", python="3.11.9"))
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
    (tmp_path / "apex-0.1.dist-info").mkdir()
    (tmp_path / "apex-0.1.dist-info" / "METADATA").write_text("Name: apex\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    apex = find_apex()
    assert apex.startswith(f"0.1 ({maker}")
    assert "apex" not in sys.modules
    with_npu = problems(Found("2.13.0", "2.13.0", Cann(HOME, "9.2.0", True), apex))
    assert len(with_npu) == (maker != "Ascend's")
    assert all("pip uninstall apex" in problem for problem in with_npu)
    assert not problems(Found("2.13.0", apex=apex))
