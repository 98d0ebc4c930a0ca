"""The same weights again: deterministic algorithms, and what they cost."""

import os

import torch

from runtime.precision import Precision
from runtime.probe import Probe

# cuBLAS reads its own at the first product of matrices, HCCL its own when processes join.
VARIABLES = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "HCCL_DETERMINISTIC": "true"}
STEPS = 10


def be_deterministic() -> None:
    """Let this process use deterministic algorithms only; call it before processes join."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, finds bugs only


def cost(device: torch.device, precision: Precision) -> str:
    """Return what a training step takes with deterministic algorithms and without, as a clause.

    Measured in turns, on 8 patches; the best times count. Leaves deterministic algorithms on.
    """
    probes = {wanted: Probe(device, precision) for wanted in (False, True)}
    for _ in range(STEPS):
        for wanted, probe in probes.items():
            torch.use_deterministic_algorithms(wanted)
            probe.step()
    free, bound = (1000 * probe.seconds for probe in probes.values())
    return f"a step of 8 patches takes {bound:.1f} ms, without it {free:.1f} ms"
