"""Two processes over HCCL's name: collectives, DistributedDataParallel, apex's combine_ddp.

Each rank takes its half of a batch; both ways of averaging gradients must give one process's
weights. torchrun starts this file inside a simulation with two cards.
"""

import os

import torch
import torch.distributed as dist
from nets import SmallNet
from torch import nn

RANK = int(os.environ["LOCAL_RANK"])
CARD = torch.device("npu", RANK)


def _loss(net: nn.Module, rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.rand(4, 1, 9, 9, generator=generator)
    part = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    return nn.functional.mse_loss(net(inputs[part].to(CARD)), 1 - inputs[part].to(CARD))


def _alone() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = SmallNet(8).to(CARD)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        _loss(net).backward()
        optimizer.step()
    return net.state_dict()


def _assert_equal(state: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, weight in _alone().items():
        torch.testing.assert_close(
            state[name].cpu(), weight.cpu(), rtol=0, atol=tolerance, msg=name
        )


def check_collectives() -> None:
    """Sum, gather, objects; what HCCL refuses: the mean, a CPU tensor, gaps, columns first."""
    total = torch.tensor([RANK + 1.0], device=CARD)
    dist.all_reduce(total)
    assert total.item() == 3.0
    gathered = [torch.empty_like(total) for _ in range(2)]
    dist.all_gather(gathered, torch.tensor([float(RANK)], device=CARD))
    assert [tensor.item() for tensor in gathered] == [0.0, 1.0]
    objects = [None, None]
    dist.all_gather_object(objects, {"rank": RANK})
    assert objects == [{"rank": 0}, {"rank": 1}]
    dist.barrier()
    pictures = torch.ones(2, 3, 4, 5, device=CARD)
    dist.all_reduce(pictures.contiguous(memory_format=torch.channels_last))
    square = torch.ones(3, 3, device=CARD)
    refused = (
        ("device type cpu", lambda: dist.all_reduce(torch.ones(1))),
        ("ReduceOp.AVG", lambda: dist.all_reduce(total, op=dist.ReduceOp.AVG)),
        ("must be contiguous", lambda: dist.broadcast(square.T, src=0)),
        ("must be contiguous", lambda: dist.all_reduce(square[:, 1])),
        ("must be contiguous", lambda: dist.all_gather([square.T, square], square)),
    )
    for words, collective in refused:
        try:
            collective()
        except (RuntimeError, ValueError) as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"HCCL's {words} was not heard")


def check_ddp() -> None:
    """DistributedDataParallel gives one process's weights."""
    torch.manual_seed(RANK)
    net = SmallNet(8).to(CARD)
    if RANK == 0:
        torch.manual_seed(0)
        net.load_state_dict(SmallNet(8).state_dict())
    wrapped = nn.parallel.DistributedDataParallel(net, device_ids=[RANK])
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        _loss(wrapped, RANK).backward()
        optimizer.step()
    _assert_equal(net.state_dict(), 1e-6)


def check_combine_ddp() -> None:
    """combine_ddp sends rank 0's weights, averages gradients and refuses a wrapper."""
    import apex  # noqa: PLC0415 - its patches are for this check

    torch.manual_seed(RANK)
    net = SmallNet(8).to(CARD)
    optimizer = apex.optimizers.NpuFusedSGD(net.parameters(), lr=0.1)
    options = {"combine_grad": True, "combine_ddp": True, "loss_scale": 32.0, "verbosity": 0}
    net, optimizer = apex.amp.initialize(net, optimizer, opt_level="O2", **options)
    for _ in range(3):
        loss = _loss(net, RANK)
        optimizer.zero_grad()
        with apex.amp.scale_loss(loss, optimizer) as scaled_loss:
            scaled_loss.backward()
        optimizer.step()
    masters = [master.detach() for master in apex.amp.master_params(optimizer)]
    names = [name for name, _ in net.named_parameters()]
    _assert_equal(dict(zip(names, masters, strict=True)), 2e-4)
    try:
        nn.parallel.DistributedDataParallel(net, device_ids=[RANK])
    except RuntimeError as error:
        assert "do not wrap" in str(error)
    else:
        raise AssertionError("a model under combine_ddp was wrapped")


torch.npu.set_device(CARD)
dist.init_process_group("hccl")
assert dist.get_backend() == "hccl"
check_collectives()
check_ddp()
check_combine_ddp()
dist.destroy_process_group()
