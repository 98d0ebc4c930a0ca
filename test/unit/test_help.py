"""--help answers at once: no stage loads a heavy library before its options are read."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

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
    stage = importlib.import_module(module)
    with pytest.raises(SystemExit) as end:
        stage.main(["--help"])
    assert end.value.code == 0
    description, _, options = capsys.readouterr().out.partition("options:\n")
    assert stage.__doc__ in description or module not in SHOWN
    listed = re.split(r"^  (?=-)", options, flags=re.MULTILINE)[1:]
    assert len(listed) >= 3
    for text in listed:
        _, *words = re.split(r"\s{2,}", text.strip(), maxsplit=1)
        assert words, f"{text.strip()} has no explanation"


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("train", ["--data_url="]),
        ("train", ["--data_url=data", "--train_url", ""]),
        ("prepare", ["--data-path=", "--download"]),
        ("evaluate", ["--images-dir="]),
        ("export", ["--output="]),
        ("upscale", ["", "--output=enlarged"]),
        ("upscale", ["photo.jpg", "--output="]),
    ],
)
def test_an_empty_path_is_not_the_current_folder(
    module: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a script passes it whose variable is not set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        importlib.import_module(module).main(words)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: argument \S+: is empty; name a file or folder\n", said), said
