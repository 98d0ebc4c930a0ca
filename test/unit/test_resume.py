"""Which checkpoint --resume takes, and to which options it goes on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import SRCNN
from runtime.errors import UserError
from training import checkpoint
from training.recipes import FAST, REFERENCE, Recipe

OPTIONS = {"lr": 1e-4, "precision": "bf16", "num_epochs": 6, "total_steps": 600}
SAVED = {"options": OPTIONS, "training": {"step": 3}, "recorder": {}}


class State:
    """Takes what is restored; `refuses` is what a state of another kind of run leads to."""

    def __init__(self, recipe: Recipe, refuses: Exception | None = None) -> None:
        self.recipe, self.refuses = recipe, refuses
        self.loaded: dict | None = None

    def load_state_dict(self, state: dict) -> None:
        if self.refuses:
            raise self.refuses
        self.loaded = state


def restored(recipe: Recipe, **changed: object) -> dict | None:
    state = State(recipe)
    checkpoint.restore(SAVED, OPTIONS | changed, state)
    return state.loaded


@pytest.mark.parametrize("recipe", [REFERENCE, FAST])
def test_the_same_options_go_on(recipe: Recipe) -> None:
    assert restored(recipe) == {"step": 3}


@pytest.mark.parametrize("name", ["num_epochs", "total_steps"])
def test_a_run_without_a_plan_may_become_longer_but_not_shorter(name: str) -> None:
    assert restored(REFERENCE, **{name: OPTIONS[name] + 1}) == {"step": 3}
    less = OPTIONS[name] - 1
    with pytest.raises(UserError) as error:
        restored(REFERENCE, **{name: less})
    assert str(error.value) == (
        f"--resume: {name} is {less}, in the checkpoint {less + 1}; "
        "use the same, or start anew without --resume"
    )


@pytest.mark.parametrize(
    "recipe",
    [replace(REFERENCE, **{name: 0.5}) for name in ("decay_share", "small_share", "ema_share")],
)
def test_a_planned_run_keeps_its_length(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="num_epochs is 7, in the checkpoint 6; the schedule") as e:
        restored(recipe, num_epochs=7)
    assert "--init-weights" in str(e.value)


@pytest.mark.parametrize("changed", [{"lr": 2e-4}, {"precision": "fp32"}, {"batch_size": 3}])
def test_other_options_do_not_go_on(changed: dict) -> None:
    ((name, value),) = changed.items()
    earlier = OPTIONS.get(name)
    with pytest.raises(UserError) as error:
        restored(REFERENCE, **changed)
    assert str(error.value).startswith(f"--resume: {name} is {value}, in the checkpoint {earlier};")
    assert str(error.value).endswith("use the same, or start anew without --resume")


def test_a_state_of_another_kind_of_run_is_an_error() -> None:
    for fault in (KeyError("ema"), RuntimeError("size mismatch"), AttributeError("x")):
        with pytest.raises(UserError, match="the checkpoint is of another kind of run"):
            checkpoint.restore(SAVED, OPTIONS, State(REFERENCE, fault))


def test_memory_that_runs_out_is_not_told_as_another_kind_of_run() -> None:
    """On a card that is nearly full, where the optimizer's state goes."""
    fault = RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB.")
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        checkpoint.restore(SAVED, OPTIONS, State(REFERENCE, fault))


def test_auto_takes_the_precision_of_the_run_that_goes_on() -> None:
    assert checkpoint.same_precision(SAVED, "auto") == "bf16"
    assert checkpoint.same_precision(SAVED, "fp32") == "fp32"
    assert checkpoint.same_precision(None, "auto") == "auto"
    plain = {"options": {"precision": "fp32-contiguous"}}  # a form of fp32 that has no word
    assert checkpoint.same_precision(plain, "fp32") == "fp32-contiguous"
    assert checkpoint.same_precision(plain, "bf16") == "bf16"
    assert checkpoint.same_precision({"options": {}}, "auto") == "auto"


def test_nothing_is_resumed_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tmp_path, 1, checkpoint.pack(SAVED))
    assert checkpoint.find(None, tmp_path) is None
    assert capsys.readouterr().err == ""


def test_auto_takes_the_newest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoint.find("auto", tmp_path) is None
    warning = f"warning: no checkpoint in {tmp_path} to resume from; starting\n"
    assert capsys.readouterr().err == warning
    for step in (9, 10):
        checkpoint.save(tmp_path, step, checkpoint.pack(SAVED | {"training": {"step": step}}))
    assert checkpoint.find("auto", tmp_path)["training"] == {"step": 10}
    assert capsys.readouterr().err == f"resuming from {tmp_path / 'checkpoint_10.pt'}\n"


def test_a_file_is_taken_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint.save(tmp_path, 9, checkpoint.pack(SAVED))
    checkpoint.save(tmp_path, 10, checkpoint.pack(SAVED | {"training": {"step": 10}}))
    assert checkpoint.find(str(path), tmp_path / "elsewhere") == SAVED
    assert capsys.readouterr().err == f"resuming from {path}\n"


def test_weights_are_no_checkpoint_and_the_error_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    torch.save(SRCNN().state_dict(), path)
    with pytest.raises(UserError) as error:
        checkpoint.find(str(path), tmp_path)
    assert str(error.value) == (
        f"--resume: {path} holds weights, not the state of a run; "
        f"start from them with --init-weights {path}"
    )


def test_training_starts_from_weights_of_its_own_shape_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(4)
    source, model, other = SRCNN(), SRCNN(), SRCNN()
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    checkpoint.start_from(path, model)
    assert capsys.readouterr().out == f"start: the weights of {path}\n"
    for name, weight in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    other.conv2 = torch.nn.Conv2d(64, 32, kernel_size=3, padding=1)
    with pytest.raises(UserError) as error:
        checkpoint.start_from(path, other)
    assert str(error.value) == (
        f"--init-weights: {path} has conv2.weight of shape (32, 64, 5, 5); "
        "what is trained has (32, 64, 3, 3)"
    )
