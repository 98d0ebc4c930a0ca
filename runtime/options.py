"""Options that several commands have alike. Imports nothing heavy, as --help is to be quick."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose help shows the description as it is written, and whose errors are one line."""

    def __init__(self, description: "str | None", allow_abbrev: bool = True) -> None:
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=allow_abbrev,
        )
        self.register("type", Path, path)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def path(text: str) -> Path:
    """Return a path from the command line; an empty one would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a file or folder")
    return Path(text)


def add_device(add_argument: Callable) -> None:
    """Add --device to a parser, or to a group of one, by its `add_argument`."""
    add_argument(
        "--device",
        choices=("auto", "npu", "cuda", "cpu"),
        default="auto",
        help="auto: NPU, then CUDA, then CPU (default: %(default)s)",
    )
