"""Chooses the simulation for this run, and says at the end which one it was."""

import os
import sys
from pathlib import Path

import pytest
from dataset_files import save_dataset

sys.path.insert(0, str(Path(__file__).parent))

from simulator import Simulator

_chosen = pytest.StashKey[Simulator]()


@pytest.fixture(scope="session")
def npu(request: pytest.FixtureRequest) -> Simulator:
    """The simulated NPU: the real torch_npu where it can be had, which CI demands."""
    simulator = Simulator.best()
    request.config.stash[_chosen] = simulator
    if simulator.way != "real" and os.environ.get("CI") == "true":
        pytest.fail(f"CI must run the real torch_npu, not {simulator}")
    return simulator


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
    """A dataset without images to crop from, so that every recipe is quick; its name is hostile."""
    return save_dataset(tmp_path_factory.mktemp("data 'set' $(exit 3)"), 0, 2)


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Say which simulation the NPU tests used."""
    if _chosen in config.stash:
        terminalreporter.write_line(f"NPU tests ran on: {config.stash[_chosen]}")
