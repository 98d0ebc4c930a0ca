"""Chooses the simulation for this run, and says at the end which one it was."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from simulator import Simulator

_chosen = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def npu(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    """The simulated NPU: the real torch_npu where it can be had, which CI demands."""
    simulator = Simulator.best()
    request.config.stash[_chosen] = str(simulator)
    if hasattr(request.config, "workeroutput"):  # a process of pytest-xdist, which prints nothing
        request.config.workeroutput["simulator"] = str(simulator)
    if simulator.way != "real" and os.environ.get("CI") == "true":
        pytest.fail(f"CI must run the real torch_npu, not {simulator}")
    yield simulator
    simulator.close()


@pytest.fixture(scope="session", params=["real", "pure"])
def each_npu(request: pytest.FixtureRequest, npu: Simulator) -> Simulator:
    """Both simulations in turn, for the tests of the simulations themselves."""
    if request.param == npu.way:
        return npu
    if request.param == "real":
        pytest.skip(f"no real torch_npu here: {npu.reason}")
    return Simulator("pure", "tested beside the real torch_npu")


@pytest.fixture(scope="session")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset without images to crop from, as steps are slow here; its name is hostile.

    How near half precision is to fp32, and when a scale overflows, depends on what it holds.
    """
    folder = tmp_path_factory.mktemp("data 'set' $(exit 3)")
    rng = np.random.default_rng(3)
    hr = np.kron(rng.uniform(40, 220, (44, 11, 11)), np.ones((3, 3))).astype(np.float32)
    lr = (hr + np.roll(hr, 1, 1) + np.roll(hr, 1, 2)) / 3
    for name in ("train", "val"):
        (folder / name).mkdir()
    with h5py.File(folder / "train/T91_x3.h5", "w") as file:
        file["lr"], file["hr"] = lr, hr
    with h5py.File(folder / "val/Set5_x3.h5", "w") as file:
        for i in range(2):
            file[f"lr/{i}"], file[f"hr/{i}"] = lr[i], hr[i]
    return folder


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """Take the name of the simulation from a process of pytest-xdist that ends."""
    if "simulator" in getattr(node, "workeroutput", {}):
        node.config.stash[_chosen] = node.workeroutput["simulator"]


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Say which simulation the NPU tests used."""
    if _chosen in config.stash:
        terminalreporter.write_line(f"NPU tests ran on: {config.stash[_chosen]}")
