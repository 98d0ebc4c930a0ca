"""Every command on a Python that is too old: one line, before anything newer is met."""

import ast
import subprocess
import sys

import pytest
from commands import HANG, ROOT

ENTRIES = sorted(p.name for p in ROOT.glob("*.py") if "__main__" in p.read_text(encoding="utf-8"))
OLD = """
import runpy, sys
sys.version_info = (3, 9, 18, "final", 0)
sys.path.insert(0, sys.argv[1])
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_entries() -> None:
    named = {"train.py", "prepare.py", "evaluate.py", "upscale.py", "export.py"}
    assert named | {"modelarts_entry_acc.py", "modelarts_entry_perf.py"} == set(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_older_python_is_told_so_in_one_line(entry: str) -> None:
    """Where nothing is installed, either: -S leaves the installed packages out."""
    command = [sys.executable, "-S", "-c", OLD, str(ROOT), str(ROOT / entry), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.stderr == "error: this is Python 3.9; 3.10 or newer is needed\n"
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("file", ["runtime/__init__.py", *ENTRIES])
def test_an_older_python_can_compile_what_it_meets(file: str) -> None:
    ast.parse((ROOT / file).read_text(encoding="utf-8"), feature_version=(3, 7))
