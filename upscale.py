"""Enlarge pictures: photographs and drawings, in colour, of any size.

    python upscale.py photo.jpg --scale 3 --output enlarged
    python upscale.py album/ scan.png --scale 2 --output enlarged --jobs 4 --self-ensemble
    python upscale.py --serve

The result of photo.jpg is enlarged/photo_x3.jpg. Luminance goes through the network, colour and
transparency are bicubic; EXIF and colour profile are kept. Reads PNG, JPEG, WebP, TIFF, BMP and GIF
(saved as PNG); of a folder, the pictures directly in it. Precision `auto` is bf16 where the CPU
computes in it, but fp32 for 16-bit pictures.
"""

import runtime  # noqa: F401 - ends here on a Python that is too old

# isort: split
import argparse
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from imaging.photo import PictureError, list_pictures, saved_suffix
from runtime.errors import RunError, UserError, run_main
from runtime.numbers import COUNT, NATURAL, number

if TYPE_CHECKING:
    from inference.upscaler import Upscaler

SCALE = number(int, 2)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", nargs="*", type=Path, help="files or folders")
    parser.add_argument(
        "--scale", type=number(int, 2), default=3, help="enlargement factor (default: 3)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--weights", type=Path, help="state dict (default: the shipped one)")
    parser.add_argument("--self-ensemble", action="store_true", help="mean over flips, rotations")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument("--jobs", type=COUNT, default=1, help="pictures at a time (default: 1)")
    parser.add_argument("--device", choices=["auto", "npu", "cuda", "cpu"], default="auto")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--serve", action="store_true", help="open a page to try it, locally")
    parser.add_argument("--port", type=NATURAL, default=8765, help="of the page (default: 8765)")
    args = parser.parse_args(argv)
    if args.serve == bool(args.pictures):
        parser.error("name pictures or folders, or --serve for the page (not both)")
    if args.pictures and not args.output:
        parser.error("--output DIR: say where the results go")
    return args


def plan(pictures: list[Path], output: Path, scale: int) -> dict[Path, Path]:
    """Return the source of each result; of folders, the pictures directly in them."""
    sources = []
    for path in pictures:
        if path.is_dir() and output.resolve() == path.resolve():
            raise UserError(f"--output {output} is the folder of the pictures; name another one")
        sources += list_pictures(path) if path.is_dir() else [path]
    work, originals = {}, {source.resolve() for source in sources}
    for source in sources:
        target = output / f"{source.stem}_x{scale}{saved_suffix(source.name)}"
        if target.resolve() in originals:
            raise UserError(f"{source} would become {target}, which is to be enlarged, too")
        if work.get(target, source).resolve() != source.resolve():
            raise UserError(f"{work[target]} and {source} would both become {target}; rename one")
        work[target] = source
    return work


def enlarge_all(work: dict[Path, Path], upscaler: "Upscaler", jobs: int, force: bool) -> None:
    """Enlarge files side by side; what fails is told at once and counted at the end.

    Raises:
        RunError: some could not be enlarged.
    """
    stopped, start, pixels, failed = threading.Event(), time.perf_counter(), 0, 0
    bar = tqdm(total=0, unit="pixel", unit_scale=True, disable=None)

    def advance(done: int, more: int = 0) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        bar.total += more
        bar.update(done)

    with bar, ThreadPoolExecutor(jobs) as pool:
        try:
            futures = {
                pool.submit(upscaler.enlarge_file, source, target, force, advance): source
                for target, source in work.items()
            }
            for future in as_completed(futures):
                try:
                    size, note = future.result()
                except (PictureError, RunError, MemoryError) as error:
                    failed += 1
                    note = f"error: {futures[future]}: {str(error) or 'not enough memory'}"
                else:
                    pixels += size
                    note = note and f"warning: {futures[future]}: {note}"
                if note:
                    bar.write(note, file=sys.stderr)
        finally:
            stopped.set()  # after an interruption, tiles in work end the others
            pool.shutdown(cancel_futures=True)
    seconds = time.perf_counter() - start
    print(
        f"{len(work) - failed} of {len(work)} pictures enlarged: {pixels / 1e6:.1f} megapixels "
        f"in {seconds:.1f} s, {pixels / 1e6 / seconds:.2f} megapixels/s"
    )
    if failed:
        raise RunError(f"{failed} of {len(work)} pictures could not be enlarged, see above")


def main(argv: Sequence[str] | None = None) -> None:
    """Enlarge the pictures, or serve the page."""
    args = parse_args(argv)
    try:
        work = {} if args.serve else plan(args.pictures, args.output, args.scale)
    except PictureError as error:
        raise UserError(error) from None

    from inference.upscaler import Upscaler
    from inference.weights import SHIPPED, shipped_weights
    from runtime.device import choose_device

    device = choose_device(args.device).value

    def load(scale: int) -> Upscaler:
        weights = args.weights or shipped_weights(scale)
        return Upscaler(weights, scale, device, args.precision, args.self_ensemble)

    if args.serve:
        from serve.app import serve

        shipped = [scale for scale in (2, 3, 4) if (SHIPPED / f"srcnn_x{scale}.pth").is_file()]
        scales = shipped if shipped and not args.weights else [args.scale]
        serve({scale: load(scale) for scale in scales}, args.port)
        return
    enlarge_all(work, load(args.scale), args.jobs, args.force)


if __name__ == "__main__":
    sys.exit(run_main(main))
