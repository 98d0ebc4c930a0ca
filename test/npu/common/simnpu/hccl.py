"""The collectives of "hccl" for simulated cards: gloo, on the host's view of the tensors."""

from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import AllgatherOptions

from simnpu import record
from simnpu.host import alias, is_npu


class HcclOverGloo(dist.ProcessGroup):
    """A process group that answers to "hccl", takes NPU tensors only and communicates by gloo.

    Collectives have finished when they return: the host's views need not outlive the call.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    def getBackendName(self) -> str:
        """Name of the backend."""
        return "hccl"

    @property
    def _device_types(self) -> list[torch.device]:
        """Where torch puts the objects of ``all_gather_object`` and its like."""
        return [torch.device("npu")]

    def allreduce(self, tensors: Any, opts: Any = None) -> dist.Work:
        """Reduce to every rank."""
        opts = opts or dist.AllreduceOptions()
        if opts.reduceOp == dist.ReduceOp.AVG:
            raise RuntimeError("Cannot use ReduceOp.AVG with HCCL")
        return self._run("allreduce", tensors, _host(tensors), opts)

    def broadcast(self, tensors: Any, opts: Any = None) -> dist.Work:
        """Send from one rank to all."""
        return self._run("broadcast", tensors, _host(tensors), opts or dist.BroadcastOptions())

    def reduce(self, tensors: Any, opts: Any = None) -> dist.Work:
        """Reduce to one rank."""
        return self._run("reduce", tensors, _host(tensors), opts or dist.ReduceOptions())

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        """Gather to every rank."""
        host = [_host(tensors) for tensors in outputs]
        options = opts or AllgatherOptions()
        return self._run("allgather", outputs, host, _host(inputs), options)

    def _allgather_base(self, output: Any, tensor: Any, opts: Any = None) -> dist.Work:
        options = opts or AllgatherOptions()
        return self._run("_allgather_base", [output], *_host([output, tensor]), options)

    def barrier(self, opts: Any = None) -> dist.Work:
        """Wait for every rank."""
        return self._run("barrier", [], dist.BarrierOptions())

    def _run(self, name: str, result: Any, *args: Any) -> dist.Work:
        record.collective_calls[name] += 1
        getattr(self._gloo, name)(*args).wait()
        future = torch.futures.Future()
        future.set_result(result)
        return torch._C._distributed_c10d._create_work_from_future(future)


def _host(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    for tensor in tensors:
        if not is_npu(tensor):
            raise RuntimeError(f"No backend type associated with device type {tensor.device.type}")
        last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        if not (tensor.is_contiguous() or last):
            raise RuntimeError("Tensors must be contiguous")
    return [alias(tensor) for tensor in tensors]


def register() -> None:
    """Make ``init_process_group("hccl")`` mean this group, also where torch_npu has its own."""
    if "HCCL" in dist.Backend._plugins:
        dist.Backend._plugins["HCCL"] = dist.Backend._BackendPlugin(HcclOverGloo, False)
    else:
        dist.Backend.register_backend("hccl", HcclOverGloo, devices=["npu"])
