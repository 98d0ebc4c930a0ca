"""The command line of train.py: what it is by default, its help, and what it passes over."""

import re
from pathlib import Path

import pytest

from training.options import PLATFORM_VARIABLES, parse_args

DATA = "--data_url=data"


@pytest.fixture(autouse=True)
def no_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLATFORM_VARIABLES:
        monkeypatch.setenv(name, "")


def test_what_a_run_does_by_default() -> None:
    assert vars(parse_args(None, [DATA])) == {
        "data_path": Path("data"), "outputs_dir": Path("outputs"), "scale": 3, "resume": None,
        "init_weights": None, "save_every": 1, "select": "eval", "tensorboard": False,
        "recipe": "reference", "lr": None, "batch_size": None, "num_epochs": None, "num_steps": 0,
        "optimizer": None, "seed": 123, "device": "auto", "precision": "auto", "loss_scale": 32.0,
        "deterministic": False, "eval_half": False, "combine_ddp": False, "num_workers": 8,
        "memory_share": 0.5, "check": False, "profile": None,
    }  # fmt: skip
    assert parse_args(None, [DATA, "--resume"]).resume == "auto"
    assert parse_args(None, [DATA, "--resume=a/b.pt"]).resume == "a/b.pt"


def test_the_help_names_what_an_option_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args("train", ["--help"])
    usage = " ".join(capsys.readouterr().out.partition("\n\n")[0].split())
    taken = dict(re.findall(r"\[--([\w-]+) (\[?[A-Za-z_]+\]?)\]", usage))
    assert taken == {
        "data_url": "D", "train_url": "O", "scale": "SCALE", "resume": "[FILE]", "lr": "LR",
        "init-weights": "FILE", "save-every": "N", "batch-size": "N", "num-epochs": "N",
        "num-steps": "N", "seed": "SEED", "loss-scale": "S", "num-workers": "N",
        "memory-share": "F", "profile": "DIR",
    }  # fmt: skip


def test_an_empty_checkpoint_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """As of a variable of a job that is not set."""
    with pytest.raises(SystemExit):
        parse_args(None, [DATA, "--resume="])
    assert capsys.readouterr().err == "error: argument --resume: is empty; name a file or folder\n"


@pytest.mark.parametrize("share", ["0", "1.01", "-1"])
def test_a_share_of_the_memory_is_more_than_none(
    share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_args(None, [DATA, f"--memory-share={share}"])
    assert f"'{share}' is not a number above 0, at most 1\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "on_platform", "passed_over"),
    [
        (["--rank=0", "--init_method=tcp://secret", "--num_gpus", "8"], False,
         "--init_method --num_gpus --rank"),
        (["--rank=0", "--lrr=1"], False, None),
        (["--lrr=1"], True, "--lrr"),
        (["stray"], True, None),
        (["stray", "--rank=0"], False, None),
        ([], False, ""),
    ],
)  # fmt: skip
def test_options_of_a_platform_are_passed_over(
    words: list[str],
    on_platform: bool,
    passed_over: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Their values, which may be secret, are not told."""
    if on_platform:
        monkeypatch.setenv(PLATFORM_VARIABLES[-1], "8")
    if passed_over is None:
        with pytest.raises(SystemExit):
            parse_args(None, [DATA, *words])
        assert f"unrecognized arguments: {' '.join(words)}\n" in capsys.readouterr().err
        return
    assert parse_args(None, [DATA, *words]).data_path == Path("data")
    warning = f"warning: ignored options that are not known: {passed_over}\n"
    assert capsys.readouterr().err == (warning if passed_over else "")
