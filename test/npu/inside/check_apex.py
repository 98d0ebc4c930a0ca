"""What the stand-in for Ascend's apex must do; runs inside a simulation.

The figures are those of the real apex (master 5.0.0) on the real torch_npu.
"""

from collections.abc import Iterator

import apex
import pytest
import torch
from apex import amp
from nets import SmallNet, batch, train
from torch import nn

CARD = "npu:0"


@pytest.fixture(autouse=True)
def _casts_end_with_the_test() -> Iterator[None]:
    yield
    apex.amp._casts._active = False


def amp_train(
    opt_level: str = "O2",
    loss_scale: float | str = 32.0,
    batch_norm: bool = False,
    overflow_at: int = -1,
    optimizer: type = apex.optimizers.NpuFusedAdam,
    **options: object,
) -> tuple[list[float], SmallNet, torch.optim.Optimizer]:
    """Six steps from seed 1; returns the losses rounded to five digits, model and optimizer."""
    torch.manual_seed(1)
    net = SmallNet(batch_norm=batch_norm).npu()
    adam = optimizer(net.groups(), lr=1e-3)
    net, adam = amp.initialize(
        net, adam, opt_level=opt_level, loss_scale=loss_scale, combine_grad=True, **options
    )
    inputs, targets = batch()
    losses = []
    for step in range(6):
        factor = float("inf") if step == overflow_at else 1.0
        loss = nn.functional.mse_loss(net(inputs.npu() * factor), targets.npu())
        adam.zero_grad()
        with amp.scale_loss(loss, adam) as scaled_loss:
            scaled_loss.backward()
        adam.step()
        losses.append(round(loss.item(), 5))
    return losses, net, adam


O2_LOSSES = [0.25685, 0.11677, 0.1913, 0.14597, 0.10955, 0.11381]


@pytest.mark.parametrize("optimizer", [apex.optimizers.NpuFusedAdam, torch.optim.Adam])
def test_o2_reproduces_the_real_losses(optimizer: type) -> None:
    losses, net, adam = amp_train(optimizer=optimizer)
    assert losses == O2_LOSSES
    assert amp.state_dict() == {"loss_scaler0": {"loss_scale": 32.0, "unskipped": 6}}
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float16}
    assert {master.dtype for master in amp.master_params(adam)} == {torch.float32}
    assert {weight.dtype for weight in net.state_dict().values()} == {torch.float32}
    assert net(batch()[0].npu()).dtype == torch.float32


def test_o2_keeps_batch_norm_in_fp32_and_reproduces_the_real_losses() -> None:
    losses, net, _ = amp_train(batch_norm=True)
    assert losses == [0.15032, 0.71845, 0.13069, 0.15824, 0.24416, 0.27403]
    assert net.bn.weight.dtype == net.bn.running_mean.dtype == torch.float32
    assert net.conv1.weight.dtype == torch.float16


def test_dynamic_scale_halves_and_skips(capsys: pytest.CaptureFixture) -> None:
    losses, net, _ = amp_train(loss_scale="dynamic", overflow_at=2, verbosity=1)
    assert losses[:2] + losses[3:] == O2_LOSSES[:5]
    assert amp.state_dict() == {"loss_scaler0": {"loss_scale": 32768.0, "unskipped": 3}}
    message = "Gradient overflow.  Skipping step, loss scaler 0 reducing loss scale to 32768.0\n"
    assert message in capsys.readouterr().out
    assert all(torch.isfinite(weight).all() for weight in net.parameters())


def test_static_scale_never_looks_for_overflow() -> None:
    _, net, _ = amp_train(overflow_at=5)
    assert not all(torch.isfinite(weight).all() for weight in net.parameters())


def test_dynamic_scale_grows_after_the_window() -> None:
    amp_train(loss_scale="dynamic", scale_window=3, dynamic_init_scale=8.0)
    assert amp.state_dict() == {"loss_scaler0": {"loss_scale": 32.0, "unskipped": 0}}


def test_o1_casts_convolutions_only_and_stays_close_to_o2() -> None:
    losses, net, _ = amp_train("O1")
    assert losses == pytest.approx(O2_LOSSES, abs=1e-3)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    image = batch()[0].npu()
    assert net(image).dtype == torch.float16
    assert nn.functional.mse_loss(net(image), net(image)).dtype == torch.float32
    with amp.disable_casts():
        assert net(image).dtype == torch.float32


def test_masters_appear_at_the_first_zero_grad() -> None:
    net = SmallNet(8).npu()
    optimizer = apex.optimizers.NpuFusedAdam(net.parameters())
    net, optimizer = amp.initialize(net, optimizer, opt_level="O2", verbosity=0)
    assert next(amp.master_params(optimizer)).dtype == torch.float16
    optimizer.zero_grad()
    assert next(amp.master_params(optimizer)).dtype == torch.float32


def test_gradients_accumulate_over_several_losses() -> None:
    net, (inputs, targets) = SmallNet(8).npu(), batch()
    net, sgd = amp.initialize(
        net, torch.optim.SGD(net.parameters(), 0.1), opt_level="O2", loss_scale=4.0, verbosity=0
    )
    gradients = []
    for losses in (1, 2):
        sgd.zero_grad()
        for _ in range(losses):
            loss = nn.functional.mse_loss(net(inputs.npu()), targets.npu())
            with amp.scale_loss(loss, sgd) as scaled_loss:
                scaled_loss.backward()
        gradients.append(next(amp.master_params(sgd)).grad.clone())
    torch.testing.assert_close(gradients[1], 2 * gradients[0])


def test_the_state_of_the_scaler_is_restored() -> None:
    amp_train(loss_scale="dynamic", overflow_at=2)
    saved = amp.state_dict()
    amp_train(loss_scale="dynamic")
    assert amp.state_dict() != saved
    amp.load_state_dict(saved)
    assert amp.state_dict() == saved


@pytest.mark.parametrize("name", ["Adam", "SGD", "Adadelta", "Lamb"])
def test_fused_optimizers_equal_their_plain_twins(name: str) -> None:
    plain = apex.optimizers.Lamb if name == "Lamb" else getattr(torch.optim, name)

    def with_amp(groups: list, lr: float) -> torch.optim.Optimizer:
        optimizer = getattr(apex.optimizers, f"NpuFused{name}")(groups, lr=lr)
        optimizer._amp_stash = None  # as amp.initialize leaves it, without its changes
        optimizer.zero_grad = optimizer.zero_gradients
        return optimizer

    fused, twin = train(CARD, with_amp)[1], train("cpu", plain)[1]
    for key, weight in twin.items():
        torch.testing.assert_close(fused[key], weight, rtol=0, atol=1e-7)


# ---- Refusals, each provoked once ---------------------------------------------------------------


def _initialize(
    net: nn.Module | None = None, optimizer: type = torch.optim.Adam, **options: object
) -> torch.optim.Optimizer:
    net = SmallNet(8).npu() if net is None else net
    options = {"verbosity": 0, "loss_scale": 32.0} | options
    return amp.initialize(net, optimizer(net.parameters(), lr=0.1), **options)[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opt_level": "O4"}, "Unexpected optimization level"),
        ({"opt_level": "O0", "combine_grad": True}, "combine_grad=True needs"),
        ({"opt_level": "O2", "combine_grad": True, "master_weights": False}, "master_weights"),
        ({"opt_level": "O1", "master_weights": True}, "master_weights with O1"),
        ({"opt_level": "O2", "combine_ddp": True}, "combine_ddp=True needs"),
        ({"opt_level": "O2", "net": SmallNet(8)}, "located on a Npu device"),
        ({"opt_level": "O2", "net": SmallNet(8).half().npu()}, "fp32 parameters"),
        ({"opt_level": "O2", "net": nn.DataParallel(SmallNet(8))}, "Parallel wrappers"),
        ({"opt_level": "O0", "optimizer": apex.optimizers.NpuFusedSGD}, "can only be used when"),
    ],
)
def test_initialize_refuses(options: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        _initialize(**options)


def test_an_optimizer_is_initialized_once() -> None:
    net = SmallNet(8).npu()
    optimizer = torch.optim.Adam(net.parameters())
    amp.initialize(net, optimizer, opt_level="O1", verbosity=0)
    with pytest.raises(RuntimeError, match="should only be passed through"):
        amp.initialize(net, optimizer, opt_level="O1", verbosity=0)


def test_closures_and_arguments_of_zero_grad_are_refused() -> None:
    optimizer = _initialize(opt_level="O2")
    with pytest.raises(RuntimeError, match="closure"):
        optimizer.step(lambda: None)
    with pytest.raises(TypeError):
        optimizer.zero_grad(set_to_none=True)


def test_fused_optimizers_need_amp_and_their_memory() -> None:
    net = SmallNet(8).npu()
    with pytest.raises(RuntimeError, match="should be used with AMP"):
        apex.optimizers.NpuFusedAdam(net.parameters()).step()
    _, net, adam = amp_train("O1")
    with pytest.raises(AssertionError, match="set_to_none"):
        net.zero_grad(set_to_none=True)
    net.conv1.weight.grad = net.conv1.weight.grad.clone()
    with pytest.raises(RuntimeError, match="re-allocated"):
        adam.step()
