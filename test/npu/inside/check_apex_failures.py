"""What the stand-in for Ascend's apex must refuse or do wrong, as the real one does.

All of this holds for the real apex (master 5.0.0) on the real torch_npu too, but for the last
check: there a card would go on with stale memory.
"""

import apex
import pytest
import torch
from apex import amp
from nets import SmallNet, batch
from torch import nn


def _initialize(
    net: nn.Module | None = None, optimizer: type = torch.optim.Adam, **options: object
) -> tuple[nn.Module, torch.optim.Optimizer]:
    net = SmallNet(8).npu() if net is None else net
    options = {"verbosity": 0, "loss_scale": 32.0} | options
    return amp.initialize(net, optimizer(net.parameters(), lr=0.1), **options)


# ---- Calls that exist at one level only, and what O1 keeps --------------------------------------


@pytest.mark.parametrize("opt_level", ["O0", "O2", "O3"])
def test_casts_can_be_disabled_under_o1_only(opt_level: str) -> None:
    _initialize(opt_level=opt_level)
    message = "'AmpState' object has no attribute 'handle'"
    with pytest.raises(AttributeError, match=message), amp.disable_casts():
        pass


def test_disabled_casts_do_not_nest_and_stay_off_after_an_exception() -> None:
    net, image = _initialize(opt_level="O1")[0], batch()[0].npu()
    with amp.disable_casts():
        with amp.disable_casts():
            pass
        assert net(image).dtype == torch.float16
    with pytest.raises(ZeroDivisionError), amp.disable_casts():
        1 / 0  # noqa: B018
    assert net(image).dtype == torch.float32


@pytest.mark.parametrize("first", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("second", [torch.no_grad, torch.enable_grad])
def test_o1_lets_a_convolution_on_the_cpu_run_once(first: type, second: type) -> None:
    """The copy of a weight that is kept is the weight itself there, and has no grad_fn."""
    _initialize(opt_level="O1")
    on_cpu, image = nn.Conv2d(1, 1, 3), torch.rand(1, 1, 5, 5)
    with first():
        on_cpu(image)
    with second(), pytest.raises(AttributeError, match="no attribute 'next_functions'"):
        on_cpu(image)
    with amp.disable_casts():
        on_cpu(image)
    frozen = nn.Conv2d(1, 1, 3).requires_grad_(False)
    assert torch.equal(frozen(image), frozen(image))


def test_o1_keeps_the_cast_weights_until_a_loss_was_scaled() -> None:
    net, optimizer = _initialize(opt_level="O1")
    image = batch()[0].npu()
    with torch.no_grad():
        before = net(image)
        for weight in net.parameters():
            weight.zero_()
        assert torch.equal(net(image), before)  # stale
    loss = net(image).float().sum()  # with gradients the copies are made anew
    assert loss.item() == 0
    with torch.no_grad():
        net.conv3.bias.fill_(1.0)
        assert net(image).sum().item() == 0  # stale again
    with amp.scale_loss(loss, optimizer) as scaled_loss:
        scaled_loss.backward()
    assert net(image).float().mean().item() == 1


def test_o1_casts_methods_operators_and_sequences() -> None:
    _initialize(opt_level="O1")
    half, single = torch.rand(3).half().npu(), torch.rand(3).npu()
    for result in (half.sum(), half.pow(2), half.cpu(), torch.log10(half), half + single):
        assert result.dtype == torch.float32
    assert torch.cat([half, single]).dtype == torch.stack([half, single]).dtype == torch.float32
    assert half.mean().dtype == (half * half).dtype == torch.float16
    assert torch.matmul(single, single).dtype == torch.float16
    with pytest.raises(NotImplementedError, match="exp_"):
        half.exp_()
    with pytest.raises(NotImplementedError, match="types to promote"):
        half + single.bfloat16()


def test_amp_before_initialize_and_scaling_without_it() -> None:
    _, optimizer = _initialize(opt_level="O2")
    with pytest.raises(RuntimeError, match="Unexpected key"):
        amp.load_state_dict({"loss_scaler0": amp.state_dict()["loss_scaler0"], "other": 1})
    properties = amp._amp_state.opt_properties
    del amp._amp_state.opt_properties
    try:
        message, loss = "Amp state has not been initialized", torch.ones((), device="npu")
        with pytest.raises(RuntimeError, match=message), amp.scale_loss(loss, optimizer):
            pass
    finally:
        amp._amp_state.opt_properties = properties


# ---- Refusals, each provoked once ---------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
def test_combine_ddp_in_a_single_process(fused: bool) -> None:
    optimizer = apex.optimizers.NpuFusedAdam if fused else torch.optim.Adam
    options = {"opt_level": "O2", "combine_grad": True, "combine_ddp": True}
    with pytest.raises(ValueError, match="Default process group has not been initialized"):
        _initialize(optimizer=optimizer, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opt_level": "O4"}, "Unexpected optimization level"),
        ({"opt_level": "O0", "combine_grad": True}, "combine_grad=True or"),
        ({"opt_level": "O2", "combine_grad": True, "master_weights": False}, "master_weights"),
        ({"opt_level": "O1", "master_weights": True}, "master_weights with O1"),
        ({"opt_level": "O1", "keep_batchnorm_fp32": True}, "keep_batchnorm_fp32 should be None"),
        ({"opt_level": "O1", "cast_model_type": torch.float16}, "casts around Torch functions"),
        ({"opt_level": "O2", "patch_torch_functions": True}, "patch_torch_functions=True"),
        ({"opt_level": "O2", "combine_ddp": True}, "Combine_grad should be True"),
        (
            {"opt_level": "O1", "combine_ddp": True, "optimizer": apex.optimizers.NpuFusedAdam},
            "Combine_grad should be True",
        ),
        ({"opt_level": "O2", "net": SmallNet(8)}, "located on a Npu device"),
        ({"opt_level": "O2", "net": SmallNet(8).half().npu()}, r"do not need to call .half\(\)"),
        ({"opt_level": "O2", "net": nn.DataParallel(SmallNet(8))}, "Parallel wrappers"),
        ({"opt_level": "O0", "optimizer": apex.optimizers.NpuFusedSGD}, "can only be used when"),
    ],
)
def test_initialize_refuses(options: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        _initialize(**options)


def test_what_is_neither_one_nor_a_list_is_refused() -> None:
    net = SmallNet(8).npu()
    adam = torch.optim.Adam(net.parameters())
    with pytest.raises(TypeError, match="optimizers must be either"):
        amp.initialize(net, (adam,), opt_level="O2", verbosity=0)
    with pytest.raises(TypeError, match="models must be either"):
        amp.initialize((net,), adam, opt_level="O2", verbosity=0)


def test_an_optimizer_is_initialized_once_and_takes_single_and_half_only() -> None:
    net, optimizer = _initialize(opt_level="O1")
    with pytest.raises(RuntimeError, match="should only be passed through"):
        amp.initialize(net, optimizer, opt_level="O1", verbosity=0)
    _, optimizer = _initialize(SmallNet(8).bfloat16().npu(), opt_level="O1")
    loss = torch.ones((), device="npu")
    with pytest.raises(TypeError, match="BFloat16Tensor"), amp.scale_loss(loss, optimizer):
        pass


def test_closures_and_arguments_of_zero_grad_are_refused() -> None:
    _, optimizer = _initialize(opt_level="O2")
    with pytest.raises(RuntimeError, match="closure"):
        optimizer.step(lambda: None)
    with pytest.raises(TypeError):
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Adam", {"lr": -1.0}, "Invalid learning rate"),
        ("Adam", {"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1"),
        ("Adam", {"weight_decay": -1.0}, "Invalid weight_decay value"),
        ("SGD", {"lr": 1.0, "momentum": -0.1}, "Invalid momentum value"),
        ("SGD", {"lr": 1.0, "nesterov": True}, "Nesterov momentum requires"),
        ("Adadelta", {"rho": 1.5}, "Invalid rho value"),
        ("Lamb", {"eps": -1.0}, "Invalid epsilon value"),
    ],
)
def test_fused_optimizers_refuse(name: str, options: dict, message: str) -> None:
    weight = [nn.Parameter(torch.ones(2, device="npu"))]
    with pytest.raises(ValueError, match=message):
        getattr(apex.optimizers, f"NpuFused{name}")(weight, **options)


def test_fused_optimizers_need_amp_and_gradients_that_stay() -> None:
    net = SmallNet(8).npu()
    with pytest.raises(RuntimeError, match="should be used with AMP"):
        apex.optimizers.NpuFusedAdam(net.parameters()).step()
    _initialize(net, apex.optimizers.NpuFusedAdam, opt_level="O1")
    with pytest.raises(AssertionError, match="set_to_none"):
        net.zero_grad(set_to_none=True)


def test_memory_that_moved_after_it_was_combined() -> None:
    net, adam = _initialize(opt_level="O1", optimizer=apex.optimizers.NpuFusedAdam)
    loss = net(batch()[0].npu()).float().sum()
    with amp.scale_loss(loss, adam) as scaled_loss:
        scaled_loss.backward()
    adam.step()
    net.conv1.weight.grad = net.conv1.weight.grad.clone()
    with pytest.raises(RuntimeError, match="re-allocated"):
        adam.step()
