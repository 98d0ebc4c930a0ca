"""The product's own command lines on simulated cards, against the same runs on the CPU."""

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import ROOT, assert_one_line_error, run
from product import SHORT, metrics, train
from simulator import Simulator

from model import SRCNN

TOLERANCE_DB = 0.05  # between half precision on the card and fp32 on the CPU, after 15 steps


@pytest.fixture(scope="module")
def on_cpu(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the same training on the CPU, in fp32."""
    out = tmp_path_factory.mktemp("cpu")
    options = [f"--data_url={patches}", f"--train_url={out}", "--device=cpu", "--precision=fp32"]
    result = run("train.py", *SHORT, *options)
    assert result.returncode == 0, result.stderr
    return out / "x3"


def weights(folder: Path, name: str = "best.pth") -> dict[str, torch.Tensor]:
    """Load weights where there is no NPU: they must be fp32 CPU tensors."""
    state = torch.load(folder / name, weights_only=True)
    assert all(w.dtype == torch.float32 and w.device.type == "cpu" for w in state.values())
    return state


def assert_as_on_cpu(folder: Path, on_cpu: Path, tolerance: float = TOLERANCE_DB) -> None:
    for there, here in zip(metrics(folder), metrics(on_cpu), strict=True):
        assert float(there["psnr"]) == pytest.approx(float(here["psnr"]), abs=tolerance)
        assert float(there["loss"]) == pytest.approx(float(here["loss"]), rel=0.02)


def test_fp32_on_the_card_is_fp32_on_the_cpu(
    npu: Simulator, patches: Path, on_cpu: Path, tmp_path: Path
) -> None:
    """In a process of its own, as a user starts it."""
    words = [f"--data_url={patches}", f"--train_url={tmp_path}", "--precision=fp32", "--device=npu"]
    result = npu.run([sys.executable, ROOT / "train.py", *SHORT, *words]).checked()
    assert "device: npu:0 (as asked), precision: fp32 (as asked)" in result.stdout
    steps = 15
    assert result.kernel_calls["convolution_backward.default"] >= 3 * steps
    assert not result.apex_initialize
    there, here = weights(tmp_path / "x3"), weights(on_cpu)
    for name in here:
        torch.testing.assert_close(there[name], here[name], rtol=1e-3, atol=1e-5)


WAITS = {  # of a step; a dynamic scale, and fp16 without apex, look whether gradients overflowed
    "reference apex-O2": 0,
    "reference apex-O2 dynamic": 1,
    "reference apex-O1": 0,
    "reference apex-O1 dynamic": 1,
    "reference fp16": 2,
    "reference fp16 dynamic": 3,
    "reference bf16": 0,
    "reference fp32": 0,
    "fast bf16": 0,
}


@pytest.mark.parametrize("case", WAITS)
def test_how_often_a_step_waits_for_the_card(
    npu: Simulator, patches: Path, tmp_path: Path, case: str
) -> None:
    """A look at a value, or a copy to the host, waits for all that the card was given to do."""
    recipe, precision, *dynamic = case.split()
    waits = []
    for steps in (7, 14):
        options = [f"--recipe={recipe}", f"--precision={precision}", f"--num-steps={steps}"]
        options += ["--num-epochs=1", "--batch-size=3", *(["--loss-scale=dynamic"] * len(dynamic))]
        result = train(npu, patches, tmp_path, *options).checked()
        waits.append(result.host_waits)
        assert result.kernel_calls["convolution_backward.default"] >= 3 * steps
    assert waits[1] - waits[0] == 7 * WAITS[case]
    assert waits[0] > 0


APEX = [
    f"--precision=apex-{level} --loss-scale={s}"
    for level in ("O1", "O2")
    for s in ("32", "dynamic")
]


@pytest.mark.parametrize("options", APEX)
@pytest.mark.parametrize("more", ["", "--eval-half"])
def test_a_run_with_apex_reaches_its_last_line(
    npu: Simulator, patches: Path, tmp_path: Path, options: str, more: str
) -> None:
    """Evaluation, the last table and the pictures included."""
    result = train(npu, patches, tmp_path, *options.split(), *more.split()).checked()
    assert len(metrics(tmp_path / "x3")) == 3
    assert re.search(r"^best epoch: \d, psnr: \d+\.\d\d$", result.stdout, re.MULTILINE)
    assert result.stdout.splitlines()[-1] == f"pictures: {tmp_path / 'x3'}/strip_*.png"
    assert len(list((tmp_path / "x3").glob("strip_*.png"))) == 2


@pytest.mark.parametrize("precision", ["apex-O1", "apex-O2"])
def test_the_check_takes_a_step_with_apex(npu: Simulator, precision: str) -> None:
    result = npu.fork(ROOT / "train.py", "--check", f"--precision={precision}").checked()
    assert f"fine: training would run on npu:0 in {precision}" in result.stdout
    assert len(result.apex_initialize) == 1


HALF = {
    "apex-O2": (["--precision=apex-O2"], 32.0),
    "apex-O2 dynamic": (["--precision=apex-O2", "--loss-scale=dynamic"], "dynamic"),
    "apex-O1": (["--precision=apex-O1"], 32.0),
    "apex-O1 dynamic": (["--precision=apex-O1", "--loss-scale=dynamic"], "dynamic"),
    "fp16": (["--precision=fp16"], None),
    "fp16 dynamic": (["--precision=fp16", "--loss-scale=dynamic"], None),
    "bf16": (["--precision=bf16"], None),
}


@pytest.mark.parametrize("case", HALF)
def test_half_precision_is_close_to_fp32(
    npu: Simulator, patches: Path, on_cpu: Path, tmp_path: Path, case: str
) -> None:
    options, apex_scale = HALF[case]
    result = train(npu, patches, tmp_path, *options).checked()
    precision = case.removesuffix(" dynamic")
    assert f"device: npu:0 (auto), precision: {precision} (as asked)" in result.stdout
    if case.endswith("dynamic"):  # starts at 65536, where the first steps overflow
        assert 0 < int(metrics(tmp_path / "x3")[-1]["skipped_steps"]) < 8
        assert "steps skipped so far, as they overflowed: " in result.stderr
    else:
        tolerance = 0.3 if case == "bf16" else TOLERANCE_DB
        assert_as_on_cpu(tmp_path / "x3", on_cpu, tolerance)
    if apex_scale is None:
        assert not result.apex_initialize
    else:
        (call,) = result.apex_initialize
        assert call["opt_level"] == precision.removeprefix("apex-")
        assert call["loss_scale"] == apex_scale
        assert call["combine_grad"] is (True if precision == "apex-O2" else None)
        assert call["optimizers"] == ["NpuFusedAdam"]


@pytest.mark.parametrize("apex", [True, False])
@pytest.mark.parametrize("name", ["sgd", "adadelta", "lamb"])
def test_the_other_fused_optimizers(
    npu: Simulator, patches: Path, tmp_path: Path, name: str, apex: bool
) -> None:
    options = [f"--optimizer={name}", "--num-steps=4", "--precision=auto"]
    result = train(npu, patches, tmp_path, *options, apex=apex).checked()
    assert f"samples on 1 process(es), {name}, " in result.stdout
    if apex:
        fused = {"sgd": "NpuFusedSGD", "adadelta": "NpuFusedAdadelta", "lamb": "NpuFusedLamb"}
        assert result.apex_initialize[0]["optimizers"] == [fused[name]]
    assert math.isfinite(float(metrics(tmp_path / "x3")[0]["loss"]))


@pytest.mark.parametrize(
    "precision", ["apex-O2", "fp16"], ids=["with master weights", "with torch_npu's scaler"]
)
def test_resuming_on_the_card_is_exact(
    npu: Simulator, patches: Path, tmp_path: Path, precision: str
) -> None:
    options = [f"--precision={precision}", "--loss-scale=dynamic", "--deterministic"]
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(npu, patches, whole, *options).checked()
    (again / "x3").mkdir(parents=True)
    for name in ("checkpoint_10.pt", "best.pth"):
        shutil.copy(whole / "x3" / name, again / "x3" / name)
    result = train(npu, patches, again, *options, "--resume").checked()
    assert "resuming from" in result.stderr
    assert "deterministic: a step of 8 patches takes" in result.stdout
    one, other = (weights(folder / "x3", "epoch_2.pth") for folder in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert metrics(whole / "x3") == metrics(again / "x3")


def test_the_card_goes_on_with_what_a_cpu_began(
    npu: Simulator, patches: Path, on_cpu: Path, tmp_path: Path
) -> None:
    """PyTorch's Adam counts its steps in tensors, torch_npu's in numbers."""
    (tmp_path / "x3").mkdir()
    shutil.copy(on_cpu / "checkpoint_10.pt", tmp_path / "x3")
    train(npu, patches, tmp_path, "--precision=fp32", "--device=npu", "--resume").checked()
    there, here = (weights(folder, "epoch_2.pth") for folder in (tmp_path / "x3", on_cpu))
    for name in here:
        torch.testing.assert_close(there[name], here[name], rtol=1e-3, atol=1e-5)
    saved = torch.load(tmp_path / "x3/checkpoint_15.pt", weights_only=True)
    counts = [values["step"] for values in saved["training"]["optimizer"]["state"].values()]
    assert counts == [15] * 6
    assert {type(count) for count in counts} == {int}


def test_the_card_goes_on_with_the_loss_scale_of_a_gpu(
    npu: Simulator, patches: Path, tmp_path: Path
) -> None:
    """Whose scaler's state is PyTorch's own: torch_npu's has more in it, and insists."""
    options = ["--precision=fp16", "--loss-scale=dynamic", "--num-steps=5"]
    train(npu, patches, tmp_path, *options).checked()
    path = tmp_path / "x3/checkpoint_5.pt"
    state = torch.load(path, weights_only=True)
    state["training"]["precision"]["scaler"].pop("dynamic", None)
    torch.save(state, path)
    train(npu, patches, tmp_path, *options[:2], "--num-steps=10", "--resume").checked()
    assert [row["step"] for row in metrics(tmp_path / "x3")] == ["5", "10"]


@pytest.mark.parametrize("precision", ["apex-O2", "fp16"])
def test_twenty_overflows_in_a_row_end_the_run(
    npu: Simulator, patches: Path, tmp_path: Path, precision: str
) -> None:
    if precision == "fp16":
        options = ["--precision=fp16", "--loss-scale=1e30"]
        message = "20 steps in a row were skipped"
    else:  # a static scale of apex never looks: the weights turn infinite, and the loss tells
        options = ["--precision=apex-O2", "--loss-scale=1e30"]
        message = "the loss is"
    result = train(npu, patches, tmp_path, *options, "--num-epochs=10")
    assert_one_line_error(result, message, "--loss-scale dynamic", status=1)


def test_a_first_overflow_is_skipped_counted_and_survived(
    npu: Simulator, patches: Path, tmp_path: Path
) -> None:
    far_off = SRCNN().state_dict()
    far_off["conv3.bias"] -= 5000
    torch.save(far_off, tmp_path / "w.pth")
    options = ["--precision=apex-O2", "--loss-scale=dynamic", f"--init-weights={tmp_path}/w.pth"]
    result = train(npu, patches, tmp_path / "out", *options)
    assert "steps skipped so far, as they overflowed: " in result.stderr
    assert int(metrics(tmp_path / "out/x3")[0]["skipped_steps"]) > 0


@pytest.mark.parametrize("options", [["--precision=auto"], ["--recipe=fast", "--precision=fp32"]])
@pytest.mark.parametrize("missing", [{"devices": 0}, {"ASCEND_RT_VISIBLE_DEVICES": "3"}])
def test_without_a_card_torch_npu_lets_the_cpu_train(
    npu: Simulator, patches: Path, tmp_path: Path, options: list[str], missing: dict
) -> None:
    """PyTorch's optimizers ask it, once it is imported, which devices have their kernels."""
    result = train(npu, patches, tmp_path, *options, "--num-steps=3", **missing).checked()
    assert "device: cpu (auto; no npu: torch_npu finds no card" in result.stdout
    assert len(metrics(tmp_path / "x3")) == 1


def test_the_check_without_a_card(npu: Simulator) -> None:
    result = npu.run([sys.executable, ROOT / "train.py", "--check"], devices=0)
    assert "torch_npu finds no card" in result.stdout
    assert "fine: training would run on cpu" in result.stdout


REFUSALS = {
    "no apex": (["--precision=apex-O2"], {"apex": False}, "Ascend's apex is not installed"),
    "no bf16": (["--precision=bf16"], {"soc": "Ascend910A"}, "has no bf16 units"),
    "no card": (["--device=npu"], {"devices": 0}, "torch_npu finds no card"),
    "no visible card": (
        ["--device=npu"],
        {"ASCEND_RT_VISIBLE_DEVICES": "3"},
        "finds no card; see npu-smi info and ASCEND_RT_VISIBLE_DEVICES=3",
    ),
    "other card": (["--device=npu"], {"ASCEND_DEVICE_ID": "3"}, "npu:3 is not there"),
    "alone with combine_ddp": (["--combine-ddp"], {}, "--combine-ddp averages the gradients of"),
    "O1 with combine_ddp": (["--combine-ddp", "--precision=apex-O1"], {}, "use it with apex O2"),
    "fast with apex": (["--precision=apex-O2", "--recipe=fast"], {}, "does not go with apex"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(npu: Simulator, patches: Path, tmp_path: Path, case: str) -> None:
    options, more, message = REFUSALS[case]
    result = train(npu, patches, tmp_path, *options, **more)
    assert_one_line_error(result, message)


def test_pictures_are_enlarged_and_measured_in_fp32(each_npu: Simulator) -> None:
    """Not in HF32, the default of convolutions."""
    code = """
import torch, torch_npu
from runtime.device import keep_fp32
print(torch.npu.conv.allow_hf32)
keep_fp32(torch.device("npu:0"))
print(torch.npu.conv.allow_hf32)
"""
    assert each_npu.run([sys.executable, "-c", code]).checked().stdout == "True\nFalse\n"


def test_the_fast_recipe_on_the_card(npu: Simulator, patches: Path, tmp_path: Path) -> None:
    options = ["--recipe=fast", "--lr=5e-4", "--num-steps=60"]
    result = train(npu, patches, tmp_path, *options).checked()
    assert "precision: bf16 (auto: this recipe's optimizer does not go with apex)" in result.stdout
    assert float(metrics(tmp_path / "x3")[0]["raw_psnr"]) > 15


def test_polishing_on_two_cards(npu: Simulator, patches: Path, tmp_path: Path) -> None:
    start = ["--standalone", "--local-addr=127.0.0.1", "--nproc_per_node=2", ROOT / "train.py"]
    words = [f"--data_url={patches}", f"--train_url={tmp_path}", "--recipe=polish"]
    options = [f"--init-weights={ROOT / 'weights/srcnn_x3.pth'}", "--num-steps=12"]
    command = [sys.executable, ROOT / "test/torchrun.py", *start, *words, *options]
    result = npu.run(command, devices=2).checked()
    assert "on 2 process(es), whitened-muon" in result.stdout
    assert result.collective_calls["broadcast"] >= 2 * 2 * 11, "of two layers, by two processes"
    assert float(metrics(tmp_path / "x3")[0]["psnr"]) > 15


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of the repository to run scripts in: they write below their own folder."""
    repository = tmp_path / "the repository"
    files = subprocess.run(
        ["git", "ls-files", "-z", "--", "*.py", "*.sh", "test/*.sh", "imaging"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, files.split("\0")):
        target = repository / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    return repository


def final_figure(text: str, name: str) -> float:
    return float(re.search(rf"^{name} : ([\d.]+)$", text, re.MULTILINE)[1])


def test_full_script_on_one_card(npu: Simulator, patches: Path, results: Path) -> None:
    words = [f"--data_path={patches}", "--train_epochs=2", "--batch_size=8"]
    result = npu.run(["bash", results / "test/train_full_1p.sh", *words], cwd=Path("/")).checked()
    (call,) = result.apex_initialize
    assert (call["opt_level"], call["loss_scale"], call["combine_grad"]) == ("O2", 32.0, True)
    assert final_figure(result.stdout, "Final Performance images/sec") > 0
    assert final_figure(result.stdout, "Final Train Accuracy") > 0
    log = (results / "test/output/0/train_0.log").read_text()
    assert "device: npu:0 (auto), precision: apex-O2" in log


def test_performance_script_without_apex(npu: Simulator, patches: Path, results: Path) -> None:
    words = [f"--data_path={patches}", "--train_epochs=2", "--batch_size=8"]
    options = ["--", "--loss-scale=dynamic"]
    command = ["bash", results / "test/train_performance_1p.sh", *words, *options]
    result = npu.run(command, apex=False, ASCEND_DEVICE_ID="1", devices=2).checked()
    assert not result.apex_initialize
    log = (results / "test/output/1/train_1.log").read_text()
    assert "device: npu:1 (auto), precision: fp16" in log
    assert final_figure(result.stdout, "Final Performance images/sec") > 0


@pytest.mark.parametrize("combine", [True, False], ids=["combine_ddp", "DistributedDataParallel"])
def test_eight_card_script_with_two(
    npu: Simulator, patches: Path, results: Path, on_cpu: Path, combine: bool
) -> None:
    words = [f"--data_path={patches}", "--train_epochs=3", "--batch_size=4", "--nproc=2"]
    options = ["--", "--lr=1e-3", *(["--combine-ddp"] if combine else [])]
    command = ["bash", results / "test/train_full_8p.sh", *words, *options]
    result = npu.run(command, devices=2).checked()
    assert [call["combine_ddp"] for call in result.apex_initialize] == [combine or None] * 2
    assert result.collective_calls["allreduce"] > 0
    (folder,) = results.glob("test/output/0/**/x3")
    assert_as_on_cpu(folder, on_cpu)


ENTRIES = {
    "acc": ("train_full_1p.sh", "500 32", "2 8"),
    "perf": ("train_performance_1p.sh", "10 256", "2 8"),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_modelarts_entries(npu: Simulator, patches: Path, results: Path, kind: str) -> None:
    script, sizes, smaller = ENTRIES[kind]
    text = (results / "test" / script).read_text()
    assert text.count(sizes) == 1
    (results / "test" / script).write_text(text.replace(sizes, smaller))
    out = results.parent / "train url; exit 4"
    words = [f"--data_url={patches}", f"--train_url={out}", "--num_gpus=1"]
    result = npu.run([sys.executable, results / f"modelarts_entry_{kind}.py", *words]).checked()
    assert "[CANN-Modelzoo] end of the run: exit status 0" in result.stdout
    assert result.apex_initialize
    assert list(out.rglob("best.pth"))
    assert list(out.rglob("train_0.log"))


def test_the_benchmark_of_accelerators_runs_on_a_card(npu: Simulator) -> None:
    """Graphs need a real card: there the table says so, and goes on."""
    words = ["--device=npu", "--batch", "2", "3", "--seconds=0.1", "--rows=64"]
    result = npu.fork(ROOT / "benchmarks/accelerator.py", *words).checked()
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("one by one")]
    assert [row[3] for row in rows] == ["2", "3"]
    assert all(float(row[4]) > 0 for row in rows)
    assert result.kernel_calls["convolution_backward.default"] > 30
