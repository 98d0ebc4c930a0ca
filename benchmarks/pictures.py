"""Enlarge every file in folders, and count what came of each: a result, a refusal, a crash.

    python benchmarks/pictures.py FOLDER … [--verbose]

A result must open again, three times as large. It is bicubic, as reading and writing is what is
tried here, not the network. Folders of odd pictures: that of benchmarks/odd_pictures.py, and the
Tests/images of Pillow's source distribution.
"""

import io
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, PngImagePlugin

from imaging.enlarge import bicubic_only, enlarge
from imaging.kinds import FORMATS, PictureError
from imaging.photo import open_photo
from runtime.errors import UserError, run_main
from runtime.options import Parser

SCALE = 3


def ending(data: bytes, name: str) -> tuple[str, str]:
    """Enlarge one picture; return what came of it, and what was said."""
    try:
        photo = open_photo(io.BytesIO(data), name, SCALE)
        file = io.BytesIO()
        photo.save(enlarge(photo.image, SCALE, bicubic_only, radius=8), file)
    except PictureError as error:
        return "refused", str(error)
    except Exception as error:
        return "crashed", f"{type(error).__name__}: {error}"
    try:
        with Image.open(file) as result:
            result.load()
            size = result.size
    except Exception as error:
        return "result does not open", f"{type(error).__name__}: {error}"
    if size != tuple(SCALE * length for length in photo.size):
        return "result of another size", str(size)
    return ("enlarged with a note" if photo.note else "enlarged"), photo.note


def inputs(folders: list[Path]) -> Iterator[tuple[str, str, bytes]]:
    """Yield the kind, name and bytes of each input."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder")
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            known = path.suffix.lower() in FORMATS
            yield "pictures" if known else "other files", path.name, path.read_bytes()


def main() -> None:
    """Print a line for each kind of input, and with --verbose one for each file."""
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--verbose", action="store_true", help="a line for each file")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    PngImagePlugin.MAX_TEXT_CHUNK = 2**26  # texts are kept, however long; results must open here
    counts: dict[str, Counter] = {}
    for kind, name, data in inputs(args.folders):
        end, said = ending(data, name)
        counts.setdefault(kind, Counter())[end] += 1
        if args.verbose or end not in ("enlarged", "enlarged with a note", "refused"):
            print(f"{end}: {name}: {said}")
    for kind, ends in counts.items():
        print(f"{kind}: {ends.total()}, " + ", ".join(f"{n} {end}" for end, n in ends.items()))


if __name__ == "__main__":
    sys.exit(run_main(main))
