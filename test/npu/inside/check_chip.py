"""What the chips differ in: types, saturation, the Cube unit, formats; runs on each of them."""

from collections.abc import Callable

import pytest
import torch
import torch_npu
from nets import SmallNet, batch
from simnpu import record
from torch import nn

CARD = "npu:0"
FIRST = torch.npu.get_device_name(0) == "Ascend910A"
FRACTAL_Z = 4

BFLOAT16 = {
    "argument": lambda: torch.empty(2, dtype=torch.bfloat16, device=CARD).add_(1),
    "result": lambda: torch.zeros(2, device=CARD).sum(dtype=torch.bfloat16),
    "new": lambda: torch.ones(2, dtype=torch.bfloat16, device=CARD),
    "cast": lambda: torch.zeros(2, device=CARD).bfloat16(),
    "copy to the card": lambda: torch.zeros(2, dtype=torch.bfloat16).to(CARD),
    "copy to the host": lambda: torch.empty(2, dtype=torch.bfloat16, device=CARD).cpu(),
    "copy in place": lambda: torch.empty(2, dtype=torch.bfloat16, device=CARD).copy_(
        torch.zeros(2, device=CARD)
    ),
    "value": lambda: torch.empty((), dtype=torch.bfloat16, device=CARD).item(),
}


@pytest.mark.parametrize("case", BFLOAT16)
def test_bfloat16(case: str) -> None:
    assert torch.npu.is_bf16_supported() is not FIRST
    assert (torch.bfloat16 in torch.npu.get_amp_supported_dtype()) is not FIRST
    if FIRST:
        with pytest.raises(RuntimeError, match="DT_BFLOAT16"):
            BFLOAT16[case]()
    else:
        BFLOAT16[case]()


def _in_place() -> torch.Tensor:
    return torch.full((1,), 6e4, dtype=torch.float16, device=CARD).mul_(-2)


def _out() -> torch.Tensor:
    result = torch.empty(1, dtype=torch.float16, device=CARD)
    return torch.exp(torch.full((1,), 12.0, dtype=torch.float16, device=CARD), out=result)


LARGEST = torch.finfo(torch.float32).max
OVERFLOWS: dict[str, tuple[Callable[[], torch.Tensor], float, float]] = {
    "exp": (lambda: torch.exp(torch.tensor([12.0]).half().to(CARD)), 65504.0, float("inf")),
    "in place": (_in_place, -65504.0, float("-inf")),
    "out": (_out, 65504.0, float("inf")),
    "cast": (lambda: torch.tensor([1e6]).to(CARD).half(), 65504.0, float("inf")),
    "fp32": (lambda: torch.exp(torch.tensor([100.0]).to(CARD)), LARGEST, float("inf")),
    "nan": (lambda: torch.log(torch.tensor([-1.0]).half().to(CARD)), 0.0, float("nan")),
}


@pytest.mark.parametrize("case", OVERFLOWS)
def test_an_overflow_saturates_and_raises_the_flag(case: str) -> None:
    overflow, saturated, ieee = OVERFLOWS[case]
    assert torch_npu.npu.utils.is_support_inf_nan() is not FIRST
    if not FIRST:
        assert overflow().item() == pytest.approx(ieee, nan_ok=True)
        with pytest.raises(RuntimeError, match="Unsupported api"):
            torch.npu.get_npu_overflow_flag()
        return
    torch.npu.clear_npu_overflow_flag()
    torch.ones(2, device=CARD).half().add_(1)
    assert torch.npu.get_npu_overflow_flag() is False
    assert overflow().item() == saturated
    assert torch.npu.get_npu_overflow_flag() is torch.npu.get_npu_overflow_flag() is True
    torch.npu.clear_npu_overflow_flag()
    assert torch.npu.get_npu_overflow_flag() is False


@pytest.mark.parametrize("fused", [True, False])
def test_the_grad_scaler_finds_an_overflow_on_every_chip(fused: bool) -> None:
    torch.manual_seed(0)
    net, (inputs, targets) = SmallNet(8).to(CARD), batch()
    module = torch_npu.optim if fused else torch.optim
    optimizer = getattr(module, "NpuFusedAdam" if fused else "Adam")(net.parameters())
    scaler = torch_npu.npu.amp.GradScaler(init_scale=64.0)
    scales, waits = [], []
    for factor in (1.0, 1e30, 1.0, 1.0):
        before = record.kernel_calls["host wait"]
        with torch.autocast("npu", dtype=torch.float16):
            loss = nn.functional.mse_loss(net(inputs.to(CARD) * factor), targets.to(CARD))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        waits.append(record.kernel_calls["host wait"] - before)
        scales.append(scaler.get_scale())
    assert scales == [64.0, 32.0, 32.0, 32.0]
    assert all(torch.isfinite(weight).all().item() for weight in net.parameters())
    assert waits[2] == waits[3] > 0


def test_fp32_convolutions_and_products() -> None:
    torch.manual_seed(0)
    image, weight = torch.rand(2, 8, 9, 9), torch.rand(4, 8, 5, 5)
    left, right = torch.rand(5, 64), torch.rand(64, 7)
    for function, one, other in (
        (nn.functional.conv2d, image, weight),
        (torch.mm, left, right),
    ):
        on_card = function(one.to(CARD), other.to(CARD)).cpu()
        assert on_card.dtype == torch.float32
        exact = function(one, other)
        rounded = function(one.half().float(), other.half().float()).half().float()
        assert not torch.equal(exact, rounded)
        torch.testing.assert_close(on_card, rounded if FIRST else exact, rtol=1e-6, atol=1e-6)


VIEWS = {
    "view": lambda weight: weight.view(weight.shape[0], -1),
    "flatten": torch.flatten,
    "row": lambda weight: weight[0],
    "permuted": lambda weight: weight.permute(0, 2, 3, 1),
    "as a parameter": lambda weight: nn.Parameter(weight.flatten(1)).data,
}


@pytest.mark.parametrize("case", VIEWS)
def test_a_write_through_a_view_of_a_convolutions_weight(case: str) -> None:
    net = SmallNet(8).to(CARD)
    weight = net.conv2.weight.data
    assert (torch_npu.get_npu_format(weight) == FRACTAL_Z) is FIRST
    view = VIEWS[case](weight)
    for write in (
        lambda: view.add_(1.0),
        lambda: view.copy_(torch.zeros_like(view)),
        lambda: torch.add(view, 1.0, out=view),
    ):
        if FIRST:
            with pytest.raises(RuntimeError, match="FRACTAL_Z"):
                write()
        else:
            write()
    weight.add_(1.0)
    assert torch_npu.get_npu_format(torch.clone(weight)) == torch_npu.get_npu_format(weight)
    assert torch_npu.get_npu_format(weight + 1.0) != FRACTAL_Z
    assert view.sum().item() == pytest.approx(VIEWS[case](weight).cpu().sum().item(), rel=1e-3)


def test_plain_formats_on_request() -> None:
    torch.npu.config.allow_internal_format = False
    try:
        weight = SmallNet(8).to(CARD).conv2.weight.data
        assert torch_npu.get_npu_format(weight) != FRACTAL_Z
        weight.view(weight.shape[0], -1).add_(1.0)
    finally:
        torch.npu.config.allow_internal_format = True
