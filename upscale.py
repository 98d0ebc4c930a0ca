"""Enlarge pictures: photographs and drawings, in colour, of any size.

    python upscale.py photo.jpg --scale 3 --output enlarged
    python upscale.py album/ scan.png --scale 2 --output enlarged --recursive --self-ensemble
    python upscale.py - --output - < photo.jpg > enlarged.jpg
    python upscale.py --serve

The result of photo.jpg is enlarged/photo_x3.jpg. Luminance goes through the network, colour and
transparency are bicubic; EXIF, colour profile, texts and 16 bits a channel are kept, and what
cannot be is told. Reads PNG, JPEG, WebP, TIFF, BMP, AVIF, GIF (saved as PNG), and HEIC where
pillow-heif is installed; of a folder the pictures directly in it, with --recursive those in its
folders, too. Results that are there are skipped. Precision `auto` is bf16 where the CPU computes in
it, but fp32 for 16-bit pictures.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
import runtime  # noqa: F401 - ends here on a Python that is too old

# isort: split
import argparse
from collections.abc import Sequence

from imaging.album import STREAM, PathOrStream, Plan, plan, unwritable
from imaging.kinds import PictureError
from runtime.errors import (
    RunError,
    UserError,
    check_memory_limit,
    end_at_signals,
    printable,
    run_main,
)
from runtime.numbers import COUNT, number
from runtime.options import Parser, add_device, path

SCALE = number(int, 2)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("pictures", nargs="*", type=path_or_stream, help="files, folders, or -")
    parser.add_argument("--scale", type=SCALE, help="enlargement factor (default: 3)")
    parser.add_argument(
        "--output", type=path_or_stream, metavar="DIR", help="folder for the results, or -"
    )
    parser.add_argument("--suffix", help="of a result's name (default: _x3, by the scale)")
    parser.add_argument("--recursive", action="store_true", help="enter folders in folders")
    parser.add_argument("--weights", type=Path, help="state dict (default: the shipped one)")
    parser.add_argument("--self-ensemble", action="store_true", help="mean over flips, rotations")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument("--jobs", type=COUNT, help="pictures at a time (default: 1)")
    add_device(parser.add_argument)
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        default="auto",
        help="bf16: of the second layer; auto: that where the CPU computes in it",
    )
    parser.add_argument("--serve", action="store_true", help="open a page to try it, locally")
    parser.add_argument(
        "--port",
        type=number(int, 0, at_most=65535),
        help="of the page (default: 8765)",
    )
    args = parser.parse_args(argv)
    if args.serve == bool(args.pictures):
        parser.error("name pictures or folders, or --serve for the page (not both)")
    unused = [f"--{name}" for name in ("output", "suffix", "recursive", "force", "jobs")
              if getattr(args, name) not in (None, False)]  # fmt: skip
    if args.serve and unused:
        parser.error(f"{', '.join(unused)} is for pictures that are named, not for --serve")
    if args.serve and args.scale and not args.weights:
        parser.error("--scale with --serve is that of --weights; without, the page offers all")
    if args.port is not None and not args.serve:
        parser.error("--port is that of the page; add --serve")
    args.scale, args.jobs = args.scale or 3, args.jobs or 1
    args.port = 8765 if args.port is None else args.port
    if args.pictures and not args.output:
        parser.error("--output DIR: say where the results go")
    if STREAM in args.pictures and not sys.stdin:  # as a service may start it
        parser.error("-: standard input is closed")
    if args.output == STREAM and not sys.stdout:
        parser.error("--output -: standard output is closed")
    if args.output == STREAM and sys.stdout.isatty():
        parser.error("--output -: standard output is a terminal; redirect it to a file")
    if args.suffix is None:
        args.suffix = f"_x{args.scale}"
    if Path(f"a{args.suffix}").name != f"a{args.suffix}":
        parser.error(f"--suffix {args.suffix}: expected a part of a file's name")
    return args


def path_or_stream(text: str) -> PathOrStream:
    """Return a path, or STREAM as it is; ./- is a file."""
    return STREAM if text == STREAM else path(text)


def prepared(args: argparse.Namespace, piped: bytes) -> Plan:
    """Plan the work and tell what is left aside; it ends here if nothing can be written."""
    why = "" if args.output == STREAM else unwritable(args.output)
    if why:
        raise UserError(f"--output {args.output}: {why}")
    options = {"force": args.force, "recursive": args.recursive, "piped": piped}
    try:
        made = plan(args.pictures, args.output, args.suffix, **options)
    except PictureError as error:
        raise UserError(error) from None
    for note in made.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    found = [*made.folders.items(), *made.refused.items()]
    faults = [f"{source}: {why}" for source, why in found]
    if len(faults) == 1 and not made.work:
        raise RunError(faults[0])
    for fault in faults:
        print(f"error: {printable(fault)}", file=sys.stderr)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Enlarge the pictures, or serve the page; return the exit status."""
    args = parse_args(argv)
    piped = sys.stdin.buffer.read() if STREAM in args.pictures else b""
    made = Plan() if args.serve else prepared(args, piped)
    if made.work or args.serve:
        run(args, made, piped)
    elif made.refused:
        count = len(made.refused)
        raise RunError(f"{count} of {count} pictures could not be enlarged, see above")
    return RunError.exit_status if made.folders else 0


def run(args: argparse.Namespace, made: Plan, piped: bytes) -> None:
    """Load what is needed, then do it."""
    check_memory_limit()
    from inference.upscaler import Upscaler, enlarge_all
    from inference.weights import SHIPPED, shipped_weights
    from runtime.device import choose_device

    device = choose_device(args.device).value
    if args.precision == "bf16" and device.type != "cpu":
        raise UserError(
            f"--precision bf16 is for CPUs, and {device} computes in fp32; leave it out"
        )

    def load(scale: int) -> Upscaler:
        weights = args.weights or shipped_weights(scale)
        return Upscaler(weights, scale, device, args.precision, args.self_ensemble)

    if args.serve:
        from serve.app import serve

        shipped = [scale for scale in (2, 3, 4) if (SHIPPED / f"srcnn_x{scale}.pth").is_file()]
        scales = shipped if shipped and not args.weights else [args.scale]
        serve({scale: load(scale) for scale in scales}, args.port)
        return
    enlarge_all(made, load(args.scale), args.jobs, piped)


if __name__ == "__main__":
    end_at_signals()
    sys.exit(run_main(main))
