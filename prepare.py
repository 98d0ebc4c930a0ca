"""Make the HDF5 files that training and evaluation read.

    python prepare.py --data-path dataset --download
    python prepare.py --data-path dataset-sample --sample
    python prepare.py --data-path dataset --train-images T91 --eval-images Set5 --scale 2
    python prepare.py --images-dir T91 --output-path train.h5 --patch-size 33 --stride 14 --scale 3
    python prepare.py --images-dir Set5 --output-path eval.h5 --scale 3 --eval

--data-path fills a dataset folder: train/T91_x3.h5 (patches), train/T91_x3_images.h5 (the same
images whole, in five sizes, for the fast recipe) and val/Set5_x3.h5; with --sample the names say
`sample`. Files that are there already are kept. Behind a firewall, the environment variable
SRCNN_IMAGES_URL names another address with the public files.

Training files hold `lr` and `hr`, float32 N×33×33; --eval files hold groups `lr` and `hr` with a
float32 H×W dataset per image, "0", "1", …, and the images' names as the attribute `names`. All is
luminance, 0–255, by the `modelzoo` protocol (imaging/resize.py).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
import runtime  # noqa: F401 - ends here on a Python that is too old

# isort: split
import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial

from imaging.sources import download_images, folder_images, sample_images
from preparing.hdf5 import Shapes, write_images, write_patches
from preparing.pairs import pair_size
from runtime.errors import UserError, end_at_signals, printable, run_main
from runtime.files import check_writable, refuse_inputs
from runtime.numbers import COUNT
from runtime.options import Parser

SIZES = (1.0, 0.9, 0.8, 0.7, 0.6)  # augmentation of Dong et al., 2016 (arXiv:1608.00367)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--images-dir", type=Path, help="folder with the images of one file")
    add("--output-path", type=Path, help="that file")
    add("--eval", action="store_true", help="whole images instead of patches")
    add("--data-path", type=Path, help="dataset folder to fill, from one of the next three")
    add("--train-images", type=Path, help="folder with training images (and --eval-images)")
    add("--eval-images", type=Path, help="folder with evaluation images (and --train-images)")
    add("--download", action="store_true", help="fetch the public T91 and Set5, checked")
    add("--sample", action="store_true", help="photographs of scikit-image: no network needed")
    add("--force", action="store_true", help="make files of the dataset folder anew")
    add("--scale", type=COUNT, help="default: 2; 3 with --data-path")
    add("--patch-size", type=COUNT, default=33, help="sides of a patch (default: 33)")
    add("--stride", type=COUNT, default=14, help="from patch to patch (default: 14)")
    add("--jobs", type=COUNT, default=min(4, os.cpu_count() or 1), help="default: %(default)s")
    args = parser.parse_args(argv)
    folders = args.train_images is not None, args.eval_images is not None
    sources = args.download + args.sample + any(folders)
    if args.data_path is None:
        if args.images_dir is None or args.output_path is None:
            parser.error("give --images-dir and --output-path, or --data-path")
        if sources or args.force:
            parser.error("--download, --sample, --*-images and --force go with --data-path")
    elif args.images_dir or args.output_path or args.eval:
        parser.error("--images-dir, --output-path and --eval do not go with --data-path")
    elif sources != 1 or any(folders) != all(folders):
        parser.error("--data-path: one of --download, --sample, --train-images with --eval-images")
    args.scale = args.scale or (3 if args.data_path else 2)
    return args


def patch_sources(paths: list[Path], scale: int, size: int) -> Shapes:
    """Return the images that hold a patch, each with its shape; name the others on stderr."""
    shapes = {path: pair_size(path, scale) for path in paths}
    small = [path.name for path in paths if min(shapes[path]) < size]
    what = f"smaller than a {size}×{size} patch at x{scale}"
    if len(small) == len(paths):
        raise UserError(f"every image in {paths[0].parent} is {what}; take larger ones")
    if small:
        print(f"skipped {len(small)} images {what}: {printable(', '.join(small))}", file=sys.stderr)
    return {path: shape for path, shape in shapes.items() if min(shape) >= size}


def find_images(args: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """Return the training and the evaluation images of a dataset folder."""
    if args.sample:
        print("sample photographs of scikit-image: these are NOT T91 and Set5")
        return sample_images()
    if args.download:
        folder = args.data_path / "images"
        paths = download_images(folder)
        print(f"{printable(folder)}: T91 and Set5, every file with its SHA-256")
        return paths
    return folder_images(args.train_images), folder_images(args.eval_images)


def fill_folder(args: argparse.Namespace) -> list[Callable]:
    """Return what writes each file that the dataset folder lacks, given scale and jobs."""
    train, evaluation = ("sample", "sample") if args.sample else ("T91", "Set5")
    patches = args.data_path / "train" / f"{train}_x{args.scale}.h5"
    whole = args.data_path / "train" / f"{train}_x{args.scale}_images.h5"
    measured = args.data_path / "val" / f"{evaluation}_x{args.scale}.h5"
    kept = [path for path in (patches, whole, measured) if path.exists() and not args.force]
    for path in kept:
        print(f"{printable(path)}: kept as it is; --force makes it anew")
    if len(kept) == 3:
        return []
    for path in (patches, whole, measured):
        if path not in kept:
            check_writable(path)
    if args.train_images and (patches in kept) != (whole in kept):
        made, left = (whole, patches) if patches in kept else (patches, whole)
        print(f"warning: {printable(made)} is made and {printable(left)} kept; where they are of "
              f"different images, --force makes both anew", file=sys.stderr)  # fmt: skip
    train_paths, eval_paths = find_images(args)
    shapes = patch_sources(train_paths, args.scale, args.patch_size)
    for path in eval_paths if measured not in kept else ():
        pair_size(path, args.scale)  # one that cannot be read is told before files are made
    writers = {
        patches: partial(write_patches, patches, shapes, args.patch_size, args.stride),
        whole: partial(write_images, whole, list(shapes), sizes=SIZES),
        measured: partial(write_images, measured, eval_paths),
    }
    return [write for path, write in writers.items() if path not in kept]


def one_file(args: argparse.Namespace) -> list[Callable]:
    """Return what writes the file of --output-path, as `fill_folder` does."""
    import h5py  # --help does without

    output = args.output_path
    check_writable(output)
    paths = folder_images(args.images_dir)
    refuse_inputs("--output-path", output, paths)
    if output.is_file() and output.stat().st_size and not h5py.is_hdf5(output):
        raise UserError(f"--output-path {output} is there, and no HDF5 file; name another")
    if args.eval:
        return [partial(write_images, output, paths)]
    shapes = patch_sources(paths, args.scale, args.patch_size)
    return [partial(write_patches, output, shapes, args.patch_size, args.stride)]


def main(argv: Sequence[str] | None = None) -> None:
    """Make the files that are asked for."""
    args = parse_args(argv)
    for write in fill_folder(args) if args.data_path else one_file(args):
        write(scale=args.scale, jobs=args.jobs)


if __name__ == "__main__":
    end_at_signals()
    sys.exit(run_main(main))
