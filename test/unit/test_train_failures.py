"""train.py on mistakes, and on numbers that are not finite: one line, and nothing lost."""

import fcntl
import re
from pathlib import Path

import pytest
from commands import SMALL, assert_one_line_error, train

from training import checkpoint


def test_a_loss_that_is_not_finite_ends_the_run(dataset: Path, tmp_path: Path) -> None:
    result = train(dataset, tmp_path, *SMALL, "--optimizer=sgd", "--lr=1e30")
    assert_one_line_error(result, "the loss is", "lower --lr", status=1)
    assert not list((tmp_path / "x3").glob("*.pth"))


def test_weights_that_are_not_finite_are_not_saved(dataset: Path, tmp_path: Path) -> None:
    """After one step of such a rate the loss is still finite, and so is a look at it in time."""
    result = train(dataset, tmp_path, *SMALL, "--optimizer=sgd", "--lr=1e30", "--num-steps=1")
    assert_one_line_error(result, "at step 1; the checkpoints before it are kept", status=1)
    assert not list((tmp_path / "x3").glob("*.pt*"))


def test_a_path_cannot_forge_the_figures(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "x\nbest epoch: 1, psnr: 99.99\ny"
    result = train(dataset, out, *SMALL, "--num-steps=2")
    assert result.returncode == 0, result.stderr
    assert "99.99" in result.stdout
    assert not re.search("^best epoch: 1, psnr: 99.99", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("state", [{}, [1], {"options": {}, "training": {}, "recorder": 3}])
def test_a_checkpoint_of_something_else(dataset: Path, tmp_path: Path, state: object) -> None:
    (tmp_path / "other.pt").write_bytes(checkpoint.pack(state))
    result = train(dataset, tmp_path, *SMALL, f"--resume={tmp_path / 'other.pt'}")
    assert_one_line_error(result, "holds no state of a run")


MISTAKES = {
    "no data": (
        ["--data_url=no where"],
        "no folder no where; is its name right? "
        "python prepare.py --data-path 'no where' --scale 3 --download fills it",
    ),
    "other scale": (["--scale=4"], "no T91_x4.h5"),
    "a file": ([f"--data_url={__file__}"], "failures.py is a file; name the folder that"),
    "a rate beyond fp32": (["--lr=1e39"], "'1e39' is not a number above 0, at most 1e+30"),
    "batch too large": (["--batch-size=45"], "too few for one batch; lower --batch-size"),
    "npu": (["--device=npu"], "--device npu: torch_npu is not installed"),
    "cuda": (["--device=cuda"], "--device cuda: "),
    "fp16": (["--precision=fp16"], "fp16 needs an NPU or a GPU"),
    "apex": (["--precision=apex-O2"], "Ascend's apex runs on an NPU, not on cpu"),
    "combine": (["--combine-ddp"], "use it with apex"),
    "lamb": (["--optimizer=lamb"], "needs an NPU"),
    "checkpoint": (["--resume=nothing.pt"], "no checkpoint nothing.pt"),
    "option": (["--num-epoch=3"], "unrecognized arguments: --num-epoch=3"),
    "lr": (["--lr=-1"], "'-1' is not a number above 0"),
    "seed": ([f"--seed={10**12 + 1}"], "'1000000000001' is not a whole number, 0 or more, at most"),
    "epochs": (["--num-epochs=0"], "'0' is not a whole number, 1 or more"),
    "share": (["--memory-share=2"], "'2' is not a number above 0, at most 1"),
    "scale": (["--loss-scale=big"], "'big' is not a number above 0, at most 1e+30, nor dynamic"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_end_in_one_line(dataset: Path, tmp_path: Path, case: str) -> None:
    options, message = MISTAKES[case]
    result = train(dataset, tmp_path / "out", *SMALL, *options)
    assert_one_line_error(result, message)
    assert not list(tmp_path.rglob("*.pth"))


def test_a_folder_that_cannot_be_made(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = train(dataset, tmp_path / "file/out", *SMALL)
    assert_one_line_error(result, f"cannot write {tmp_path}/file/out/x3/best.pth", status=1)


def test_one_run_a_folder(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "x3").mkdir()
    with (tmp_path / "x3/.lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        result = train(dataset, tmp_path, *SMALL)
    assert_one_line_error(result, f"another run is writing to {tmp_path}/x3")


def test_what_the_platform_adds_is_named_and_passed_over(dataset: Path, tmp_path: Path) -> None:
    added = ["--init_method=tcp://10.0.0.1", "--num_gpus", "8"]
    result = train(dataset, tmp_path, *SMALL, "--num-steps=2", *added)
    assert result.returncode == 0, result.stderr
    assert (
        "warning: ignored options that are not known: --init_method --num_gpus\n" in result.stderr
    )
    on_platform = {"MODELARTS_MODEL_PATH": "/x"}
    result = train(dataset, tmp_path, *SMALL, "--num-steps=2", "--anything", "new", env=on_platform)
    assert result.returncode == 0, result.stderr
    assert "not known: --anything\n" in result.stderr, "a value may be secret"
