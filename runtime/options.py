"""Options that several commands have alike. Imports nothing heavy, as --help is to be quick."""

from collections.abc import Callable

DEVICES = ("auto", "npu", "cuda", "cpu")


def add_device(add_argument: Callable) -> None:
    """Add --device to a parser, or to a group of one, by its `add_argument`."""
    add_argument(
        "--device",
        choices=DEVICES,
        default=DEVICES[0],
        help="auto: NPU, then CUDA, then CPU (default: %(default)s)",
    )
