"""What the simulated card did in this process, written as JSON when the process ends.

The file is ``$NPU_SIM_RECORD/<pid>.json``; without that variable nothing is written. Tests assert
on it, so that a run which quietly stayed on the CPU cannot pass.
"""

import atexit
import json
import os
import sys
from collections import Counter
from pathlib import Path

kernel_calls: Counter[str] = Counter()
"""Name of an aten overload → how often the card executed it."""

collective_calls: Counter[str] = Counter()
"""Name of an HCCL collective → how often this rank took part in it."""

apex_initialize: list[dict] = []
"""The options of every apex.amp.initialize call, in order."""


def _write() -> None:
    folder = os.environ.get("NPU_SIM_RECORD")
    if not folder or not Path(folder).is_dir():
        return
    report = {
        "argv": sys.argv,
        "rank": os.environ.get("RANK"),  # none in the launcher
        "kernel_calls": kernel_calls,
        "collective_calls": collective_calls,
        "apex_initialize": apex_initialize,
    }
    Path(folder, f"{os.getpid()}.json").write_text(json.dumps(report), encoding="utf-8")


atexit.register(_write)
