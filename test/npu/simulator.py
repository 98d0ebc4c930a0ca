"""Runs command lines on a simulated NPU, each in processes of its own, or in a fork of one.

Two simulations carry the same tests:

- ``real``: the real torch_npu wheel over a fake driver (``fake_cann/``);
- ``pure``: a device in pure Python (``pure/``), where the wheel cannot be had.

Both change torch for the whole process, so nothing here imports torch: the simulation reaches the
child processes, and their children (torchrun, DataLoader workers), through the environment.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from commands import HANG, ROOT
from fake_cann import build

HERE = Path(__file__).resolve().parent

_FOREIGN = ("ASCEND_", "NPU_", "HCCL_", "RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_")


@dataclass
class Result:
    """What a command line on the simulated NPU left behind.

    ``kernel_calls``, ``collective_calls`` and ``apex_initialize`` are those of all its processes
    that ended by themselves; ``processes`` has them one by one.
    """

    returncode: int
    stdout: str
    stderr: str
    kernel_calls: Counter[str] = field(default_factory=Counter)
    collective_calls: Counter[str] = field(default_factory=Counter)
    apex_initialize: list[dict] = field(default_factory=list)
    processes: list[dict] = field(default_factory=list)

    @property
    def host_waits(self) -> int:
        """How often a process waited for its card: for a value, a copy or a size."""
        return self.kernel_calls["host wait"]

    def read(self, records: Path) -> None:
        """Take what its processes counted."""
        for path in sorted(records.glob("*.json")):
            process = json.loads(path.read_text(encoding="utf-8"))
            self.processes.append(process)
            self.kernel_calls.update(process["kernel_calls"])
            self.collective_calls.update(process["collective_calls"])
            self.apex_initialize.extend(process["apex_initialize"])

    def checked(self) -> "Result":
        """The result itself, if the command succeeded."""
        if self.returncode:
            raise AssertionError(f"exit status {self.returncode}\n{self.stdout}\n{self.stderr}")
        return self


class Simulator:
    """One of the two simulations: ``way`` is "real" or "pure", ``reason`` why the latter."""

    def __init__(self, way: str, reason: str = "") -> None:
        self.way = way
        self.reason = reason
        self._forks: dict[tuple, subprocess.Popen] = {}

    @classmethod
    def best(cls) -> "Simulator":
        """The real torch_npu where it can be had; ``NPU_SIM_WAY=pure`` chooses the other."""
        if os.environ.get("NPU_SIM_WAY") == "pure":
            return cls("pure", "NPU_SIM_WAY=pure")
        try:
            build.build()
        except build.Unavailable as error:
            return cls("pure", str(error))
        return cls("real")

    def __str__(self) -> str:
        if self.way == "real":
            return f"the real torch_npu {build.required_version()} over a fake driver"
        return f"the pure-Python device ({self.reason})"

    def run(
        self,
        command: Sequence[str | Path],
        *,
        devices: int = 1,
        apex: bool = True,
        soc: str = "Ascend910B1",
        cwd: Path | None = None,
        timeout: float = HANG,
        **env: str,
    ) -> Result:
        """Run a command line where simulated NPUs are.

        Args:
            command: program and arguments; scripts find this Python as ``python`` and ``python3``.
            devices: number of cards.
            apex: whether the stand-in for Ascend's apex can be imported.
            soc: name of the chip.
            cwd: working directory; the repository's root when not given.
            timeout: seconds after which the command and all its children are ended.
            **env: further environment variables.
        """
        with tempfile.TemporaryDirectory() as records:
            environment = self.environment(devices=devices, apex=apex, soc=soc)
            environment |= {"NPU_SIM_RECORD": records, **env}
            result = _run([str(part) for part in command], environment, cwd or ROOT, timeout)
            result.read(Path(records))
        return result

    def fork(
        self,
        *words: str | Path,
        devices: int = 1,
        apex: bool = True,
        soc: str = "Ascend910B1",
        **env: str,
    ) -> Result:
        """Run a Python script as `run` does, in a fork of a process that has loaded torch.

        That saves two thirds of the time. What a script does before it loads torch has no effect,
        and what Python does at the end of a process is left out.

        Args:
            words: the script and its arguments.
            devices: number of cards.
            apex: whether the stand-in for Ascend's apex can be imported.
            soc: name of the chip.
            **env: further environment variables.
        """
        environment = self.environment(devices=devices, apex=apex, soc=soc)
        parent = self._parent((devices, apex, soc), environment)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            outputs = [str(folder / "stdout"), str(folder / "stderr")]
            environment |= {"NPU_SIM_RECORD": name, **env}
            request = {"words": [str(word) for word in words], "env": environment}
            print(json.dumps(request | {"cwd": str(ROOT), "outputs": outputs}), file=parent.stdin)
            if not select.select([parent.stdout], [], [], HANG)[0]:
                self.close()
                raise AssertionError(f"no answer in {HANG} s: {words}")
            status = parent.stdout.readline()
            if not status:
                raise AssertionError(f"the process to fork from has ended: {words}")
            result = Result(int(status), *(Path(path).read_text() for path in outputs))
            result.read(folder)
        return result

    def _parent(self, key: tuple, environment: dict[str, str]) -> subprocess.Popen:
        if key not in self._forks:
            self._forks[key] = subprocess.Popen(
                [sys.executable, HERE / "inside/forks.py"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
                start_new_session=True,
            )
        return self._forks[key]

    def close(self) -> None:
        """End the processes that were forked from, and all their children."""
        for parent in self._forks.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)
            parent.communicate()
        self._forks.clear()

    def environment(self, *, devices: int, apex: bool, soc: str) -> dict[str, str]:
        """The environment in which torch_npu is importable and finds its cards."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
        env.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)
        env |= {
            "NPU_SIM_WAY": self.way,
            "NPU_SIM_DEVICES": str(devices),
            "NPU_SIM_SOC": soc,
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]]),
        }
        paths = [HERE / "common"]
        if apex:
            paths.append(HERE / "ascend_apex")
        if self.way == "real":
            folder = build.build()
            paths += [HERE / "fake_cann", folder / "site", folder / "cann" / "python"]
            env["LD_LIBRARY_PATH"] = str(folder / "lib")
            env["ASCEND_HOME_PATH"] = str(folder / "cann")
            env["ASCEND_OPP_PATH"] = str(folder / "cann" / "opp")
        else:
            paths += [HERE / "pure", _metadata_of_the_pure_device()]
        env["PYTHONPATH"] = os.pathsep.join(map(str, paths))
        return env


def _metadata_of_the_pure_device() -> Path:
    """A folder with the entry point by which ``import torch`` loads torch_npu, and its version.

    That is none of a release, as the product refuses some of those beside a torch for CUDA.
    """
    version = f"{build.required_version()}.post0"
    folder = build.cache() / f"pure-{version}"
    metadata = folder / f"torch_npu-{version}.dist-info"
    if not metadata.is_dir():
        metadata.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder))
        about = f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {version}\n"
        (draft / "METADATA").write_text(about)
        entry_point = "[torch.backends]\ntorch_npu = torch_npu:_autoload\n"
        (draft / "entry_points.txt").write_text(entry_point)
        try:
            draft.rename(metadata)
        except OSError:  # another process was faster
            shutil.rmtree(draft)
    return folder


def _run(command: list[str], env: dict[str, str], cwd: Path, timeout: float) -> Result:
    with subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            stderr += f"\nended after {timeout} s"
    return Result(process.returncode, stdout, stderr)
