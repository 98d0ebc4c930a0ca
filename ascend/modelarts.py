"""A training as ModelArts starts it: options and addresses of the platform, results handed back.

Standard library only, so that a wrong option or address is told before torch is imported.
"""

import argparse
import contextlib
import difflib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from runtime.errors import RunError, UserError, ending_signals, leave_terminal, printable
from runtime.files import check_writable, is_file
from runtime.numbers import from_environment
from runtime.options import Parser

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "test" / "output"
OPTIONS = ("--data_url", "--train_url", "--resume")
SHOWN = 50  # input files in the log


def run(kind: str, argv: Sequence[str] | None = None) -> int:
    """Train by the full or the performance script and return its exit status.

    Dataset and results may be folders or `obs://` / `s3://` addresses. Checkpoints are written
    into a local results folder as they come; the logs follow when the script has ended, however
    it ended, and an address gets its copy of both then.

    Args:
        kind: "full" or "performance", the script in test/.
        argv: the command line; None for that of the process.

    Raises:
        UserError: no such dataset, an address without the platform's moxing package, or one whose
            checkpoint is to be gone on from.
        RunError: results cannot be written, or copying failed after a training that ended well.
    """
    args = parse_args(kind, argv)
    how = "--resume"  # to go on after an interruption
    if is_remote(args.train_url):
        how += f" and, for --train_url, a folder with a copy of {printable(args.train_url)}"
        if args.resume == "auto":
            raise UserError(f"there is no going on in object storage; use {how}")
    script = ROOT / "test" / f"train_{kind}_{'8p' if several_processes() else '1p'}.sh"
    staging = _staging(args)
    data, results = (
        staging / name if staging and is_remote(url) else _folder(url)
        for name, url in (("data_url", args.data_url), ("train_url", args.train_url))
    )
    logs = _log_folder(results)
    try:
        check_writable(results / "x3" / "best.pth")
    except RunError as error:
        raise RunError(f"--train_url: {error}; name a folder that can be written") from None

    say("code folder", ROOT)
    say("work folder", Path.cwd())
    if is_remote(args.data_url):
        say("download", f"{args.data_url} to {data}")
        _copy_parallel(args.data_url, data)
    files = _input_files(data)
    for path in files[:SHOWN]:
        say("input file", path, f"({path.stat().st_size} bytes)")
    if len(files) > SHOWN:
        say("input files", f"{len(files)} in all")

    say("start of the run", script)
    more = ["--", f"--resume={args.resume}"] if args.resume else []
    options = [f"--data_path={data}", f"--output_path={results}", *more]
    status = _run_script(options, script, how)
    say("end of the run", f"exit status {status}")
    try:
        _copy_logs(logs, results)
        if is_remote(args.train_url):
            say("upload", f"{results} to {args.train_url}")
            _copy_parallel(results, args.train_url)
        if staging:
            shutil.rmtree(staging, ignore_errors=True)
    except (OSError, RunError) as error:
        message = f"results not copied, they are in {results} and {logs}: {error}"
        if not status:
            raise RunError(message) from error
        print(f"error: {message}", file=sys.stderr)
    return status


def parse_args(kind: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the platform's options; those that mean nothing here are named in a warning."""
    parser = Parser(
        f"Start test/train_{kind}_1p.sh (8p on several cards) as a ModelArts job.",
        allow_abbrev=False,
    )
    home = "/home/ma-user/modelarts"
    parser.add_argument(
        "--data_url",
        default=f"{home}/inputs/data_url_0",
        help="dataset: folder or obs:// address (default: %(default)s)",
    )
    parser.add_argument(
        "--train_url",
        default=f"{home}/outputs/train_url_0/",
        help="results: folder or obs:// address (default: %(default)s)",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        type=lambda word: word or "auto",  # a platform may put = behind each name
        metavar="FILE",
        help="go on from the newest checkpoint in the folder --train_url, or from that file",
    )
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        names = [word.split("=")[0] for word in unknown if word.startswith("-")] or unknown
        for name in names:
            if meant := difflib.get_close_matches(name, OPTIONS, 1, cutoff=0.85):
                parser.error(f"no option {name}; is {meant[0]} meant?")
        print(f"warning: options ignored: {', '.join(map(repr, names))}", file=sys.stderr)
    return args


def say(what: str, value: object, note: str = "") -> None:
    """Print a line for those who read the job's log; a strange path stays on its line."""
    print(f"[CANN-Modelzoo] {what}: {printable(value)} {note}".rstrip())


def several_processes() -> bool:
    """Tell whether the platform gave this job more than one card or machine."""
    names = ("RANK_SIZE", "MA_NUM_HOSTS", "MA_NUM_GPUS")
    return _by_torchrun() or any(os.environ.get(name, "1") not in ("", "0", "1") for name in names)


def is_remote(url: str) -> bool:
    """Tell an address in object storage from a local folder."""
    return url.startswith(("obs://", "s3://"))


def _folder(path: str) -> Path:
    if not path:
        raise UserError("an empty folder name; check --data_url and --train_url")
    return Path(path).absolute()


def _staging(args: argparse.Namespace) -> Path | None:
    """Make a new local folder for what has an address; say at once when moxing is missing."""
    remote = [url for url in (args.data_url, args.train_url) if is_remote(url)]
    if not remote:
        return None
    _moxing(remote[0])
    place = OUTPUT if _can_write(OUTPUT) else Path(tempfile.gettempdir())
    try:
        return Path(tempfile.mkdtemp(prefix="modelarts_", dir=place))
    except OSError as error:
        raise RunError(f"no local copy can be made in {place}: {error}") from None


def _can_write(folder: Path) -> bool:
    """Tell whether files can be written in a folder, which is made if need be."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK)
    return False


def _moxing(url: str) -> ModuleType:
    try:
        import moxing  # noqa: PLC0415 - only where ModelArts brings it
    except ImportError:
        raise UserError(
            f"{url} needs the moxing package of ModelArts, which is not installed here; "
            f"copy the files and name a local folder"
        ) from None
    return moxing


def _copy_parallel(source: object, target: object) -> None:
    moxing = _moxing(str(source))
    try:
        moxing.file.copy_parallel(str(source), str(target))
    except Exception as error:  # moxing has no common class for its errors
        raise RunError(f"moxing could not copy {source} to {target}: {error}") from error


def _by_torchrun() -> bool:
    """Tell, as test/training.sh does, whether torchrun starts the boot file, once per card."""
    told = [os.environ.get(name) for name in ("RANK", "MASTER_ADDR", "WORLD_SIZE")]
    return all(told) and told[-1] != "1" and os.environ.get("LOCAL_RANK", "").isdecimal()


def _device() -> int:
    if _by_torchrun():
        return from_environment("LOCAL_RANK") or 0
    return from_environment("ASCEND_DEVICE_ID", "NPU_CALCULATE_DEVICE") or 0


def _log_folder(results: Path) -> Path:
    """Return where test/training.sh leaves the logs of this process."""
    output = OUTPUT if _can_write(OUTPUT) else results / "logs"
    node = from_environment("NODE_RANK", "VC_TASK_INDEX", "GROUP_RANK") or 0
    several = several_processes() and node
    return output / (f"{_device()}_node{node}" if several else str(_device()))


def _run_script(options: list[str], script: Path, how_to_go_on: str) -> int:
    """Run the script, pass SIGTERM, SIGINT and SIGHUP on to it, and return its exit status."""
    variables = {
        "MODELARTS_MODEL_PATH": "1",  # the log goes to standard output as well
        "PYTHON": sys.executable,
        "ASCEND_DEVICE_ID": str(_device()),
        "GO_ON_WITH": how_to_go_on,
    }
    child: subprocess.Popen | None = None
    early: list[int] = []  # what came while the script was being started

    def pass_on(number: int, _frame: object) -> None:
        leave_terminal()
        if child:
            child.send_signal(number)
        else:
            early.append(number)

    before = {number: signal.signal(number, pass_on) for number in ending_signals()}
    try:
        child = subprocess.Popen(
            ["bash", str(script), *options],
            env=variables | os.environ,
            start_new_session=True,  # so that Ctrl-C reaches it once, through the handler
        )
        for number in early:
            child.send_signal(number)
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def _input_files(data: Path) -> list[Path]:
    """Return the files of a dataset, HDF5 first; Path.glob finds nothing where it may not look."""
    try:
        train = data / "train"
        there = train in data.iterdir() and not is_file(train)
        kinds = [path.suffix for path in train.iterdir()] if there else []
        files = [path for path in data.rglob("*") if is_file(path)]
        files.sort(key=lambda path: (path.suffix != ".h5", path))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no dataset folder {data}; name one with --data_url") from None
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
    if ".h5" not in kinds:
        raise UserError(f"no train/*.h5 in {data}; prepare.py --data-path fills it")
    return files


def _copy_logs(source: Path, results: Path) -> None:
    """Copy the logs to `results`/logs/CARD; those of an earlier job step aside."""
    target = results / "logs" / source.name
    if source == target or not source.is_dir():
        return
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        for path in filter(Path.is_file, source.iterdir()):  # folders hold results: ckpt/
            try:
                shutil.copy2(path, temporary)
            except OSError as error:
                raise RunError(f"cannot copy {path}: {error.strerror}") from None
        if target.exists():
            target.rename(f"{target}_{time.strftime('%Y%m%d-%H%M%S')}")
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
