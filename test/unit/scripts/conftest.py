"""A copy of the scripts around a stand-in for train.py, in folders with hostile names."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import HANG, WITHOUT_OVERRIDE, wait_until

ROOT = Path(__file__).resolve().parents[3]
FAKE = Path(__file__).parent / "fake_train.py"
HOSTILE = "-a $(touch hacked) 'q' \"d\" `touch hacked`;\nb"
ENTRIES = ("modelarts_entry_acc.py", "modelarts_entry_perf.py")
MODULES = (
    *ENTRIES,
    *(f"ascend/{name}.py" for name in ("__init__", "modelarts")),
    *(f"runtime/{name}.py" for name in ("__init__", "errors", "files", "numbers", "options")),
)
FINAL = re.compile(
    r"^------------------ Final result ------------------\n"
    r"Final Performance images/sec : (\d+\.\d{2})\n"
    r"Final Performance sec/step : (\d+\.\d{5})\n"
    r"E2E Training Duration sec : (\d+)\n"
    r"Final Train Accuracy : (\d+\.\d{2})\n\Z",
    re.MULTILINE,
)


class Repository:
    """A copy of the scripts in a folder with a hostile name, and of what they would start."""

    hostile = HOSTILE
    fake = FAKE

    def __init__(self, folder: Path):
        self.root = folder / f"re po {HOSTILE}"
        self.data = folder / f"data {HOSTILE}"
        self.elsewhere = folder / "elsewhere"
        self.record = folder / "record"
        for new in (self.root / "test", self.data / "train", self.elsewhere, folder / "home"):
            new.mkdir(parents=True)
        (self.data / "train" / "T91_x3.h5").write_text("12345")
        for script in [*(ROOT / "test").glob("*.sh"), ROOT / "test" / "torchrun.py"]:
            shutil.copy(script, self.root / "test")
        for module in MODULES:
            (self.root / module).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / module, self.root / module)
        for name in ("train.py", "evaluate.py"):
            shutil.copy(FAKE, self.root / name)
        self.wrapper: list[str] = []  # what the commands are started by
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "home"),
            "PYTHON": sys.executable,
            "RECORD": str(self.record),
            "HANG": str(HANG),
        }

    def make_read_only(self) -> None:
        """Let no command write into the repository."""
        self.wrapper = WITHOUT_OVERRIDE
        for folder in [self.root, *(path for path in self.root.rglob("*") if path.is_dir())]:
            folder.chmod(0o555)

    def command(self, script: str, *options: str) -> list[str]:
        """Return the command line of a script with the data path and more options."""
        path = str(self.root / "test" / f"train_{script}.sh")
        return ["bash", path, f"--data_path={self.data}", *options]

    def run(self, script: str, *options: str, **env: str) -> subprocess.CompletedProcess:
        """Run a script to its end, from a working directory that has nothing to do with it."""
        return self.call(self.command(script, *options), **env)

    def call(self, command: list[str], cwd: Path | None = None, **env: str):
        """Run any command in the environment of the tests."""
        return subprocess.run(
            [*self.wrapper, *command],
            cwd=cwd or self.elsewhere,
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=HANG,
            check=False,
        )

    def start(self, command: list[str], waiting: int = 1, **env: str) -> subprocess.Popen:
        """Start a command whose training waits for a signal; return once its processes wait."""
        process = subprocess.Popen(
            ["env", "--default-signal=HUP,INT", *command],  # nohup, a service or & ignores them
            cwd=self.elsewhere,
            env=self.env | {"FAKE": "wait"} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        log = self.output() / "train_0.log"
        wait_until(lambda: log.is_file() and log.read_text().count("waiting") >= waiting, process)
        return process

    def output(self, card: str = "0") -> Path:
        """Return the folder of logs and figures."""
        return self.root / "test" / "output" / card

    def calls(self) -> list[dict]:
        """Return what the stand-in was started with, each time."""
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def final(self, output: str) -> re.Match | None:
        """Return the final block's figures, None when the output does not end with one."""
        return FINAL.search(output)

    def figures(self, case: str) -> dict[str, str]:
        """Read the `Key = value` lines of a finished case of card 0."""
        text = (self.output() / f"{self.root.name}_{case}.log").read_text()
        return dict(re.findall(r"^(\w+) = (.*)$", text, re.MULTILINE))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)
