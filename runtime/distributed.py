"""Several processes, one a card: torchrun's variables, or those of the Ascend platform."""

import contextlib
import gc
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from runtime.device import COLLECTIVES, synchronize
from runtime.errors import RunError, UserError, first_line
from runtime.numbers import from_environment
from runtime.rank_table import file_of, read_hosts

T = TypeVar("T")

# Of one collective: the first compilation on an NPU may take long. torchrun ends the others of a
# dead rank sooner.
TIMEOUT = timedelta(minutes=30)
TELL_AFTER = 5.0  # seconds of waiting for the others


class Launch(NamedTuple):
    """What a launcher tells. `local_rank` is None where the platform names the card itself."""

    rank: int = 0
    size: int = 1
    local_rank: int | None = None


class World(NamedTuple):
    """The processes of a run, and the device of this one."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def synchronize(self) -> None:
        """Wait until the device of this process has done what it was given."""
        synchronize(self.device)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Average the gradients over the processes during the backward pass."""
        if self.size == 1:
            return model
        ids = None if self.device.type == "cpu" else [self.device.index]
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def highest(self, value: int) -> int:
        """Return the highest of the processes' values; all get the same answer."""
        return self._agree(value, dist.ReduceOp.MAX)

    def lowest(self, value: int) -> int:
        """Return the lowest of the processes' values, to 7 digits; all get the same answer."""
        return self._agree(value, dist.ReduceOp.MIN)

    def same(self, text: str) -> bool:
        """Tell whether all processes have the same text."""
        digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:3], "big")  # fits in fp32
        return self.lowest(digest) == self.highest(digest)

    def by_main(self, act: Callable[[], T]) -> T | None:
        """Return what rank 0 alone does, None on the others; where it fails, all end.

        Raises:
            UserError: what `act` raised.
        """
        result, failure = None, None
        if self.is_main:
            try:
                result = act()
            except UserError as error:
                failure = error
        failed = self.highest(failure is not None)
        if failure:
            raise failure
        if failed:
            raise RunError("the first process of the training ended, see its log")
        return result

    def _agree(self, value: int, operation: dist.ReduceOp.RedOpType) -> int:
        if self.size == 1:
            return value
        values = torch.tensor(float(value), device=self.device)
        dist.all_reduce(values, operation)
        return int(values)


def read_environment() -> Launch:
    """Find out how many processes there are and which this one is.

    torchrun's RANK, WORLD_SIZE and LOCAL_RANK win. Where they are absent, RANK_ID and RANK_SIZE
    of an Ascend launch are taken: the platform starts one process a card, which
    ASCEND_DEVICE_ID names. MASTER_ADDR, VC_WORKER_HOSTS or the table in RANK_TABLE_FILE, the
    first of them that is set, tells where rank 0 is; MA_NUM_GPUS, or else the hosts' number, how
    many processes are on a machine. MASTER_ADDR, MASTER_PORT and LOCAL_WORLD_SIZE are then set as
    torchrun would. A RANK_TABLE_FILE that is not used is removed, as torch_npu would use it.

    Raises:
        UserError: variables that contradict each other, or a rank table that tells no host.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        os.environ.pop("RANK_TABLE_FILE", None)
        rank, size = from_environment("RANK") or 0, from_environment("WORLD_SIZE") or 1
        _check_rank("RANK", rank, "WORLD_SIZE", size)
        _check_master("WORLD_SIZE", size)
        return Launch(rank, size, from_environment("LOCAL_RANK"))
    rank_id, rank_size = (from_environment(name) for name in ("RANK_ID", "RANK_SIZE"))
    if rank_size is None or rank_size == 1:
        return Launch()
    if rank_id is None:
        raise UserError(
            f"RANK_ID is not set, which RANK_SIZE={rank_size} needs; to train in one process, "
            f"unset RANK_SIZE"
        )
    _check_rank("RANK_ID", rank_id, "RANK_SIZE", rank_size)
    hosts = _hosts()
    machines = from_environment("MA_NUM_HOSTS") or len(hosts)
    cards = from_environment("MA_NUM_GPUS") or -(-rank_size // machines)
    told = {"MASTER_ADDR": hosts[0], "MASTER_PORT": "29500", "LOCAL_WORLD_SIZE": str(cards)}
    for name, value in told.items():
        os.environ[name] = os.environ.get(name) or value
    _check_master("RANK_SIZE", rank_size)
    return Launch(rank_id, rank_size)


@contextlib.contextmanager
def joined(launch: Launch, device: torch.device) -> Iterator[World]:
    """Join the other processes: over HCCL on NPUs, NCCL on GPUs, gloo on CPUs.

    Rank 0 alone prints on standard output.

    Raises:
        RunError: they cannot meet.
    """
    world = World(device, launch.rank, launch.size)
    if world.size == 1:
        yield world
        return
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        with _waiting(f"waiting for the other processes at {place}, {world.size} in all"):
            dist.init_process_group(
                COLLECTIVES[device.type], rank=world.rank, world_size=world.size, timeout=TIMEOUT
            )
    except RuntimeError as error:
        raise RunError(
            f"cannot meet the other processes at {place} ({first_line(error)}); "
            f"is another training using this port? MASTER_PORT names one"
        ) from None
    ended = False
    try:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            silent = contextlib.redirect_stdout(nowhere)
            with contextlib.nullcontext() if world.is_main else silent:
                yield world
        ended = True
    finally:
        if ended or device.type != "cuda":
            gc.collect()  # DistributedDataParallel refers to itself; while it lives, gloo's threads
            dist.destroy_process_group()  # do, and those that outlive Python abort the process
        elif (everyone := dist.group.WORLD) and hasattr(everyone, "abort"):
            everyone.abort()  # destroying would wait for the others, who wait for this one


@contextlib.contextmanager
def _waiting(what: str) -> Iterator[None]:
    """Say what takes long, and let Ctrl-C end it: Python hears of signals only afterwards."""
    telling = threading.Timer(TELL_AFTER, print, [what], {"file": sys.stderr})
    telling.daemon = True
    telling.start()
    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        telling.cancel()
        signal.signal(signal.SIGINT, before)


def _check_rank(name: str, rank: int, size_name: str, size: int) -> None:
    """Raise UserError for one that no process has: the others would wait for half an hour."""
    if rank >= size:
        raise UserError(f"{name}={rank} with {size_name}={size}; ranks count from 0")


def _check_master(size_name: str, size: int) -> None:
    """Raise UserError where several processes cannot meet."""
    if size == 1:
        return
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UserError(f"{name} is not set, which {size_name}={size} needs")
    port = from_environment("MASTER_PORT") or 0
    if not 1 <= port <= 65535:
        raise UserError(f"MASTER_PORT={port} is no port; expected 1 to 65535")


def _hosts() -> list[str]:
    """Return the addresses of the machines as far as they are told, that of rank 0 first."""
    table = os.environ.pop("RANK_TABLE_FILE", None)
    if address := os.environ.get("MASTER_ADDR"):
        return [address]
    if names := os.environ.get("VC_WORKER_HOSTS"):
        return names.split(",")
    if not table:
        return ["127.0.0.1"]
    os.environ["RANK_TABLE_FILE"] = str(file_of(Path(table)))  # HCCL reads it, too
    return read_hosts(Path(table))
