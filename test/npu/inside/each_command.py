"""Runs several command lines of train.py, each in a fork of this process, which has torch loaded.

Reads their arguments, a list of lists, as JSON from the file that is named; prints for each a line
of JSON with exit status, stdout and stderr.
"""

import json
import os
import runpy
import sys
import tempfile
from pathlib import Path

import torch  # noqa: F401 - what takes long, once for all
from simnpu import record


def _run(script: str, words: list[str], folder: Path) -> dict:
    child = os.fork()
    if not child:
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
        sys.argv = [script, *words]
        status = 1
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        record._write()
        sys.stdout.flush()
        os._exit(status if isinstance(status, int) else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    output = {name: (folder / name).read_text() for name in ("stdout", "stderr")}
    return {"returncode": status, **output}


script, commands = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
sys.path.insert(0, str(Path(script).parent))
with tempfile.TemporaryDirectory() as folder:
    for words in commands:
        print(json.dumps(_run(script, words, Path(folder))), flush=True)
