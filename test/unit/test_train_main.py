"""train.py's main in this process: its log, its files, and what it tells each of its parts."""

import contextlib
import csv
import io
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import h5py
import pytest
import torch
from dataset_files import save_dataset
from samples import OneOfSeveral, save_weights
from torch import nn

import train
from datasets import EvalDataset, TrainDataset, identity
from inference.weights import load_weights
from model import SRCNN
from runtime.device import Choice
from runtime.distributed import World
from runtime.errors import RunError, UserError
from training import checkpoint
from training.batches import BatchPlan
from training.evaluation import mean_psnr
from training.options import parse_args
from training.precision import Precision
from training.recipes import FAST, RECIPES, REFERENCE

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("handlers")
# Five epochs of two steps. At so high a rate the third is the best one on held-out patches, and the
# last on the evaluation set.
WORDS = ("--num-epochs=5", "--batch-size=16", "--lr=1e-3", "--precision=fp32", "--device=cpu",
         "--select=held-out", "--save-every=2")  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """44 patches of 16×18, 6 images to crop from and 3 to evaluate, none of them square."""
    return save_dataset(tmp_path_factory.mktemp("small data set"), (16, 18), (24, 31))


class Finished(NamedTuple):
    """What a run left in a folder and printed."""

    folder: Path
    output: str
    errors: str

    @property
    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "metrics.csv").open() as file:
            return list(csv.DictReader(file))


def call(data: Path, out: Path, *words: str, status: int = 0) -> Finished:
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        assert train.main([f"--data_url={data}", f"--train_url={out}", *words]) == status
    return Finished(out / "x3", output.getvalue(), errors.getvalue())


@pytest.fixture
def unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that draw no pictures, which takes longer than the training."""
    monkeypatch.setattr(
        "training.results.Results.finish", lambda results, evaluator: results.wait()
    )


def test_the_log(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.evaluation.BELOW_BICUBIC_AFTER", 8)
    finished = call(dataset, tmp_path, *WORDS)
    train_file, val_file = dataset / "train/T91_x3.h5", dataset / "val/Set5_x3.h5"
    rows = finished.rows
    eval_set = EvalDataset(val_file)
    bicubic, srcnn = (
        [mean_psnr(model, [(lr[None], hr[None])], World(CPU)) for lr, hr in eval_set]
        for model in (nn.Identity(), load_weights(finished.folder / "best.pth"))
    )
    best = max(rows, key=lambda row: float(row["held_out_psnr"]))
    assert best["epoch"] == "2" != max(rows, key=lambda row: float(row["psnr"]))["epoch"]
    lines = finished.output.splitlines()
    assert [re.sub(r", each_step_time=\d+\.\d{6}$", "", line) for line in lines] == [
        "device: cpu (as asked), precision: fp32 (as asked)",
        f"training set: 42 patches of 16×18 from {train_file}, held on cpu; "
        "2 more patches held out",
        f"evaluation set: {val_file}, 3 images, "
        f"bicubic {sum(bicubic) / 3:.2f} dB (modelzoo protocol)",
        "recipe: reference, 10 steps of 16 samples on 1 process(es), adam, learning rate 0.001 "
        "(the recipe's times √processes, or --lr)",
        *(
            line
            for row in rows
            for line in (
                f"epoch{row['epoch']} : loss={float(row['loss']):.6f}",
                f"eval psnr: {float(row['psnr']):.2f}",
            )
        ),
        f"best epoch: 2, psnr: {float(best['psnr']):.2f}",
        "(chosen on held-out training images)",
        "Set5_x3, modelzoo protocol, PSNR in dB",
        "image           bicubic    SRCNN",
        *(f"picture{i}       {bicubic[i]:8.2f} {srcnn[i]:8.2f}" for i in range(3)),
        f"mean            {sum(bicubic) / 3:7.2f}  {float(best['psnr']):7.2f}",
        f"weights: {finished.folder}/best.pth",
        f"curve: {finished.folder}/curve.png",
        f"pictures: {finished.folder}/strip_*.png",
    ]
    assert len(re.findall("each_step_time=", finished.output)) == 5
    warnings = finished.errors.splitlines()
    assert len(warnings) == 2
    for epoch, line in zip((3, 4), warnings, strict=True):
        psnr = float(rows[epoch]["psnr"])
        below = f"warning: PSNR {psnr:.2f} dB is below bicubic's {sum(bicubic) / 3:.2f} dB "
        assert line.startswith(f"{below}after {2 * epoch + 2} steps")


def test_success_is_told_when_all_is_written(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(path: Path, _: bytes) -> None:
        raise RunError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("training.results.write_bytes", full)
    with pytest.raises(RunError, match="No space left"):
        train.main([f"--data_url={dataset}", f"--train_url={tmp_path}", *WORDS, "--num-epochs=1"])
    output = capsys.readouterr().out
    assert "eval psnr: " in output
    assert "best epoch" not in output


@pytest.mark.usefixtures("unfinished")
def test_the_files(dataset: Path, tmp_path: Path) -> None:
    """But for the pictures."""
    finished = call(dataset, tmp_path, *WORDS)
    folder = finished.folder
    left = {path.name for path in folder.iterdir()}
    assert left == {
        ".lock", "args.json", "environment.json", "metrics.csv", "timing.csv", "best.pth",
        "epoch_0.pth", "epoch_2.pth", "epoch_4.pth", "checkpoint_8.pt", "checkpoint_10.pt",
    }  # fmt: skip
    best = torch.load(folder / "best.pth", weights_only=True)
    third, last = (torch.load(folder / f"epoch_{i}.pth", weights_only=True) for i in (2, 4))
    assert all(torch.equal(best[name], third[name]) for name in best)
    assert not any(torch.equal(best[name], last[name]) for name in best)
    args = json.loads((folder / "args.json").read_text())
    assert (args["data_path"], args["lr"], args["select"]) == (str(dataset), 1e-3, "held-out")
    environment = json.loads((folder / "environment.json").read_text())
    said = {
        "device": "cpu",
        "device_name": f"CPU, {torch.get_num_threads()} threads",
        "device_reason": "as asked",
        "precision": "fp32",
        "precision_reason": "as asked",
        "processes": 1,
    }
    assert environment.items() >= said.items()
    recipe = asdict(REFERENCE) | {"num_epochs": 5, "batch_size": 16, "lr": 1e-3}
    assert environment["recipe"] == recipe
    _, state = checkpoint.load_newest(folder)
    del recipe["name"]
    assert state["options"] == recipe | {
        "recipe": "reference",
        "training set": identity(TrainDataset(dataset / "train/T91_x3.h5")),
        "evaluation set": identity(EvalDataset(dataset / "val/Set5_x3.h5")),
        "init_weights": None,
        "scale": 3,
        "seed": 123,
        "select": "held-out",
        "eval_half": False,
        "precision": "fp32",
        "loss_scale": 32.0,
        "processes": 1,
        "total_steps": 10,
    }
    rows = finished.rows
    assert [row["step"] for row in rows] == ["2", "4", "6", "8", "10"]
    assert all(float(row["lr"]) == 1e-3 for row in rows)
    assert {(row["raw_psnr"], row["skipped_steps"]) for row in rows} == {("", "0")}
    assert all(row["psnr"] != row["held_out_psnr"] for row in rows)


def signal_at(step: int, number: int) -> Callable:
    """Return the training step that sends this process a signal in one of its calls."""
    steps = iter(range(1, 100))

    def training_step(*args: object) -> tuple[torch.Tensor, bool]:
        if next(steps) == step:
            os.kill(os.getpid(), number)
        return STEP(*args)

    return training_step


STEP = train.training_step


@pytest.mark.usefixtures("unfinished")
@pytest.mark.parametrize(("step", "number"), [(3, signal.SIGTERM), (4, signal.SIGINT)])
def test_a_run_that_is_stopped_goes_on_as_if_nothing_had_been(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, number: int
) -> None:  # fmt: skip
    """Within an epoch, and in its last step: then its PSNR is measured before."""
    finished, out = call(dataset, tmp_path / "whole", *WORDS), tmp_path / "out"
    monkeypatch.setattr(train, "training_step", signal_at(step, number))
    stopped = call(dataset, out, *WORDS, status=128 + number)
    name = signal.Signals(number).name
    assert stopped.errors == (
        f"{name} at step {step}: the state is saved; go on with the same command and --resume\n"
    )
    assert "best epoch" not in stopped.output
    assert checkpoint.load_newest(out / "x3")[1]["training"]["step"] == step
    monkeypatch.setattr(train, "training_step", STEP)
    resumed = call(dataset, out, *WORDS, "--resume")
    assert resumed.errors.startswith(f"resuming from {out}/x3/checkpoint_{step}.pt\n")
    assert "earlier results" not in resumed.output
    assert resumed.rows == finished.rows
    best, expected = (
        torch.load(run.folder / "best.pth", weights_only=True) for run in (resumed, finished)
    )
    assert all(torch.equal(best[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("unfinished")
def test_polishing_that_is_stopped_goes_on_as_if_nothing_had_been(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks at the layers' inputs, which a checkpoint holds."""
    words = ("--recipe=polish", "--precision=fp32", "--device=cpu", "--num-steps=14",
             f"--init-weights={save_weights(tmp_path / 'weights.pth')}")  # fmt: skip
    whole = call(dataset, tmp_path / "whole", *words)
    monkeypatch.setattr(train, "training_step", signal_at(12, signal.SIGTERM))
    call(dataset, tmp_path / "out", *words, status=143)
    monkeypatch.setattr(train, "training_step", STEP)
    resumed = call(dataset, tmp_path / "out", *words, "--resume")
    assert "checkpoint_12.pt" in resumed.errors
    assert resumed.rows == whole.rows
    best, expected = (
        torch.load(run.folder / "best.pth", weights_only=True) for run in (resumed, whole)
    )
    assert all(torch.equal(best[name], expected[name]) for name in expected)


def test_polishing_asks_for_weights(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse_args(None, ["--data_url=dataset", "--recipe=polish"])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.endswith(
        "error: --recipe polish goes on from trained weights: name their file with --init-weights\n"
    )
    assert parse_args(None, ["--recipe=polish", "--check"]).init_weights is None


def test_a_run_that_is_stopped_with_a_loss_of_no_use_saves_nothing(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "training_step", signal_at(2, signal.SIGTERM))
    with pytest.raises(RunError, match="at step 2"):
        call(dataset, tmp_path, *WORDS, "--optimizer=sgd", "--lr=1e30")
    assert not list((tmp_path / "x3").glob("*.pt*"))


def set_up(world: World, data: Path, out: Path, *words: str) -> tuple:
    args = parse_args(None, [f"--data_url={data}", f"--train_url={out}", *words])
    return train.set_up(args, world, "as asked")


def test_a_run_starts_from_weights_or_goes_on_but_not_both(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("--precision=fp32", "--num-steps=3", f"--init-weights={tmp_path / 'w.pth'}")
    expected = load_weights(save_weights(tmp_path / "w.pth")).state_dict()
    state, _, _, results, _ = set_up(World(CPU), dataset, tmp_path / "out", *words)
    assert state.total_steps == 3
    assert "start: the weights of" in capsys.readouterr().out
    for name, weight in state.master_params().items():
        assert torch.equal(weight, expected[name])
    with torch.no_grad():
        state.model.conv3.bias.fill_(0.5)
    state.step = 2
    results.save_checkpoint(state)
    os.close(results.lock)
    monkeypatch.chdir(tmp_path)
    again = (*words[:2], "--init-weights=w.pth", "--resume")
    resumed, _, _, results, _ = set_up(World(CPU), dataset, tmp_path / "out", *again)
    assert "start: " not in capsys.readouterr().out
    assert (resumed.step, resumed.master_params()["conv3.bias"].item()) == (2, 0.5)
    assert results.options["init_weights"] == str(tmp_path / "w.pth"), "however it is spelt"
    with pytest.raises(UserError, match="seed is 4, in the checkpoint 123"):
        set_up(World(CPU), dataset, tmp_path / "out", *words, "--resume", "--seed=4")


@pytest.mark.parametrize("seed", [123, 5])
def test_the_seed_decides_the_first_weights_and_the_order(
    dataset: Path, tmp_path: Path, seed: int
) -> None:
    words = ("--precision=fp32", "--batch-size=8", f"--seed={seed}")
    state, data, *_ = set_up(World(CPU), dataset, tmp_path, *words)
    torch.manual_seed(seed)
    expected = SRCNN().state_dict()
    assert all(torch.equal(w, expected[name]) for name, w in state.master_params().items())
    assert data.batches.plan == BatchPlan(8, 0, 1, seed)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_processes(
    dataset: Path, tmp_path: Path, rank: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each trains on its part at a rate for both; the first alone keeps results and a profile."""
    words = ("--precision=fp32", "--num-epochs=2", "--batch-size=4", f"--profile={tmp_path / 'p'}")
    state, data, _, results, profiler = set_up(
        OneOfSeveral(CPU, rank, 2), dataset, tmp_path / "out", *words
    )
    assert data.batches.plan == BatchPlan(4, rank, 2, 123)
    assert state.recipe.lr == pytest.approx(1e-4 * math.sqrt(2))
    assert state.total_steps == 2 * 5
    assert "on 2 process(es)" in capsys.readouterr().out
    assert (results is None, profiler is None) == ((False, False) if rank == 0 else (True, True))
    assert (tmp_path / "out").exists() == (rank == 0)
    if results:
        assert results.options["processes"] == 2
        assert results.folder == tmp_path / "out/x3"


def test_all_processes_hear_of_what_the_first_does_alone(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two looks whether there is room for results, and their folder."""
    heard = []
    monkeypatch.setattr(World, "by_main", lambda world, _: heard.append(world.rank))
    for rank in (0, 1):
        words = ("--precision=fp32", "--batch-size=4", f"--profile={tmp_path / 'p'}")
        set_up(OneOfSeveral(CPU, rank, 2), dataset, tmp_path / "out", *words)
    assert heard == [0, 0, 0, 1, 1, 1]


def test_a_process_that_keeps_no_results_trains_all_the_same(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    args = parse_args(
        None, [f"--data_url={dataset}", f"--train_url={tmp_path / 'file/out'}", "--num-steps=1",
               "--batch-size=4", "--precision=fp32"]
    )  # fmt: skip
    (tmp_path / "file").touch()
    assert train.run(args, OneOfSeveral(CPU, 1, 2), "as asked") == 0
    output = capsys.readouterr().out
    assert "best epoch: 0, psnr: " in output
    assert "(chosen on Set5_x3 itself)" in output
    args.num_steps = 3
    monkeypatch.setattr("training.stopping.LOOK_EVERY", 2)
    monkeypatch.setattr(train, "training_step", signal_at(1, signal.SIGTERM))
    assert train.run(args, OneOfSeveral(CPU, 1, 2), "as asked") == 143
    with pytest.raises(RunError, match=r"cannot write .*file/out/x3/best.pth"):
        train.run(args, World(CPU), "as asked")


def test_a_profile_that_cannot_be_written_is_told_first(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write .*file/trace.json"):
        set_up(World(CPU), dataset, tmp_path / "out", f"--profile={tmp_path / 'file'}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "world", "expected"),
    [
        ([], World(CPU), ("auto", True, 32.0, False, 1, True)),
        (["--recipe=fast"], World(CPU), ("auto", True, 32.0, False, 1, False)),
        (["--recipe=fast", "--optimizer=sgd"], World(CPU), ("auto", True, 32.0, False, 1, True)),
        (["--deterministic"], World(CPU), ("auto", False, 32.0, False, 1, True)),
        (
            ["--precision=bf16", "--loss-scale=dynamic", "--combine-ddp"],
            OneOfSeveral(CPU, 1, 2),
            ("bf16", False, "dynamic", True, 2, True),
        ),
    ],
)
def test_what_the_arithmetic_is_chosen_by(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], words: list[str], world: World, expected: tuple,
) -> None:  # fmt: skip
    """The clock decides on one process that need not be deterministic, alone."""

    def choose(name: str, device: torch.device, step: object, *, loss_scale: float | str,
               combine_ddp: bool, processes: int, apex_wanted: bool) -> Choice:  # fmt: skip
        assert device == CPU
        assert step in (None, train.training_step)
        asked = (name, step is not None, loss_scale, combine_ddp, processes, apex_wanted)
        assert asked == expected
        return Choice(Precision(CPU, "fp32"), "for a reason")

    monkeypatch.setattr("training.precision_choice.choose_precision", choose)
    monkeypatch.setattr(
        "training.precision_choice.cost_of_determinism",
        lambda device, precision, step: f"{device}, {precision.name}, {step.__name__}",
    )
    state, *_ = set_up(world, dataset, tmp_path, "--batch-size=4", *words)
    output = capsys.readouterr().out
    assert "precision: fp32 (for a reason)" in output
    said = "deterministic: cpu, fp32, training_step" in output
    assert said == ("--deterministic" in words)
    assert state.precision.name == "fp32"


def test_auto_goes_on_in_the_precision_of_the_checkpoint(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, _, results, _ = run = set_up(World(CPU), dataset, tmp_path, "--precision=bf16")
    results.save_checkpoint(run[0])
    os.close(results.lock)
    capsys.readouterr()
    state, *_ = set_up(World(CPU), dataset, tmp_path, "--resume")
    assert state.precision.name == "bf16"
    assert "precision: bf16 (as in the interrupted run)\n" in capsys.readouterr().out


def test_what_the_checkpoint_was_trained_in_may_be_missing_here(
    dataset: Path, tmp_path: Path
) -> None:
    state, _, _, results, _ = set_up(World(CPU), dataset, tmp_path, "--precision=fp32")
    results.options["precision"] = "apex-O2"
    results.save_checkpoint(state)
    os.close(results.lock)
    message = "--resume goes on in the interrupted run's precision; --precision apex-O2: Ascend's"
    with pytest.raises(UserError, match=message):
        set_up(World(CPU), dataset, tmp_path, "--resume")


def test_a_file_of_another_run_does_not_write_over_what_is_there(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the same folder, by whichever name, goes on there."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, step in zip(folders, (9, 5), strict=True):
        state, _, _, results, _ = set_up(World(CPU), dataset, folder, "--precision=fp32")
        state.step = step
        results.save_checkpoint(state)
        os.close(results.lock)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(folders[0])
    for name, aside in (("one/x3", 0), ("link/x3", 0), ("two/../one/x3", 0), ("two/x3", 1)):
        file = next(Path(name).glob("checkpoint_*.pt"))
        *_, results, _ = set_up(
            World(CPU), dataset, folders[0], "--precision=fp32", f"--resume={file}"
        )
        os.close(results.lock)
        assert len([*folders[0].glob("x3.*/checkpoint_9.pt")]) == aside
        assert (folders[0] / "x3/checkpoint_9.pt").exists() == (not aside)


@pytest.mark.parametrize("other", ["train/T91_x3.h5", "val/Set5_x3.h5"])
def test_a_run_does_not_go_on_with_other_images(dataset: Path, tmp_path: Path, other: str) -> None:
    """Its table and its best epoch would compare PSNR of different pictures. Folders may move."""
    moved = shutil.copytree(dataset, tmp_path / "moved")
    words = ("--precision=fp32", "--num-steps=9")
    state, _, _, results, _ = set_up(World(CPU), dataset, tmp_path / "out", *words)
    results.save_checkpoint(state)
    os.close(results.lock)
    *_, results, _ = set_up(World(CPU), moved, tmp_path / "out", *words, "--resume")
    os.close(results.lock)
    with h5py.File(moved / other, "a") as file:
        if other.startswith("val"):
            del file["lr/2"], file["hr/2"]
        else:
            for name in ("lr", "hr"):
                values = file[name][1:]
                del file[name]
                file[name] = values
    which = "evaluation set" if other.startswith("val") else "training set"
    with pytest.raises(UserError) as error:
        set_up(World(CPU), moved, tmp_path / "out", *words, "--resume")
    assert str(error.value).startswith(f"--resume: {which} is {Path(other).name} (")
    assert str(error.value).endswith("; use the same, or start anew without --resume")


class WithOtherFiles(World):
    """One of two processes, the other of which reads other files."""

    def lowest(self, value: int) -> int:
        return value - 1


def test_processes_with_different_files_do_not_train(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of several machines: they would wait for each other, or train on a mix."""

    def load(*_: object) -> None:
        raise AssertionError("how often the processes meet there depends on the files")

    monkeypatch.setattr("train.load_data", load)
    size, other = (
        (dataset / name).stat().st_size for name in ("train/T91_x3.h5", "val/Set5_x3.h5")
    )
    with pytest.raises(UserError) as error:
        set_up(WithOtherFiles(CPU), dataset, tmp_path / "out")
    assert str(error.value) == (
        f"--data_url: the processes have different files, here T91_x3.h5 ({size:,} bytes) and "
        f"Set5_x3.h5 ({other:,} bytes); all machines need the same"
    )
    assert not (tmp_path / "out").exists()


class AnotherAtTheStart(World):
    """One of two processes, the other of which has found no checkpoint."""

    def lowest(self, value: int) -> int:
        return 0

    def same(self, text: str) -> bool:
        return True


def test_processes_that_find_different_checkpoints_do_not_go_on(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of several machines do that have no folder in common."""
    state, _, _, results, _ = set_up(World(CPU), dataset, tmp_path, "--precision=bf16")
    state.step = 2
    results.save_checkpoint(state)
    os.close(results.lock)

    def restore(*_: object) -> None:
        raise AssertionError("`polish` then waits for the others' matrices, which never come")

    monkeypatch.setattr(checkpoint, "restore", restore)
    with pytest.raises(UserError, match=r"start from steps 0 to 2; all machines need the same"):
        set_up(AnotherAtTheStart(CPU), dataset, tmp_path, "--resume")


def test_the_fast_recipe_averages_and_evaluates_in_half_precision_if_asked(
    dataset: Path, tmp_path: Path
) -> None:
    words = ("--recipe=fast", "--precision=bf16", "--eval-half", "--tensorboard")
    state, data, evaluator, results, _ = set_up(World(CPU), dataset, tmp_path, *words)
    assert state.recipe == FAST
    assert state.ema is not None
    assert evaluator.half == torch.bfloat16
    assert not evaluator.held_out
    assert "random crops of 27×27 from 3 whole images" in data.description
    assert results.recorder.events is not None
    assert (results.options["recipe"], results.options["decay_share"]) == ("fast", 0.4)
    os.close(results.lock)
    *_, evaluator, _, _ = set_up(World(CPU), dataset, tmp_path, *words[:2])
    assert evaluator.half is None


@pytest.mark.parametrize(("share", "where"), [("0.4", "held on cpu"), ("0.3", "by 3 workers")])
def test_the_share_of_the_memory(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: str, where: str
) -> None:
    """The patches take 101,376 bytes."""
    monkeypatch.setattr("runtime.device.free_memory", lambda device: 300_000)
    words = ("--precision=fp32", f"--memory-share={share}", "--num-workers=3")
    _, data, *_ = set_up(World(CPU), dataset, tmp_path, *words)
    assert where in data.description


def test_all_processes_read_alike(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one with the least room decides."""
    monkeypatch.setattr("runtime.device.free_memory", lambda device: 400_000)
    monkeypatch.setattr(OneOfSeveral, "_agree", lambda world, value, operation: value // 2)
    _, data, *_ = set_up(
        OneOfSeveral(CPU, 1, 2), dataset, tmp_path, "--precision=fp32", "--batch-size=4"
    )
    assert "read from disk by 8 workers" in data.description


@pytest.mark.usefixtures("unfinished")
def test_the_device_of_the_process(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    asked = []

    def choose(*args: object) -> Choice:
        asked.append(args)
        return Choice(CPU, "for a reason")

    monkeypatch.setattr("runtime.device.choose_device", choose)
    run = call(dataset, tmp_path, *WORDS[1:], "--num-steps=1", "--device=auto")
    assert asked == [("auto", 3)]
    assert run.output.startswith("device: cpu (for a reason), precision: fp32 (as asked)\n")
    assert json.loads((run.folder / "environment.json").read_text())["device_reason"] == (
        "for a reason"
    )


def test_deterministic_algorithms_are_on_before_the_processes_join(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = []

    @contextlib.contextmanager
    def join(launch: object, device: torch.device):
        joined.append((launch, device, torch.are_deterministic_algorithms_enabled()))
        yield "the world"

    monkeypatch.setattr("runtime.distributed.joined", join)
    monkeypatch.setattr(train, "run", lambda args, *rest: rest)
    monkeypatch.setattr(
        "runtime.device.be_deterministic", lambda: torch.use_deterministic_algorithms(True)
    )
    try:
        for words in ([], ["--deterministic"]):
            assert train.main([f"--data_url={dataset}", "--device=cpu", *words]) == (
                "the world",
                "as asked",
            )
    finally:
        torch.use_deterministic_algorithms(False)
    assert [(device, bound) for _, device, bound in joined] == [(CPU, False), (CPU, True)]
    assert {launch.size for launch, *_ in joined} == {1}


def test_check_is_told_what_a_run_would_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ascend.check.check", lambda *args: args)
    words = ["--recipe=fast", "--device=cpu", "--precision=bf16", "--loss-scale=4"]
    told = train.main(["--check", *words])
    assert told == (train.training_step, RECIPES["fast"], "cpu", "bf16", 4.0)
