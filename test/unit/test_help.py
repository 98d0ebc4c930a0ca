"""--help answers at once: no stage loads a heavy library before its options are read."""

import importlib
import re
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


@pytest.mark.parametrize("module", [*SHOWN, "modelarts_entry_acc"])
def test_every_option_says_what_it_is(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(module).main(["--help"])
    assert end.value.code == 0
    *_, options = capsys.readouterr().out.partition("options:\n")
    listed = re.split(r"^  (?=-)", options, flags=re.MULTILINE)[1:]
    assert len(listed) >= 3
    for text in listed:
        _, *words = re.split(r"\s{2,}", text.strip(), maxsplit=1)
        assert words, f"{text.strip()} has no explanation"
