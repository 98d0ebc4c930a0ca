"""train.py --profile: a trace of a few steps, and training goes on unchanged."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from commands import ROOT, assert_one_line_error, run
from torch.autograd import DeviceType

from model import SRCNN
from runtime.errors import UserError
from training.profiling import Operator, StepProfiler, print_table, read_operators

CPU = torch.device("cpu")


def take_steps(batches: Iterator[int]) -> list[int]:
    """Train on each batch; return the batches."""
    model, taken = SRCNN(), []
    x = torch.rand(1, 1, 16, 16)
    for batch in batches:
        with torch.profiler.record_function(f"batch {batch}"):
            model(x).sum().backward()
        taken.append(batch)
    return taken


def names(folder: Path) -> list[str]:
    """The names of the events in the only trace in a folder."""
    (trace,) = folder.iterdir()
    return [event["name"] for event in json.loads(trace.read_text())["traceEvents"]]


@pytest.mark.parametrize(
    ("steps", "recorded"),
    [(20, range(7, 12)), (12, range(7, 12)), (6, range(1, 6)), (3, range(3))],
    ids=["a long epoch", "just enough", "no warm-up", "fewer than are recorded"],
)
@pytest.mark.filterwarnings("error:.*warmup")
def test_steps_after_the_warm_up_are_recorded(tmp_path: Path, steps: int, recorded: range) -> None:
    folder = tmp_path / "new" / "folder"
    profiler = StepProfiler(folder, CPU)
    assert take_steps(profiler.watch(iter(range(steps)), steps)) == list(range(steps))
    seen = names(folder)
    assert {n for n in seen if n.startswith("batch ")} == {f"batch {n}" for n in recorded}
    assert seen.count("aten::convolution") == 3 * len(recorded)
    assert seen.count("aten::convolution_backward") == 3 * len(recorded)


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    take_steps(StepProfiler(tmp_path, CPU).watch(range(12), 12))
    output = capsys.readouterr().out
    (trace,) = tmp_path.iterdir()
    assert f"profile: 5 steps in {trace}; " in output
    lines = output.splitlines()
    assert len(lines) == 2 + 10
    shares = [float(line.split("%")[0]) for line in lines[2:]]
    assert shares == sorted(shares, reverse=True)
    assert 50 < sum(shares) <= 101
    assert any(line.endswith("convolution_backward") for line in lines[2:5])
    assert "ProfilerStep" not in output


def test_traces_of_earlier_runs_are_not_told_as_this_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    earlier = tmp_path / "a.1.pt.trace.json", tmp_path / "z.9.pt.trace.json"
    for trace in earlier:
        trace.write_text("{}")
    take_steps(StepProfiler(tmp_path, CPU).watch(range(2), 2))
    (new,) = set(tmp_path.iterdir()) - set(earlier)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("profile: ")]
    assert told == [f"profile: 2 steps in {new}; the times of this epoch include it"]


def test_a_run_that_is_stopped_early_still_leaves_a_trace(tmp_path: Path) -> None:
    batches = StepProfiler(tmp_path, CPU).watch(range(20), 20)
    for batch in batches:
        take_steps(iter([batch]))
        if batch == 9:
            break
    batches.close()
    assert {n for n in names(tmp_path) if n.startswith("batch ")} == {
        "batch 7",
        "batch 8",
        "batch 9",
    }


def test_the_table_is_sorted_by_the_device_where_there_is_one(
    capsys: pytest.CaptureFixture,
) -> None:
    print_table([Operator("a", 1, 900.0, 1000.0), Operator("b", 2, 100.0, 3000.0)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["share", "device", "ms", "host", "ms", "calls", "operator"]
    assert lines[1].split() == ["75.0%", "3.000", "0.100", "2", "b"]
    assert lines[2].split() == ["25.0%", "1.000", "0.900", "1", "a"]
    print_table([])


def test_kernels_of_a_gpu_count_once() -> None:
    """PyTorch lists them, and the optimizer's mark around them, beside the operators' own sums."""
    events = [
        SimpleNamespace(
            key=key,
            count=5,
            self_cpu_time_total=host,
            self_device_time_total=30.0,
            device_type=getattr(DeviceType, place),
        )
        for key, host, place in (
            ("aten::convolution", 40.0, "CPU"),
            ("sm80_xmma_fprop", 0.0, "CUDA"),
            ("Optimizer.step#Adam.step", 0.0, "CUDA"),
        )
    ]
    profile = SimpleNamespace(key_averages=lambda: events)
    assert read_operators(profile, Path("trace")) == [Operator("aten::convolution", 5, 40.0, 30.0)]


def test_operators_of_an_npu_are_read_from_its_table(tmp_path: Path) -> None:
    """torch_npu leaves a CSV by its trace, a row for each call."""
    trace = tmp_path / "trace_view.json"
    assert read_operators(object(), trace) == []
    (tmp_path / "operator_details.csv").write_text(
        "Name,Input Shapes,Host Self Duration(us),Host Total Duration(us),"
        "Device Self Duration(us),Device Total Duration(us)\n"
        'aten::conv2d,"1,1;1,1",1.5,9,20.0,20\naten::relu,,2,2,,0\naten::conv2d,,0.5,9,10.0,10\n'
    )
    assert read_operators(object(), trace) == [
        Operator("aten::conv2d", 2, 2.0, 30.0),
        Operator("aten::relu", 1, 2.0, 0.0),
    ]


def test_an_npu_is_watched_by_the_profiler_of_torch_npu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    trace = tmp_path / "host_1_ascend_pt" / "ASCEND_PROFILER_OUTPUT" / "trace_view.json"

    @contextlib.contextmanager
    def profile(**options: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(step=lambda: None)
        assert options["on_trace_ready"] == str(tmp_path)
        trace.parent.mkdir(parents=True)
        trace.touch()
        trace.with_name("operator_details.csv").write_text(
            "Name,Host Self Duration(us),Device Self Duration(us)\naten::conv2d,1000,2000\n"
        )

    profiler = SimpleNamespace(profile=profile, schedule=dict, tensorboard_trace_handler=str)
    monkeypatch.setitem(sys.modules, "torch_npu", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch_npu.profiler", profiler)
    watched = StepProfiler(tmp_path, SimpleNamespace(type="npu")).watch(range(20), 20)
    assert list(watched) == list(range(20))
    first, _, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"profile: 5 steps in {trace}; ")
    assert last.split() == ["100.0%", "2.000", "1.000", "1", "aten::conv2d"]


def test_a_trace_that_finds_no_room_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The profiler itself says nothing of it."""
    (tmp_path / "earlier.pt.trace.json").touch()
    profiler = StepProfiler(tmp_path, torch.device("cpu"))
    half = tmp_path / "a.pt.trace.json.tmp"
    monkeypatch.setattr(
        torch.profiler, "tensorboard_trace_handler", lambda _: lambda _: half.touch(), raising=True
    )
    assert list(profiler.watch(range(3), 3)) == [0, 1, 2]
    assert not half.exists()
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors == f"warning: no trace could be written to {tmp_path}; is the disk full?\n"


@pytest.mark.parametrize("place", ["file", "file/inside"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--profile .*file.*name a folder"):
        StepProfiler(tmp_path / place, CPU)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 patches and one small image to evaluate."""
    folder, rng = tmp_path_factory.mktemp("dataset"), np.random.default_rng(5)
    for name, key in (("train/T91_x3.h5", "{}"), ("val/Set5_x3.h5", "{}/0")):
        (folder / name).parent.mkdir()
        pixels = rng.uniform(16, 235, (26, 33, 33)).astype(np.float32)
        with h5py.File(folder / name, "w") as file:
            for kind in ("lr", "hr"):
                file[key.format(kind)] = pixels if key == "{}" else pixels[0]
    return folder


def test_training_goes_on_unchanged(dataset: Path, tmp_path: Path) -> None:
    common = (f"--data_url={dataset}", "--batch-size=2", "--num-epochs=2", "--precision=fp32")
    plain = run("train.py", *common, f"--train_url={tmp_path / 'plain'}")
    folder = tmp_path / "profile"
    watched = run("train.py", *common, f"--train_url={tmp_path / 'watched'}", f"--profile={folder}")
    assert plain.returncode == watched.returncode == 0, watched.stderr
    assert watched.stdout.count("profile: 5 steps in ") == 1
    assert "profile" not in plain.stdout
    assert watched.stderr == plain.stderr  # the profiler of a build for GPUs says much to itself
    assert names(folder).count("aten::convolution_backward") == 3 * 5
    for name in ("metrics.csv", "best.pth"):
        one, other = ((tmp_path / run / "x3" / name) for run in ("plain", "watched"))
        if name.endswith(".csv"):
            assert one.read_text() == other.read_text()
        else:
            weights = [torch.load(path, weights_only=True) for path in (one, other)]
            assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_bad_folder_is_told_before_training(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (f"--data_url={dataset}", f"--train_url={out}", f"--profile={ROOT / 'train.py'}")
    result = run("train.py", *words, "--precision=fp32")
    assert_one_line_error(result, "cannot write", "train.py/trace.json", status=1)
    assert not out.exists()
