"""What comes out of the scripts: files, figures, exit statuses, the evaluation's log."""

import os
import re
from pathlib import Path

import pytest
from commands import WITHOUT_OVERRIDE


def test_full_training_leaves_the_contracts_files_and_figures(repository):
    done = repository.run("full_1p")
    assert done.returncode == 0, done.stderr
    # mean of 2, 4, 6 ms over three epochs = 4 ms a step of 32 patches
    final = repository.final(done.stdout)
    assert final and final.group(1, 2, 4) == ("8000.00", "0.00400", "32.00")
    assert "no NPU was used (device: cpu (auto)" in done.stdout
    measured = "evaluation set: /data/Set5_x3.h5, 5 images, bicubic 30.92 dB (modelzoo protocol)\n"
    assert f"{measured}(chosen on Set5_x3 itself)\n---" in done.stdout, "what the figure is of"

    case = f"{repository.root.name}_bs32_1p_acc"
    assert sorted(p.name for p in repository.output().iterdir()) == sorted(
        ["ckpt", "train_0.log", f"{case}.log", f"{case}_loss.txt"]
    )
    losses = (repository.output() / f"{case}_loss.txt").read_text()
    assert losses == "0.500000\n0.250000\n0.166667\n"
    text = (repository.output() / f"{case}.log").read_text()
    assert text.startswith(f"Network = {repository.root.name}\nRankSize = 1\nBatchSize = 32\n")
    assert f"\nCaseName = {case}\n" in text
    figures = repository.figures("bs32_1p_acc")
    assert figures["DeviceType"] == os.uname().machine
    assert (figures["ActualFPS"], figures["TrainingTime"]) == ("8000.00", "4.00")
    assert (figures["ActualLoss"], figures["TrainAccuracy"]) == ("0.166667", "32.00")
    assert figures["E2ETrainingTime"].isdigit()
    assert "CompileTime" not in figures


def test_full_training_is_the_published_one(repository):
    assert repository.run("full_1p").returncode == 0
    (call,) = repository.calls()
    assert call["argv"] == [
        f"--data_url={repository.data}",
        f"--train_url={repository.output() / 'ckpt'}",
        "--num-epochs=500",
        "--num-steps=0",
        "--batch-size=32",
        "--lr=1e-4",
    ]


def test_a_reason_that_names_the_npu_is_no_npu(repository):
    script = repository.root / "train.py"
    reason = "(auto; no npu: torch_npu is not installed)"
    script.write_text(script.read_text().replace("{kind} (auto)", f"{{kind}} {reason}"))
    assert f"no NPU was used (device: cpu {reason}" in repository.run("full_1p").stdout


def test_performance_run(repository):
    done = repository.run("performance_1p", FAKE="npu")
    assert done.returncode == 0, done.stderr
    assert repository.final(done.stdout)
    assert "the NPU was used (device: npu:0 (auto)" in done.stdout
    argv = repository.calls()[0]["argv"]
    assert {"--num-epochs=10", "--batch-size=256", "--lr=3e-4"} <= set(argv)
    figures = repository.figures("bs256_1p_perf")
    assert figures["CompileTime"] == "1.234567"
    assert figures["ActualFPS"] == "64000.00"
    assert "TrainAccuracy" not in figures


@pytest.mark.parametrize("words", [["--batch-size", "4"], ["--batch-size=4"], ["--batch", "4"]])
def test_figures_are_of_the_batch_that_train_py_took(repository, words: list[str]):
    done = repository.run("performance_1p", "--batch_size=8", "--", *words)
    assert done.returncode == 0, done.stderr
    figures = repository.figures("bs4_1p_perf")
    assert (figures["BatchSize"], figures["ActualFPS"]) == ("4", "1000.00")
    assert repository.final(done.stdout).group(1) == "1000.00"


def test_failed_training_ends_with_its_status_and_last_lines(repository):
    done = repository.run("full_1p", FAKE="fail")
    assert done.returncode == 7
    assert "ended with status 7" in done.stderr
    assert done.stderr.endswith("a line before the end\nerror: the disk is full\n")
    assert "Final" not in done.stdout
    assert sorted(p.name for p in repository.output().iterdir()) == ["ckpt", "train_0.log"]


@pytest.mark.parametrize("fake", ["silent", "zero"])
def test_log_without_figures_is_no_success(repository, fake: str):
    done = repository.run("performance_1p", FAKE=fake)
    assert done.returncode == 1
    assert "holds no figures" in done.stderr
    assert "Final" not in done.stdout
    assert "division" not in done.stderr


def test_read_only_repository(repository, tmp_path: Path):
    """Logs go below the results, and earlier ones are kept there, too."""
    repository.make_read_only()
    results = tmp_path / f"results {repository.hostile}"
    for _ in range(2):
        done = repository.run("full_1p", f"--output_path={results}")
        assert done.returncode == 0, done.stderr
        assert repository.final(done.stdout)
    logs = results / "logs" / "0"
    case = f"{repository.root.name}_bs32_1p_acc"
    assert sorted(p.name for p in logs.iterdir()) == sorted(
        ["train_0.log", f"{case}.log", f"{case}_loss.txt"]
    )
    assert str(logs / "train_0.log") in done.stdout
    assert len(list((results / "logs").glob("0_*/train_0.log"))) == 1
    assert (results / "x3" / "best.pth").is_file()
    assert not repository.output().parent.exists()


def test_read_only_repository_without_another_folder(repository):
    repository.make_read_only()
    done = repository.run("full_1p")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: cannot write in {repository.root}/test/output; "
        f"name another place with --output_path=FOLDER\n"
    )
    assert not repository.record.exists()


def test_earlier_results_are_kept(repository):
    for _ in range(3):
        assert repository.run("full_1p").returncode == 0
    kept = [
        p for p in repository.output().parent.iterdir() if re.match(r"0_\d{8}-\d{6}_*$", p.name)
    ]
    assert len(kept) == 2
    for folder in kept:
        assert (folder / "train_0.log").is_file()
        assert (folder / "ckpt" / "x3" / "best.pth").is_file()
    assert (repository.output() / "train_0.log").read_text().count("best epoch") == 1


@pytest.mark.parametrize(
    ("option", "status", "message"),
    [
        ("--output_path={file}", 1, "cannot make the folder {file}"),
        ("--output_path={file}/new", 1, "cannot make the folder {file}/new"),
        ("--data_path={folder}", 2, "no train/*.h5 in {folder}; prepare.py --data-path fills it"),
    ],
)
def test_wrong_input_moves_no_earlier_results(
    repository, tmp_path: Path, option: str, status: int, message: str
):
    places = {"file": tmp_path / "file", "folder": repository.elsewhere}
    places["file"].touch()
    assert repository.run("full_1p").returncode == 0
    done = repository.run("full_1p", option.format_map(places))
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr == f"error: {message.format_map(places)}\n"
    assert sorted(p.name for p in repository.output().parent.iterdir()) == ["0", "0.lock"]
    assert (repository.output() / "ckpt" / "x3" / "best.pth").is_file()


def test_a_place_that_may_not_be_written_moves_no_earlier_results(repository, tmp_path: Path):
    assert repository.run("full_1p").returncode == 0
    repository.wrapper = WITHOUT_OVERRIDE
    (tmp_path / "place").mkdir(mode=0o555)
    done = repository.run("full_1p", f"--output_path={tmp_path}/place")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: cannot write in {tmp_path}/place\n"
    assert sorted(p.name for p in repository.output().parent.iterdir()) == ["0", "0.lock"]


@pytest.mark.parametrize("elsewhere", [[], ["--output_path=o"]])
def test_refused_training_leaves_earlier_results_in_their_place(repository, elsewhere: list[str]):
    assert repository.run("full_1p", *elsewhere).returncode == 0
    before = {p: p.read_text() for p in repository.output().rglob("*") if p.is_file()}
    for count in (1, 2):
        done = repository.run("full_1p", *elsewhere, FAKE="fail")
        assert done.returncode == 7
        assert [p.name for p in repository.output().parent.glob("0?*")] == ["0.lock"]
        logs = list(repository.output().glob("train_0.log_*"))
        assert len(logs) == count
        assert all("disk is full" in log.read_text() for log in logs)
        assert f"earlier results are back in {repository.output()}\n" in done.stdout
        assert any(f"the last lines of {log}:\n" in done.stderr for log in logs)
        assert done.stderr.endswith("error: the disk is full\n")
    after = {p: p.read_text() for p in repository.output().rglob("*") if p.is_file()}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2


@pytest.mark.parametrize(("fake", "platform"), [("begin, fail", ""), ("fail", "/m")])
def test_failed_training_that_began_or_is_the_platforms_has_the_folder(
    repository, fake: str, platform: str
):
    assert repository.run("full_1p").returncode == 0
    assert repository.run("full_1p", FAKE=fake, MODELARTS_MODEL_PATH=platform).returncode == 7
    assert "disk is full" in (repository.output() / "train_0.log").read_text()
    assert len(list(repository.output().parent.glob("0_*/train_0.log"))) == 1


@pytest.mark.parametrize("resume", ["--resume", "--resume=checkpoint_2.pt"])
def test_resumed_training_goes_on_in_its_folder(repository, resume: str):
    assert repository.run("full_1p").returncode == 0
    more = {"FIRST": "1", "BETTER": "1", "MODELARTS_MODEL_PATH": "/m"}
    done = repository.run("full_1p", "--", resume, **more)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch0 :") == 0  # on the screen: what is new in the log
    case = f"{repository.root.name}_bs32_1p_acc"
    losses = (repository.output() / f"{case}_loss.txt").read_text()
    assert losses == "0.500000\n0.125000\n0.083333\n"  # epochs 1 and 2 ran twice
    assert repository.figures("bs32_1p_acc")["TrainAccuracy"] == "33.00"
    assert repository.final(done.stdout).group(4) == "33.00"
    assert (repository.output() / "train_0.log").read_text().count("best epoch") == 2


def test_figures_are_those_of_this_training_where_there_was_none_to_resume(repository):
    """As where --output_path is another one than before: the log is the same."""
    assert repository.run("full_1p").returncode == 0
    other = f"--output_path={repository.root / 'other'}"
    done = repository.run("full_1p", other, "--", "--resume", ANEW="1", BETTER="1", FIRST="1")
    assert done.returncode == 0, done.stderr
    losses = repository.output() / f"{repository.root.name}_bs32_1p_acc_loss.txt"
    assert losses.read_text() == "0.125000\n0.083333\n"


def test_the_batch_is_that_of_this_training_where_there_was_none_to_resume(repository):
    assert repository.run("full_1p").returncode == 0
    done = repository.run("full_1p", "--batch_size=64", "--", "--resume", ANEW="1", FIRST="1")
    assert done.returncode == 0, done.stderr
    assert repository.figures("bs64_1p_acc")["BatchSize"] == "64"


@pytest.mark.parametrize("word", ["--check", "--help", "-h"])
@pytest.mark.parametrize("script", ["full_1p", "full_8p"])
def test_what_only_tells_something_leaves_earlier_results(repository, word: str, script: str):
    assert repository.run("full_1p").returncode == 0
    before = sorted(repository.output().parent.rglob("*"))
    done = repository.run(script, "--", word, FAKE="silent")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "device: cpu (auto), precision: fp32 (as asked)\n"
    assert word in repository.calls()[-1]["argv"]
    assert "--num-epochs=500" in repository.calls()[-1]["argv"]
    assert sorted(repository.output().parent.rglob("*")) == before


def test_duration_is_that_of_the_training(repository):
    """Bash counts SECONDS on from where the environment has it."""
    done = repository.run("full_1p", FAKE="slow", SECONDS="5000")
    seconds = repository.figures("bs32_1p_acc")["E2ETrainingTime"]
    assert 1 <= int(seconds) < 5000
    assert repository.final(done.stdout).group(3) == seconds


def test_evaluation(repository):
    for _ in range(2):
        done = repository.run(
            "eval_1p", f"--pth_path={repository.hostile}", "--scale=2", "--", "--device=cpu"
        )
        assert (done.returncode, done.stderr) == (0, "")
    call = repository.calls()[-1]
    assert call["argv"] == [
        f"--data-path={repository.data}",
        f"--weights={repository.elsewhere / repository.hostile}",
        "--scale=2",
        "--protocol=modelzoo",
        "--device=cpu",
    ]
    log = repository.output() / "eval_0.log"
    assert "eval psnr: 30.00" in log.read_text()
    assert log.read_text() in done.stdout
    assert len(list(repository.output().glob("eval_0.log_*"))) == 1


def test_evaluation_is_of_x3_by_default(repository):
    assert repository.run("eval_1p", "--pth_path=w").returncode == 0
    assert "--scale=3" in repository.calls()[0]["argv"]


def test_failed_evaluation(repository):
    done = repository.run("eval_1p", "--pth_path=w", FAKE="fail")
    assert done.returncode == 7
    assert "error: the disk is full" in done.stdout
    log = repository.output() / "eval_0.log"
    assert done.stderr == f"error: ended with status 7; log: {log}\n"


def test_an_evaluation_where_no_log_can_be_kept_says_what_needs_none(repository):
    repository.make_read_only()
    done = repository.run("eval_1p", "--pth_path=w.pth")
    assert done.returncode == 1
    output = f"{repository.root}/test/output/0"
    advice = "evaluate.py --data-path=FOLDER --weights=FILE needs no log"
    assert done.stderr == f"error: cannot write in {output}; {advice}\n"


def test_earlier_results_of_one_second_are_kept_apart(repository, tmp_path: Path):
    (tmp_path / "date").write_text("#!/bin/sh\necho 20260131-235959\n")
    (tmp_path / "date").chmod(0o755)
    for _ in range(3):
        done = repository.run("full_1p", PATH=f"{tmp_path}:{os.environ['PATH']}")
        assert done.returncode == 0, done.stderr
    for name in ("0_20260131-235959", "0_20260131-235959_"):
        assert (repository.output().parent / name / "train_0.log").is_file()


def test_the_loss_is_that_of_the_last_epoch(repository):
    """Also where it has risen."""
    script = repository.root / "train.py"
    script.write_text(script.read_text().replace("0.5 / (epoch + 1)", "0.5 * (epoch + 1)"))
    assert repository.run("full_1p").returncode == 0
    assert repository.figures("bs32_1p_acc")["ActualLoss"] == "1.500000"


def test_the_last_20_lines_of_a_failed_training_are_shown(repository):
    script = repository.root / "train.py"
    lines = "\\n".join(f"line {number}" for number in range(18))
    script.write_text(script.read_text().replace("a line before the end", lines))
    done = repository.run("full_1p", FAKE="fail")
    assert done.returncode == 7
    assert "\nline 0\n" in done.stderr
