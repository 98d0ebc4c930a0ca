"""Write trained weights as an ONNX file, checked against PyTorch on photographs.

    python export.py --scale 3 --output srcnn_x3.onnx
    python export.py --weights outputs/x3/best.pth --output srcnn.onnx --size 720 1280 --fp16

Input and output are named `input` and `output`: luminance, N×1×H×W in fp32, 0–1, of pictures that
are already enlarged bicubically. Batch, height and width are free unless --size fixes them, the
batch to 1. Each of the photographs that come with scikit-image is tried. Ascend's ATC reads opsets
9–13 in CANN 6.0 and 9–18 in CANN 7.0; the default, 11, suits both.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
import runtime  # noqa: F401 - ends here on a Python that is too old

# isort: split
import argparse
import importlib.util
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from runtime.errors import (
    RunError,
    UserError,
    check_memory_limit,
    end_at_signals,
    printable,
    run_main,
)
from runtime.files import check_writable, refuse_inputs, write_bytes
from runtime.numbers import COUNT
from runtime.options import Parser

if TYPE_CHECKING:
    import numpy as np

OPSETS = range(9, 19)
MOST_PIXELS = 2**24  # of --size
TOLERANCE = {"fp32": 1e-4, "fp16": 2 / 255}  # from PyTorch in fp32, at the worst pixel


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    parser.add_argument("--weights", type=Path, help="state dict (default: the shipped one)")
    parser.add_argument("--scale", type=COUNT, default=3, help="enlargement factor (default: 3)")
    parser.add_argument("--output", type=Path, help="default: srcnn_x{scale}.onnx")
    parser.add_argument("--size", type=COUNT, nargs=2, metavar=("H", "W"), help="fixed input size")
    parser.add_argument("--fp16", action="store_true", help="compute and store weights in fp16")
    parser.add_argument("--opset", type=int, choices=OPSETS, default=11, help="default: 11")
    args = parser.parse_args(argv)
    if args.size and args.size[0] * args.size[1] > MOST_PIXELS:
        parser.error(f"--size: at most {MOST_PIXELS:,} pixels, which the check here can take")
    args.output = args.output or Path(f"srcnn_x{args.scale}.onnx")
    return args


def photographs(scale: int, size: list[int] | None) -> Iterator[tuple[str, "np.ndarray"]]:
    """Yield the name and the luminance, H×W float32 in 0–1, of photographs enlarged by `scale`."""
    import numpy as np
    from PIL import Image

    from imaging.luminance import matlab_y
    from imaging.resize import BICUBIC
    from imaging.sources import sample_images

    train, evaluation = sample_images()
    for path in evaluation + train:
        with Image.open(path) as image:
            width, height = size[::-1] if size else image.size
            small = (max(width // scale, 1), max(height // scale, 1))
            enlarged = image.convert("RGB").resize(small, BICUBIC).resize((width, height), BICUBIC)
            yield path.stem, (matlab_y(np.asarray(enlarged)) / 255).astype(np.float32)


def main(argv: Sequence[str] | None = None) -> None:
    """Build, check and write the ONNX file."""
    args = parse_args(argv)
    check_memory_limit()
    from inference.weights import load_weights, shipped_weights

    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export needs {' and '.join(missing)}; pip install {' '.join(missing)}")
    check_writable(args.output)
    try:
        from inference.onnx_graph import build, largest_difference
    except ImportError as error:
        raise UserError(
            f"onnx or onnxruntime cannot be imported ({error}); exporting needs no NPU: take an "
            f"environment without requirements-npu.txt"
        ) from None

    weights = args.weights or shipped_weights(args.scale)
    refuse_inputs("--output", args.output, [weights])
    model = load_weights(weights)
    onnx_model = build(model, args.size, args.fp16, args.opset)
    precision = "fp16" if args.fp16 else "fp32"
    for name, luminance in photographs(args.scale, args.size):
        difference = largest_difference(model, onnx_model, luminance)
        height, width = luminance.shape
        print(f"{name}, {width}×{height}: largest difference from PyTorch {difference:.1e}")
        if not difference <= TOLERANCE[precision]:
            raise RunError(
                f"{precision} differs by {difference:.1e} on {name}, allowed is "
                f"{TOLERANCE[precision]:.1e}; nothing written"
            )
    write_bytes(args.output, onnx_model.SerializeToString())
    size = "×".join(map(str, args.size)) if args.size else "any size"
    source = args.weights or Path("weights", weights.name)  # the same everywhere
    print(f"{printable(args.output)}: {printable(source)}, {precision}, {size}, opset {args.opset}")


if __name__ == "__main__":
    end_at_signals()
    sys.exit(run_main(main))
