"""Enlarging to 1 megapixel beside plain PyTorch and onnxruntime, and what bfloat16 costs.

    python benchmarks/enlarging_speed.py [--scale 3] [--threads 2] [--rounds 9] [--images-dir Set5]

All enlarge the same photograph, from pixels to pixels, with the same weights; in turns, as the
load of a machine changes. `plain` and `onnxruntime` see the whole picture at once, in fp32. The
PSNR is of the photographs (scikit-image's, or those in --images-dir), protocol modelzoo.
"""

import runtime  # noqa: F401 - so that onnxruntime sends nothing

# isort: split
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median

import numpy as np
import onnxruntime
import torch

from imaging.enlarge import enlarge
from imaging.metrics import psnr
from imaging.photo import Photo
from imaging.resize import BICUBIC, modelzoo_pair
from imaging.sources import folder_images, open_image, sample_images
from inference.onnx_graph import build
from inference.restore import restore
from inference.upscaler import Upscaler
from inference.weights import load_weights, shipped_weights
from runtime.device import has_bf16, set_up_cpu
from runtime.errors import run_main
from runtime.numbers import COUNT
from runtime.options import Parser

WHOLE = 10**6  # no tiles
CPU = torch.device("cpu")


def contenders(weights: Path, scale: int, threads: int) -> dict[str, Callable]:
    """Return what is compared, by name; each takes a photo and returns it enlarged."""
    model = load_weights(weights)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    graph = build(model, size=None, fp16=False, opset=11).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def by_onnxruntime(y: np.ndarray) -> np.ndarray:
        return session.run(["output"], {"input": (y / 255)[None, None]})[0][0, 0] * 255

    def whole(restorer: Callable) -> Callable:
        return lambda photo: enlarge(photo.image, scale, restorer, 8, tile=WHOLE)

    ours = ("fp32", "bf16") if has_bf16() else ("fp32",)
    return {
        "plain": whole(lambda y: restore(model, y)),
        "onnxruntime": whole(by_onnxruntime),
        **{f"upscale.py, {name}": Upscaler(weights, scale, CPU, name).enlarge for name in ours},
    }


def compare_speed(weights: Path, scale: int, threads: int, rounds: int) -> None:
    """Print seconds and ratios for one photograph."""
    side = 1000 // scale
    image = open_image(sample_images()[1][-1]).resize((side, side), BICUBIC)
    photo = Photo(image.convert("RGB"), "PNG", {})
    runs = contenders(weights, scale, threads)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run(photo)
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    print(f"{side}×{side} → {side * scale}×{side * scale}, {threads} threads, {rounds} rounds")
    print(f"{'':18}  median s  least s  times faster than plain, than onnxruntime")
    for name, values in seconds.items():
        faster = [
            median(b / a for a, b in zip(values, seconds[other], strict=True))
            for other in ("plain", "onnxruntime")
        ]
        print(f"{name:18}  {median(values):8.3f}  {min(values):7.3f}  "
              f"{faster[0]:6.2f}  {faster[1]:6.2f}")  # fmt: skip


def compare_quality(weights: Path, scale: int, paths: list[Path]) -> None:
    """Print the PSNR in fp32, what bfloat16 takes off it, and how far apart the two are."""
    exact, rounded = (Upscaler(weights, scale, CPU, name).model for name in ("fp32", "bf16"))
    losses = []
    for path in paths:
        lr, hr = modelzoo_pair(open_image(path), scale)
        a, b = (restore(model, lr).clip(0, 255) for model in (exact, rounded))
        margin = (len(hr) - len(a)) // 2  # where the network would see beyond the picture
        hr = hr[margin:-margin, margin:-margin]
        losses.append(psnr(a, hr) - psnr(b, hr))
        print(
            f"{path.stem:14}  fp32 {psnr(a, hr):.3f} dB, bf16 {-losses[-1]:+.4f} dB "
            f"({psnr(a, b):.1f} dB between the two)"
        )
    print(f"bf16 costs {fmean(losses):.4f} dB on average, {max(losses):.4f} dB at most "
          f"(PSNR by the modelzoo protocol)")  # fmt: skip


def main() -> None:
    """Print both comparisons."""
    parser = Parser(__doc__)
    parser.add_argument("--weights", type=Path, help="state dict (default: the shipped one)")
    parser.add_argument("--scale", type=COUNT, default=3)
    parser.add_argument("--threads", type=COUNT, default=2)
    parser.add_argument("--rounds", type=COUNT, default=9)
    parser.add_argument("--images-dir", type=Path)
    args = parser.parse_args()
    paths = folder_images(args.images_dir) if args.images_dir else sample_images()[1]
    torch.set_num_threads(args.threads)
    set_up_cpu()  # as upscale.py does; the others gain from it, too
    weights = args.weights or shipped_weights(args.scale)
    compare_speed(weights, args.scale, args.threads, args.rounds)
    if has_bf16():
        compare_quality(weights, args.scale, paths)


if __name__ == "__main__":
    sys.exit(run_main(main))
