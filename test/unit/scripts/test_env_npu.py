"""Where CANN's environment is looked for, and what is left alone."""

import sys
from pathlib import Path

import pytest


def cann(folder: Path) -> Path:
    """Make a set_env.sh that breaks under `set -eu`, as CANN's own do."""
    folder.mkdir(parents=True)
    (folder / "set_env.sh").write_text(
        'false\nexport ASCEND_HOME_PATH="from set_env"\n'
        "export LD_LIBRARY_PATH=/cann/lib64:$LD_LIBRARY_PATH$NOT_SET\n"
    )
    return folder


SOURCE = """
set -euo pipefail
. "$1"/test/env_npu.sh
echo "$- ${ASCEND_HOME_PATH:-} ${LD_LIBRARY_PATH:-}"
"""


def source(repository, **env: str) -> str:
    """Source env_npu.sh under `set -eu`, which must hold after it; return the variables."""
    done = repository.call(["bash", "-c", SOURCE, "-", str(repository.root)], **env)
    assert (done.returncode, done.stderr) == (0, "")
    options, rest = done.stdout.strip("\n").split(" ", 1)
    assert {"e", "u"} <= set(options)
    return rest


@pytest.mark.parametrize("place", ["cann", "ascend-toolkit", "nnae"])
def test_cann_is_found_in_the_home_folder(repository, place: str):
    cann(Path(repository.env["HOME"]) / "Ascend" / place)
    assert source(repository).startswith("from set_env /cann/lib64:")


@pytest.mark.parametrize(
    "place", ["Ascend/cann", "Ascend/ascend-toolkit", "lib/python/site-packages/ascend/cann-9.1.0"]
)
def test_cann_of_conda_and_pip_is_found_with_the_interpreter(
    repository, tmp_path: Path, place: str
):
    """Before that of the machine, which may be another."""
    cann(tmp_path / "en v" / place)
    there = Path(repository.env["HOME"]) / "Ascend" / "cann"
    there.mkdir(parents=True)
    (there / "set_env.sh").write_text("export ASCEND_HOME_PATH=the machine's\n")
    python = tmp_path / "python"
    python.write_text(f"""#!{sys.executable}
import sys
sys.prefix = {str(tmp_path / "en v")!r}
sys.path.append(sys.prefix + "/lib/python/site-packages")
exec(sys.argv[2])
""")
    python.chmod(0o755)
    assert source(repository, PYTHON=str(python)).startswith("from set_env ")


def test_cann_is_found_where_it_is_said_to_be(repository, tmp_path: Path):
    cann(Path(repository.env["HOME"]) / "Ascend" / "cann")
    toolkit = cann(tmp_path / "my toolkit") / "latest"  # set_env.sh lies beside it
    toolkit.mkdir()
    assert source(repository, ASCEND_TOOLKIT_HOME=str(toolkit)).startswith("from set_env ")
    elsewhere = source(repository, ASCEND_HOME_PATH="/nowhere")
    assert elsewhere.startswith("/nowhere ")


@pytest.mark.parametrize("end", ["", "/"])
def test_cann_that_is_set_up_is_left_alone(repository, tmp_path: Path, end: str):
    home = str(cann(tmp_path / "cann"))
    libraries = f"/first:{home}/lib64"
    assert source(repository, ASCEND_HOME_PATH=home + end, LD_LIBRARY_PATH=libraries) == (
        f"{home}{end} {libraries}"
    )


def test_machine_without_cann(repository):
    assert source(repository) == " "


def test_the_options_of_the_shell_that_sources_it_stay(repository):
    """An interactive shell has neither -e nor -u, with which it would end at the next mistake."""
    cann(Path(repository.env["HOME"]) / "Ascend" / "cann")
    plain = 'before=$-; . "$1"/test/env_npu.sh; [ "$before" = "$-" ]'
    done = repository.call(["bash", "-c", plain, "-", str(repository.root)])
    assert (done.returncode, done.stderr) == (0, "")
