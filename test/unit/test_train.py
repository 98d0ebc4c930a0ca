"""train.py as its users meet it: log lines, files, resuming, processes."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import HANG, ROOT, SMALL, assert_one_line_error, run, train

from inference.weights import load_weights
from model import SRCNN

EPOCH_LINE = re.compile(r"epoch(\d+) : loss=(\d+\.\d{6}), each_step_time=(\d+\.\d{6})")


@pytest.fixture(scope="session")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a whole run of 6 epochs, and its output in log.txt."""
    out = tmp_path_factory.mktemp("finished")
    result = train(dataset, out, *SMALL, "--num-epochs=6", "--tensorboard")
    assert result.returncode == 0, result.stderr
    (out / "log.txt").write_text(result.stdout)
    (out / "errors.txt").write_text(result.stderr)
    return out


def test_the_known_log_lines(finished: Path) -> None:
    lines = (finished / "log.txt").read_text().splitlines()
    epochs = [match for line in lines if (match := EPOCH_LINE.fullmatch(line))]
    assert [int(match[1]) for match in epochs] == list(range(6))
    psnrs = [line for line in lines if re.fullmatch(r"eval psnr: \d+\.\d\d", line)]
    assert len(psnrs) == 6
    best = [line for line in lines if line.startswith("best epoch: ")]
    assert len(best) == 1
    epoch, psnr = re.fullmatch(r"best epoch: (\d), psnr: (\d+\.\d\d)", best[0]).groups()
    assert psnrs[int(epoch)] == f"eval psnr: {psnr}"
    assert float(psnr) == max(float(line.split()[-1]) for line in psnrs)
    assert lines[0].startswith("device: cpu (auto; no npu: ")
    assert "precision: fp32 (as asked)" in lines[0]


def test_nothing_is_on_standard_error(finished: Path) -> None:
    """Not that PSNR is below bicubic's either, as it is for long in the reference recipe."""
    assert (finished / "errors.txt").read_text() == ""


def test_what_a_run_leaves_behind(finished: Path) -> None:
    folder = finished / "x3"
    files = {path.name for path in folder.iterdir()}
    assert files >= {"best.pth", "args.json", "environment.json", "metrics.csv", "timing.csv"}
    assert files >= {"curve.png", *(f"strip_picture{i}.png" for i in range(3))}
    assert {f"epoch_{n}.pth" for n in range(6)} <= files
    assert sorted(f for f in files if f.startswith("checkpoint")) == [
        "checkpoint_25.pt",
        "checkpoint_30.pt",
    ]
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert json.loads((folder / "args.json").read_text())["seed"] == 123
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["precision"] == "fp32"
    assert environment["device"] == "cpu"
    assert environment["torch"] == torch.__version__


def test_weights_are_a_plain_published_state_dict(finished: Path) -> None:
    state = torch.load(finished / "x3/best.pth", weights_only=True)
    assert list(state) == list(SRCNN().state_dict())
    assert all(t.dtype == torch.float32 and t.device.type == "cpu" for t in state.values())
    load_weights(finished / "x3/epoch_5.pth")


def test_metrics_say_what_the_log_says(finished: Path) -> None:
    log = (finished / "log.txt").read_text()
    with (finished / "x3/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [5 * n for n in range(1, 7)]
    assert [f"{float(row['loss']):.6f}" for row in rows] == re.findall(r"loss=([\d.]+)", log)
    assert [f"{float(row['psnr']):.2f}" for row in rows] == re.findall(r"eval psnr: (.*)", log)


def same_run(one: Path, other: Path) -> None:
    """The same metrics, and weights equal bit for bit."""
    assert (one / "x3/metrics.csv").read_text() == (other / "x3/metrics.csv").read_text()
    for name in ("best.pth", "epoch_5.pth"):
        states = [torch.load(folder / "x3" / name, weights_only=True) for folder in (one, other)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_stopped_by_steps_and_resumed_from_the_last_whole_checkpoint(
    dataset: Path, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "x3"
    folder.mkdir()
    for name in ("checkpoint_25.pt", "best.pth"):
        (folder / name).write_bytes((finished / "x3" / name).read_bytes())
    whole = (finished / "x3/checkpoint_30.pt").read_bytes()
    (folder / "checkpoint_30.pt").write_bytes(whole[: len(whole) // 2])
    result = train(dataset, tmp_path, *SMALL, "--num-epochs=6", "--resume")
    assert result.returncode == 0, result.stderr
    assert "checkpoint_30.pt is no whole checkpoint" in result.stderr
    assert "resuming from" in result.stderr
    same_run(finished, tmp_path)


def test_resuming_with_other_mathematics_is_refused(dataset: Path, finished: Path) -> None:
    result = train(dataset, finished, *SMALL, "--num-epochs=6", "--resume", "--seed=4")
    assert_one_line_error(result, "seed is 4, in the checkpoint 123")


def test_earlier_results_are_moved_aside(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "x3").mkdir()
    (tmp_path / "x3/best.pth").write_text("precious")
    result = train(dataset, tmp_path, *SMALL, "--num-steps=3")
    assert result.returncode == 0, result.stderr
    assert len(EPOCH_LINE.findall(result.stdout)) == 1
    (kept,) = tmp_path.glob("x3.*/best.pth")
    assert kept.read_text() == "precious"
    assert f"earlier results are now in {kept.parent}" in result.stdout


@pytest.mark.parametrize("whole_images", [True, False])
def test_fast_recipe_takes_crops_or_patches(
    dataset: Path, tmp_path: Path, whole_images: bool
) -> None:
    data = dataset
    if not whole_images:
        data = tmp_path / "patches only"
        (data / "train").mkdir(parents=True)
        (data / "train/T91_x3.h5").symlink_to(dataset / "train/T91_x3.h5")
        (data / "val").symlink_to(dataset / "val")
    result = train(data, tmp_path / "out", "--recipe=fast", "--num-steps=30", "--select=held-out")
    assert result.returncode == 0, result.stderr
    source = "48×48 from 5 whole" if whole_images else "33×33 from 42 patches"
    assert f"random crops of {source}" in result.stdout
    assert "(chosen on held-out training images)" in result.stdout
    with (tmp_path / "out/x3/metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["held_out_psnr"]) > 0
    assert row["raw_psnr"] != row["psnr"]


def test_the_fast_recipe_from_disk_is_that_from_memory(dataset: Path, tmp_path: Path) -> None:
    options = ["--recipe=fast", "--num-steps=12", "--precision=fp32", "--select=held-out"]
    for name, share in (("memory", "0.5"), ("disk", "1e-9")):
        result = train(
            dataset, tmp_path / name, *options, f"--memory-share={share}", "--num-workers=2"
        )
        assert result.returncode == 0, result.stderr
    assert "T91_x3_images.h5, read from disk by 2 workers; 1 more images held" in result.stdout
    tables = [(tmp_path / name / "x3/metrics.csv").read_text() for name in ("memory", "disk")]
    assert tables[0] == tables[1]


def test_evaluation_is_in_fp32_unless_half_is_asked_for(dataset: Path, tmp_path: Path) -> None:
    psnrs = []
    for name, options in (("fp32", []), ("half", ["--eval-half"])):
        short = ["--batch-size=8", "--precision=bf16", "--num-steps=5"]
        result = train(dataset, tmp_path / name, *short, *options)
        assert result.returncode == 0, result.stderr
        with (tmp_path / name / "x3/metrics.csv").open() as file:
            psnrs += [float(row["psnr"]) for row in csv.DictReader(file)]
    assert psnrs[0] != psnrs[1]
    assert psnrs[0] == pytest.approx(psnrs[1], abs=0.5)


@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_train_as_one(
    dataset: Path, finished: Path, tmp_path: Path, size: int
) -> None:
    out = tmp_path / "out"
    command = [
        *(
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--local-addr=127.0.0.1",
            f"--nproc_per_node={size}",
        ),
        *(ROOT / "train.py", f"--data_url={dataset}", f"--train_url={out}", "--precision=fp32"),
        *(f"--batch-size={8 // size}", "--num-epochs=6", "--lr=1e-4"),
    ]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=HANG, check=False, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    alone, together = (
        [float(row["loss"]) for row in csv.DictReader((folder / "x3/metrics.csv").open())]
        for folder in (finished, out)
    )
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    assert len(EPOCH_LINE.findall(result.stdout)) == 6, "rank 0 alone prints"
    one, several = (load_weights(f / "x3/best.pth").state_dict() for f in (finished, out))
    for name, weight in one.items():
        torch.testing.assert_close(several[name], weight, rtol=1e-3, atol=2e-5)


def test_real_images_reach_the_figure(t91: Path, set5: Path, tmp_path: Path) -> None:
    folders = [f"--train-images={t91}", f"--eval-images={set5}"]
    result = run("prepare.py", f"--data-path={tmp_path}", *folders)
    assert result.returncode == 0, result.stderr
    result = train(tmp_path, tmp_path / "out", "--recipe=fast", "--num-steps=1500")
    assert result.returncode == 0, result.stderr
    psnr = float(re.search(r"best epoch: \d+, psnr: ([\d.]+)", result.stdout)[1])
    assert psnr >= 32.88, "32.93 in fp32"
    assert re.search(r"^mean +30\.92 +" + re.escape(f"{psnr:.2f}"), result.stdout, re.MULTILINE)
