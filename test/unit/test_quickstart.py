"""quickstart.sh, which `make train` runs: where the data comes from, and in which order."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from commands import HANG, ROOT, assert_one_line_error, run, wait_until

# Stands in for Python: writes down each call, and ends a download with a given status.
RECORDER = """#!/bin/bash
printf '%s\\n' "$*" >> "$CALLS"
case "$*" in
  *--download*) exit "$DOWNLOAD_STATUS" ;;
  train.py*) exit "$TRAINING_STATUS" ;;
  *) exit "$EVALUATION_STATUS" ;;
esac
"""
# Stands in for Python: each command waits for a signal, and writes down which one ended it.
WAITING = """#!/bin/bash
for name in INT TERM; do trap "echo $name >> '$CALLS'; exit 1" $name; done
echo waits >> "$CALLS"
while :; do sleep 0.05; done
"""


def quickstart(
    folder: Path,
    data: str,
    status: int = 0,
    scale: str = "3",
    training: int = 0,
    evaluation: int = 0,
) -> tuple[int, list[str]]:
    python, calls = folder / "python", folder / "calls"
    python.write_text(RECORDER)
    python.chmod(0o755)
    calls.touch()
    given = {"PYTHON": str(python), "CALLS": str(calls)}
    given |= {"DOWNLOAD_STATUS": str(status), "TRAINING_STATUS": str(training)}
    given["EVALUATION_STATUS"] = str(evaluation)
    command = ["bash", ROOT / "quickstart.sh", data, scale, "outputs"]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **given}, check=False)
    return done.returncode, calls.read_text().splitlines()


def test_download_train_evaluate(tmp_path: Path) -> None:
    (tmp_path / "dataset/images/Test/Set5").mkdir(parents=True)
    status, calls = quickstart(tmp_path, "dataset", scale="2")
    assert status == 0
    assert calls == [
        "prepare.py --data-path dataset --scale 2 --download",
        "train.py --data_url dataset --scale 2 --recipe fast --outputs-dir outputs",
        "evaluate.py --weights outputs/x2/best.pth --scale 2 --images-dir dataset/images/Test/Set5 "
        "--protocol paper --report outputs/x2/report --training-log outputs/x2/metrics.csv",
    ]


def test_without_a_network_the_sample_photographs(tmp_path: Path) -> None:
    status, calls = quickstart(tmp_path, "dataset", status=3)
    assert status == 0
    assert "--data-path dataset-sample --scale 3 --sample" in calls[1]
    assert "--data_url dataset-sample" in calls[2]
    assert calls[3].startswith("evaluate.py --weights outputs/x3/best.pth --scale 3 ")
    assert "--data-path dataset-sample" in calls[3]


@pytest.mark.parametrize("status", [1, 2])
def test_a_wrong_download_is_not_passed_over(tmp_path: Path, status: int) -> None:
    ended, calls = quickstart(tmp_path, "dataset", status=status)
    assert ended == status
    assert len(calls) == 1


def test_a_folder_with_data_is_used_as_it_is(tmp_path: Path) -> None:
    for name in ("train/T91_x3.h5", "val/Set5_x3.h5"):
        path = tmp_path / "my data" / name
        path.parent.mkdir(parents=True)
        path.touch()
    status, calls = quickstart(tmp_path, "my data")
    assert status == 0
    assert [call.split()[0] for call in calls] == ["train.py", "evaluate.py"]


@pytest.mark.parametrize("names", [["T91_x2", "Set5_x2"], ["T91_x3"], ["T91_x3", "Set5_x2"]])
def test_data_of_another_scale_or_half_of_it_is_not_enough(
    tmp_path: Path, names: list[str]
) -> None:
    """prepare.py keeps what is there, and makes what an interruption left to be made."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
    for name, split in zip(names, ("train", "val"), strict=False):
        (tmp_path / "data" / split / f"{name}.h5").touch()
    _, calls = quickstart(tmp_path, "data")
    assert calls[0].startswith("prepare.py")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_of_own_files_is_not_filled_with_others(
    tmp_path: Path, split: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine" / split).mkdir(parents=True)
    (tmp_path / "mine" / split / "birds_x2.h5").touch()
    assert quickstart(tmp_path, "mine") == (2, [])
    assert capfd.readouterr().err == (
        "error: mine has files of its own, and not both of x3; make these of the same images: "
        "prepare.py --data-path mine --scale 3 --train-images FOLDER --eval-images FOLDER\n"
    )


def test_a_folder_that_was_named_is_not_replaced_by_the_samples(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, calls = quickstart(tmp_path, "mime", status=3)
    assert (status, len(calls)) == (1, 1)
    assert capfd.readouterr().err == (
        "error: mime has no files of x3, and T91 and Set5 cannot be fetched; without DATA, "
        "make train takes scikit-image's photographs\n"
    )


def test_prepare_tells_a_missing_network_by_its_status(tmp_path: Path) -> None:
    words = ["--data-path", tmp_path / "dataset", "--download"]
    result = run("prepare.py", *words, env={"SRCNN_IMAGES_URL": "http://127.0.0.1:1"})
    assert_one_line_error(result, "no network", "--sample", status=3)
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.parametrize(("status", "told"), [(129, True), (130, True), (143, True), (1, False)])
def test_how_to_go_on_with_a_training_that_was_ended(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], status: int, told: bool
) -> None:
    ended, calls = quickstart(tmp_path, "my data", training=status)
    assert ended == status
    assert calls[-1].startswith("train.py")
    last = f"to go on (make train would start anew): '{tmp_path}/python' 'train.py' "
    last += "'--data_url' 'my data' '--scale' '3' '--recipe' 'fast' '--outputs-dir' 'outputs' "
    last += f"--resume && '{tmp_path}/python' 'evaluate.py' '--weights' 'outputs/x3/best.pth' "
    last += "'--scale' '3' '--data-path' 'my data' '--report' 'outputs/x3/report' "
    last += "'--training-log' 'outputs/x3/metrics.csv'\n"
    assert capfd.readouterr().err == last * told


def test_a_training_whose_evaluation_was_ended_is_not_to_be_repeated(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ended, calls = quickstart(tmp_path, "my data", evaluation=130)
    assert (ended, len(calls)) == (130, 3)
    message = capfd.readouterr().err
    assert message.startswith(
        f"to go on (make train would start anew): '{tmp_path}/python' 'evaluate.py' '--weights' "
    )
    assert message.endswith(" '--training-log' 'outputs/x3/metrics.csv'\n")
    assert "'--data-path' 'my data'" in message


def test_without_arguments_it_says_how_it_is_called() -> None:
    command = ["bash", ROOT / "quickstart.sh"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    usage = "error: expected DATA SCALE OUTPUTS; `make train` calls it so\n"
    assert (done.returncode, done.stderr) == (2, usage)


@pytest.mark.parametrize("whom", ["make", "the terminal"])
def test_the_command_in_work_ends_with_make(tmp_path: Path, whom: str) -> None:
    """By a signal to make alone, as `kill` sends it, or to all that runs on the terminal."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(WAITING)
    python.chmod(0o755)
    calls.touch()
    (tmp_path / "Makefile").write_text(f"train:\n\tbash {ROOT}/quickstart.sh dataset 3 outputs\n")
    process = subprocess.Popen(
        ["make", "train"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": str(python), "CALLS": str(calls)},
        start_new_session=True,
    )
    wait_until(calls.read_text, process)
    if whom == "make":
        process.terminate()
    else:
        os.killpg(process.pid, signal.SIGINT)
    process.wait(HANG)
    assert calls.read_text().splitlines() == ["waits", "TERM" if whom == "make" else "INT"]


def dry_run(*words: str) -> str:
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", "-C", ROOT, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_make_hands_on_its_variables_and_its_python() -> None:
    printed = dry_run("train", "DATA=my data", "SCALE=2", "OUTPUTS=o")
    assert 'PYTHON=.venv/bin/python bash quickstart.sh "my data" "2" "o"\n' in printed
    assert "pip install" in printed, "without .venv"
    assert "--require-hashes -r constraints.txt" in printed


def test_make_clean_leaves_data_and_results() -> None:
    printed = dry_run("clean")
    assert "rm -rf .venv build" in printed
    assert not any(name in printed for name in ("outputs", "dataset", "weights"))
