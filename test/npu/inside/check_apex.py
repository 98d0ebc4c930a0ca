"""What the stand-in for Ascend's apex must do; runs inside a simulation.

All of this holds for the real apex (master 5.0.0) on the real torch_npu too, whose figures these
are.
"""

import copy

import apex
import pytest
import torch
from apex import amp
from nets import SmallNet, batch, train
from torch import nn

CARD = "npu:0"


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
    expected = [0.15032, 0.71845, 0.13069, 0.15824, 0.24416, 0.27403]
    assert losses == pytest.approx(expected, abs=5e-5)  # CPUs differ in the last digit
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
    """With a static scale of 1, O1 changes nothing once its casts are disabled."""
    plain = apex.optimizers.Lamb if name == "Lamb" else getattr(torch.optim, name)
    options = {"momentum": 0.9} if name == "SGD" else {}
    twin = train("cpu", lambda groups, lr: plain(groups, lr=lr, **options))[1]
    torch.manual_seed(1)
    net, (inputs, targets) = SmallNet(8), batch()
    fused = getattr(apex.optimizers, f"NpuFused{name}")(net.npu().groups(), lr=1e-3, **options)
    net, fused = amp.initialize(net, fused, opt_level="O1", loss_scale=1.0, verbosity=0)
    for _ in range(6):
        with amp.disable_casts():
            loss = nn.functional.mse_loss(net(inputs.npu()), targets.npu())
        fused.zero_grad()
        with amp.scale_loss(loss, fused) as scaled_loss:
            scaled_loss.backward()
        fused.step()
    for key, weight in net.state_dict().items():
        torch.testing.assert_close(weight.cpu(), twin[key], rtol=0, atol=1e-6)


STATES = {
    "Adam": {"step", "exp_avg", "exp_avg_sq"},
    "SGD": {"momentum_buffer"},
    "Adadelta": {"step", "square_avg", "acc_delta"},
    "Lamb": {"step", "exp_avg", "exp_avg_sq"},
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("opt_level", ["O1", "O2"])
def test_a_restored_optimizer_goes_on_where_it_was(name: str, opt_level: str) -> None:
    """Four steps are two, a state that is taken and loaded elsewhere, and two."""
    inputs, targets = batch()
    options = {"lr": 1e-3} | ({"momentum": 0.9} if name == "SGD" else {})

    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        net = SmallNet(8).npu()
        optimizer = getattr(apex.optimizers, f"NpuFused{name}")(net.groups(), **options)
        level = {"opt_level": opt_level, "loss_scale": 32.0, "verbosity": 0}
        return amp.initialize(net, optimizer, **level)

    def take_two_steps(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(2):
            loss = nn.functional.mse_loss(net(inputs.npu()).float(), targets.npu())
            optimizer.zero_grad()
            with amp.scale_loss(loss, optimizer) as scaled_loss:
                scaled_loss.backward()
            optimizer.step()

    whole, again = make(), make()
    take_two_steps(*whole)
    weights = [master.detach().clone() for master in amp.master_params(whole[1])]
    state = copy.deepcopy(whole[1].state_dict())  # loading may share what a step changes
    assert {key for entry in state["state"].values() for key in entry} == STATES[name]
    again[1].zero_grad()
    for master, weight in zip(amp.master_params(again[1]), weights, strict=True):
        master.data.copy_(weight)
    again[0].load_state_dict(whole[0].state_dict())
    again[1].load_state_dict(state)
    for run in (whole, again):
        take_two_steps(*run)
    masters = (amp.master_params(optimizer) for _, optimizer in (whole, again))
    assert all(torch.equal(one, other) for one, other in zip(*masters, strict=True))
