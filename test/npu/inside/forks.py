"""Runs Python scripts, each in a fork of this process, which has loaded what takes long.

Reads a line of JSON for each from standard input: script and arguments, environment, working
directory, files for stdout and stderr. Answers with a line that holds the exit status.
"""

import json
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import matplotlib.backends.backend_agg  # noqa: F401
import torch._dynamo  # noqa: F401 - torch_npu's optimizers load it
from simnpu import record


def _run(words: list[str], env: dict[str, str], cwd: str, outputs: list[str]) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for stream, path in ((1, outputs[0]), (2, outputs[1])):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
    status: object = 1
    try:
        runpy.run_path(words[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code or 0
        if isinstance(status, str):
            print(status, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    record._write()
    sys.stdout.flush()
    os._exit(status if isinstance(status, int) else 1)


# Else, from Python 3.14 on, tqdm's lock is told as leaked when a fork ends without Python's end.
multiprocessing.set_start_method("fork")
for line in sys.stdin:
    print(_run(**json.loads(line)), flush=True)
