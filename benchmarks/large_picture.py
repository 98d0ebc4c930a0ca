"""Measure how much memory a result of 200 megapixels takes, beside what is promised for it.

    python benchmarks/large_picture.py [--format PNG]

In a process of its own the picture is opened, enlarged by 3 and saved; the network's share (50 MB a
thread) is left out, as the tiles are bicubic. Linux only.
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from imaging import memory
from imaging.enlarge import bicubic_only, enlarge
from imaging.photo import open_photo
from runtime.errors import run_main
from runtime.options import Parser

SIDE = 4714  # pixels; three times as many are 200 megapixels


def peak() -> float:
    """Return the most memory that this process has held, in GB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def main() -> None:
    """Print the peaks."""
    parser = Parser(__doc__)
    parser.add_argument("--format", default="PNG", choices=["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
    kind = parser.parse_args().format
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "a"
        Image.effect_noise((512, 512), 60).resize((SIDE, SIDE)).convert("RGB").save(source, kind)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
        start = peak()
        photo = open_photo(source, "", 3)
        result = enlarge(photo.image, 3, bicubic_only, 8, tile=1024)
        enlarged = peak()
        photo.save(result, Path(folder) / "b")
    promised = memory.needed(SIDE, SIDE, 3, kind) / 1e9
    print(
        f"{kind}: {start:.2f} GB at the start, {enlarged:.2f} enlarged, {peak():.2f} saved; "
        f"{promised:.2f} were counted on"
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
