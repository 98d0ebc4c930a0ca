"""--help answers at once: no stage loads a heavy library before its options are read."""

import subprocess
import sys

import pytest
from commands import HANG, ROOT

HEAVY = {"torch", "h5py", "skimage", "scipy", "matplotlib", "pooch", "requests", "onnx", "flask"}
SHOWN = {
    "train": "--recipe",
    "prepare": "--images-dir",
    "evaluate": "modelzoo",
    "upscale": "--self-ensemble",
    "export": "--opset",
}
PROGRAM = """
import runpy, sys
stage, sys.argv = sys.argv[1], [sys.argv[1], "--help"]
try:
    runpy.run_path(stage, run_name="__main__")
except SystemExit as end:
    print(end.code, *sys.modules)
"""


@pytest.mark.parametrize("stage", SHOWN)
def test_help_loads_nothing_heavy(stage: str) -> None:
    command = [sys.executable, "-c", PROGRAM, str(ROOT / f"{stage}.py")]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANG
    )
    assert result.returncode == 0, result.stderr
    text, _, last = result.stdout.rstrip().rpartition("\n")
    status, *modules = last.split()
    assert status == "0"
    heavy = HEAVY | ({"tqdm"} if stage == "prepare" else set())
    assert not heavy & set(modules)
    assert SHOWN[stage] in text
