"""What a simulated card must do; runs inside a simulation with two cards."""

import io
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch_npu
from nets import SmallNet, batch, train
from simnpu import record
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CARD = "npu:0"
REAL = os.environ["NPU_SIM_WAY"] == "real"


def test_torch_finds_the_cards() -> None:
    assert torch.npu.is_available()
    assert torch.npu.device_count() == 2
    assert torch.npu.get_device_name(0) == os.environ["NPU_SIM_SOC"]
    assert torch.accelerator.current_accelerator().type == "npu"


def test_fused_adam_gives_the_known_losses() -> None:
    """Five losses of the real NpuFusedAdam, measured once."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 64, 9, padding=4), nn.ReLU(), nn.Conv2d(64, 32, 5, padding=2)
    net = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(32, 1, 5, padding=2)).npu()
    optimizer = torch_npu.optim.NpuFusedAdam(net.parameters(), lr=1e-3)
    inputs, targets = (tensor.npu() for tensor in batch(33))
    losses = []
    for _ in range(5):
        loss = nn.functional.mse_loss(net(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(round(loss.item(), 5))
    assert losses == [0.33441, 0.16336, 0.09928, 0.17219, 0.11995]


def test_fp32_training_equals_the_cpus_bit_by_bit() -> None:
    before = record.kernel_calls["convolution.default"]
    on_card = train(CARD, torch.optim.Adam, steps=20)
    assert record.kernel_calls["convolution.default"] - before == 20 * 3
    on_cpu = train("cpu", torch.optim.Adam, steps=20)
    assert on_card[0] == on_cpu[0]
    for name, weight in on_cpu[1].items():
        assert torch.equal(on_card[1][name], weight), name


@pytest.mark.parametrize("name", ["Adam", "SGD", "Adadelta"])
def test_fused_optimizers_equal_their_plain_twins_in_every_group(name: str) -> None:
    fused = getattr(torch_npu.optim, f"NpuFused{name}")
    on_card = train(CARD, fused)[1]
    on_cpu = train("cpu", getattr(torch.optim, name))[1]
    start = train("cpu", torch.optim.Adam, steps=0)[1]
    for key, weight in on_cpu.items():
        torch.testing.assert_close(on_card[key], weight, rtol=0, atol=1e-7)
        assert not torch.equal(weight, start[key]), key


def test_fused_lamb_gives_the_real_ones_losses() -> None:
    losses = train(CARD, torch_npu.optim.NpuFusedLamb)[0]
    expected = [0.37729, 0.37669, 0.37609, 0.3755, 0.37492, 0.37436]
    assert losses == pytest.approx(expected, abs=1e-5)


def test_a_tensor_on_the_wrong_device_is_refused() -> None:
    net, on_cpu = SmallNet(8).to(CARD), torch.rand(1, 1, 9, 9)
    with pytest.raises(RuntimeError, match=r"should be the same|same device"):
        net(on_cpu)
    with pytest.raises(RuntimeError, match="npu:0 and cpu"):
        on_cpu.to(CARD) + on_cpu
    with pytest.raises(RuntimeError, match="npu:0 and npu:1"):
        on_cpu.to(CARD) + on_cpu.to("npu:1")
    with pytest.raises(TypeError, match="numpy"):
        on_cpu.to(CARD).numpy()
    with pytest.raises(RuntimeError, match=r"Invalid NPU device|SetDevice"):
        torch.npu.set_device("npu:2")


def test_fused_optimizers_refuse_what_the_real_ones_refuse() -> None:
    net = SmallNet(8)
    net(batch()[0]).sum().backward()
    with pytest.raises(RuntimeError, match=r"must be on NPU|npu::get_npu_format"):
        torch_npu.optim.NpuFusedAdam(net.parameters()).step()
    net = SmallNet(8).to(CARD, torch.bfloat16)
    net(batch()[0].to(CARD, torch.bfloat16)).sum().backward()
    optimizer = torch_npu.optim.NpuFusedSGD(net.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="float32 or float16"):
        optimizer.step()
    with pytest.raises(ValueError, match="set_to_none"):
        optimizer.zero_grad(set_to_none=True)
    net = SmallNet(8).to(CARD, memory_format=torch.channels_last)
    net(batch()[0].to(CARD)).sum().backward()
    with pytest.raises(RuntimeError, match="must be contiguous"):
        torch_npu.optim.NpuFusedAdam(net.parameters()).step()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_computes_convolutions_in_half_and_losses_in_float(dtype: torch.dtype) -> None:
    net, (inputs, targets) = SmallNet(8).to(CARD), batch()
    with torch.autocast("npu", dtype=dtype):
        output = net(inputs.to(CARD))
        loss = nn.functional.mse_loss(output, targets.to(CARD))
    assert (output.dtype, loss.dtype) == (dtype, torch.float32)
    assert net.conv1.weight.dtype == torch.float32
    exact = nn.functional.mse_loss(net(inputs.to(CARD)), targets.to(CARD))
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)


def test_half_convolutions_are_computed_in_float_and_rounded() -> None:
    images, weights = torch.rand(2, 8, 9, 9).half(), torch.rand(4, 8, 5, 5).half()
    on_card = nn.functional.conv2d(images.to(CARD), weights.to(CARD)).cpu()
    assert torch.equal(on_card, nn.functional.conv2d(images.float(), weights.float()).half())


def _scaled_steps(scaler: torch.amp.GradScaler, new_scale: float | None = None) -> list[float]:
    """Three steps, overflow in the second; returns the scales and whether weights are finite."""
    net, (inputs, targets) = SmallNet(8).to(CARD), batch()
    optimizer = torch_npu.optim.NpuFusedAdam(net.parameters())
    scales = []
    for factor in (1.0, float("inf"), 1.0):
        with torch.autocast("npu", dtype=torch.float16):
            loss = nn.functional.mse_loss(net(inputs.to(CARD) * factor), targets.to(CARD))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update(*[new_scale] * (new_scale is not None))
        scales.append(scaler.get_scale())
    finite = all(torch.isfinite(weight).all().item() for weight in net.parameters())
    return [*scales, finite]


def test_grad_scaler_dynamic_static_and_set_anew(capsys: pytest.CaptureFixture) -> None:
    scaler = torch_npu.npu.amp.GradScaler
    assert _scaled_steps(scaler(init_scale=64.0)) == [64.0, 32.0, 32.0, True]
    printed = capsys.readouterr().out
    assert "Gradient overflow. Skipping step\n" in printed
    assert "Loss scaler reducing loss scale to 32.0" in printed
    assert _scaled_steps(scaler(init_scale=32.0, dynamic=False)) == [32.0, 32.0, 32.0, False]
    assert _scaled_steps(scaler(init_scale=32.0), new_scale=32.0) == [32.0, 32.0, 32.0, True]
    assert _scaled_steps(torch.amp.GradScaler("npu", 32.0)) == [32.0, 16.0, 16.0, True]
    assert scaler(dynamic=False).state_dict()["dynamic"] is False


def test_checkpoints_go_where_map_location_says() -> None:
    net, buffer = SmallNet(8).to(CARD), io.BytesIO()
    torch.save(net.state_dict(), buffer)
    for location, device in ((None, CARD), ("cpu", "cpu"), (CARD, CARD)):
        buffer.seek(0)
        state = torch.load(buffer, map_location=location, weights_only=True)
        assert {str(weight.device) for weight in state.values()} == {device}
        assert torch.equal(state["conv1.weight"].cpu(), net.conv1.weight.detach().cpu())


def test_pinned_batches_from_workers_reach_the_card() -> None:
    images = torch.arange(16.0).reshape(16, 1)
    loader = DataLoader(TensorDataset(images), 4, num_workers=1, pin_memory=True)
    batches = [images for (images,) in loader]
    assert all(images.is_pinned() for images in batches)
    on_card = torch.cat([images.to(CARD, non_blocking=True) for images in batches])
    assert torch.equal(on_card.cpu(), images)


def test_profiler_writes_a_trace(tmp_path: Path) -> None:
    profiler = torch_npu.profiler
    handler = profiler.tensorboard_trace_handler(str(tmp_path))
    activities = [profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.NPU]
    with profiler.profile(activities=activities, on_trace_ready=handler) as profile:
        (torch.ones(3, device=CARD) + 1).sum()
        profile.step()
    assert list(tmp_path.rglob("*trace*.json"))


@pytest.mark.skipif(not REAL, reason="the pure-Python device has one kernel for everything")
def test_a_kernel_that_was_not_replaced_fails_loudly() -> None:
    """The task queue hands the error over with some later operation."""
    with pytest.raises(RuntimeError):
        torch_npu.npu_fast_gelu(torch.ones(3, device=CARD))
        while True:
            torch.npu.synchronize()
            time.sleep(0.01)


@pytest.mark.skipif(not REAL, reason="the pure-Python device has one kernel for everything")
def test_an_operator_that_would_fall_back_to_the_cpu_fails() -> None:
    with pytest.raises(RuntimeError, match=r"aten::cholesky_inverse: torch_npu has no kernel"):
        torch.cholesky_inverse(torch.eye(3, device=CARD))


@pytest.mark.parametrize(
    ("waits", "work"),
    [
        (0, lambda tensor: (tensor + 1).sum()),
        (1, lambda tensor: tensor.sum().item()),
        (1, lambda tensor: tensor.cpu()),
        (1, lambda tensor: bool(tensor.sum() > 0)),
        (1, lambda tensor: torch.equal(tensor, tensor)),
        (1, lambda tensor: tensor[tensor > 0]),
    ],
)
def test_waits_of_the_host_are_counted(waits: int, work: Callable) -> None:
    tensor = torch.rand(3).to(CARD)
    before = record.kernel_calls["host wait"]
    work(tensor)
    assert record.kernel_calls["host wait"] - before == waits


@pytest.mark.skipif(not REAL, reason="there is no CANN behind the pure-Python device")
def test_cann_tells_its_version() -> None:
    assert torch_npu.npu.utils.get_cann_version() == "9.0.0"
