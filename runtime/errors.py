"""How a command ends: one line for the user's mistakes, never a traceback."""

import io
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

PIPE_CLOSED = 128 + signal.SIGPIPE  # as a shell reports it
ENDS = {128 + signum: signum for signum in (signal.SIGTERM, signal.SIGHUP)}  # and these
PYTORCH_ALONE = 700 * 2**20  # bytes of address space; with less, its libraries abort as they load
MORE_MEMORY = "raise its limit, or lower --batch-size, --memory-share or --jobs, where it has them"
NO_MEMORY = (  # how libraries say it
    "ALLOCATION_FAILED",
    "ALLOC_FAILED",
    "annot allocate",
    "can't allocate memory",
    "can't start new thread",
    "could not create a primitive",
    "failed to map segment",
    "out of memory",
)


class UserError(Exception):
    """Wrong input: the message says what is wrong, where, and what to do about it."""

    exit_status = 2


class RunError(UserError):
    """The input was fine, the run failed: a loss that overflowed, a full disk."""

    exit_status = 1


def run_main(main: Callable[[], int | None]) -> int:
    """Call `main` and return the exit status of the process.

    A UserError becomes one line `error: …` on standard error, and so do memory that runs out and a
    disk that is full under standard output; Ctrl-C becomes status 130. A stream whose reader is
    gone ends the process without a word. What the streams' encoding lacks is printed escaped. A
    line is written at once and whole, as a log may be that of several processes, and read by
    programs. Messages go nowhere where standard error is closed. Other exceptions are bugs and keep
    their traceback.
    """
    if not sys.stderr:  # print would take standard output for it
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - to the process's end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True, write_through=False)
    dropped = sys.unraisablehook
    sys.unraisablehook = partial(_not_signals, dropped)
    try:
        try:
            return _status(main)
        finally:
            sys.unraisablehook = dropped
            print(end="", flush=True)  # here it can still be caught that nobody reads it
    except BrokenPipeError:
        _print_into_nothing(1, 2)  # what Python still flushes as it ends
        return PIPE_CLOSED
    except OSError as error:
        try:
            print(flush=True)
        except OSError:
            _print_into_nothing(1)
        else:
            raise  # it is another file's
        with suppress(OSError):
            print(f"error: cannot write standard output: {error.strerror}", file=sys.stderr)
        return RunError.exit_status


def end_at_signals() -> None:
    """Let SIGTERM and, without nohup, SIGHUP end the process as Ctrl-C does.

    What is temporary or half-written goes.
    """
    for signum in set(ending_signals()) - {signal.SIGINT}:
        signal.signal(signum, _end)


def ending_signals() -> list[signal.Signals]:
    """Return the signals that ask a command to end: SIGTERM, SIGINT and, without nohup, SIGHUP."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as nohup has it
    return [signal.SIGTERM, signal.SIGINT] + ([] if ignored else [signal.SIGHUP])


def _end(signum: int, _frame: object) -> None:
    leave_terminal()
    sys.exit(128 + signum)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Let the signals that end a command wait for a block's end, within which it must not be ended.

    Only for the main thread.
    """
    waiting: list[int] = []
    before = {
        signum: signal.signal(signum, lambda number, _: waiting.append(number))
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if callable(signal.getsignal(signum))
    }
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if waiting:
            signal.raise_signal(waiting[0])


def leave_terminal() -> None:
    """Print into nothing from now on where the terminal that was printed on is gone."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            _print_into_nothing(descriptor)


def _print_into_nothing(*descriptors: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)


def _not_signals(dropped: Callable, unraisable: "sys.UnraisableHookArgs") -> None:
    """Send a signal that ends again where Python dropped its exception: in __del__, say."""
    status = getattr(unraisable.exc_value, "code", 0)
    sent = signal.SIGINT if unraisable.exc_type is KeyboardInterrupt else ENDS.get(status)
    if sent:  # not from here: Python would drop it again
        threading.Timer(0.01, os.kill, (os.getpid(), sent)).start()
    else:
        dropped(unraisable)


def _status(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        reason = lack_of_memory(error)
        if not reason:
            raise
        lacking = "memory, or processes and threads (ulimit -u)" if "thread" in reason else "memory"
        print(f"error: not enough {lacking} ({printable(reason)}); {MORE_MEMORY}", file=sys.stderr)
        return RunError.exit_status


def lack_of_memory(error: Exception) -> str:
    """Return the line that tells that memory ran out; nothing for an error of another kind."""
    lines = str(error).strip().splitlines()  # a worker's error has its traceback above that line
    if isinstance(error, MemoryError):
        return lines[-1] if lines else "none left"
    return next((line for line in lines if any(word in line for word in NO_MEMORY)), "")


def first_line(error: BaseException) -> str:
    """Return what an exception says first, or is; libraries go on over many lines."""
    text = str(getattr(error, "strerror", None) or error).strip()
    return text.partition("\n")[0] or type(error).__name__


def check_memory_limit() -> None:
    """Fail while that is still possible in one line where PyTorch has no room to load.

    Raises:
        RunError: `ulimit -v` is lower than what its libraries take.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if 0 <= limit < PYTORCH_ALONE:
        raise RunError(
            f"not enough memory: this process may take {limit / 1e6:.0f} MB (ulimit -v), "
            f"PyTorch alone takes {PYTORCH_ALONE / 1e6:.0f}; raise the limit"
        )


def printable(value: object) -> str:
    """Return `value` as text on one line: line breaks and other control characters are escaped.

    Logs are read by programs, and a file's name may hold anything.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)
    )
