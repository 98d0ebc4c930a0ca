"""Options that several commands have alike. Imports nothing heavy, as --help is to be quick."""

from collections.abc import Callable


def add_device(add_argument: Callable) -> None:
    """Add --device to a parser, or to a group of one, by its `add_argument`."""
    add_argument(
        "--device",
        choices=("auto", "npu", "cuda", "cpu"),
        default="auto",
        help="auto: NPU, then CUDA, then CPU (default: %(default)s)",
    )
