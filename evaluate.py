r"""Measure weights on a folder of images, next to bicubic, by a protocol that has a name.

    python evaluate.py --images-dir Set5 --scale 3 --protocol paper
    python evaluate.py --data-path dataset --scale 3 --weights outputs/x3/best.pth
    python evaluate.py --images-dir Set5 --scale 3 --json result.json \
        --report outputs/x3/report --training-log outputs/x3/metrics.csv

Protocols: `modelzoo` resizes each image to a multiple of the scale with Pillow and counts every
pixel (this model's published 33.27 dB); `paper` crops it, uses MATLAB's bicubic and leaves out a
border of `scale` pixels (32.75 dB in the SRCNN paper). Never compare figures of one with the
other's. PSNR is in dB; the JSON file has null where an image is restored without any error.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out
import runtime  # noqa: F401 - ends here on a Python that is too old

# isort: split
import argparse
import json
import math
import os
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from imaging.metrics import PROTOCOLS, Protocol, gain
from inference.samples import Sample, read_dataset, read_folder
from runtime.errors import (
    RunError,
    check_memory_limit,
    end_at_signals,
    lack_of_memory,
    printable,
    run_main,
)
from runtime.files import check_writable, refuse_inputs, write_text
from runtime.numbers import COUNT
from runtime.options import Parser, add_device

FIGURES = ("bicubic_psnr", "srcnn_psnr", "bicubic_ssim", "srcnn_ssim")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images-dir", type=Path, help="folder with the original images")
    source.add_argument("--data-path", type=Path, help="dataset folder; its val/*.h5 is measured")
    parser.add_argument("--scale", type=COUNT, default=3, help="enlargement factor (default: 3)")
    parser.add_argument(
        "--protocol",
        choices=list(PROTOCOLS),
        default="modelzoo",
        help="how low resolution and PSNR are made (default: modelzoo)",
    )
    parser.add_argument("--weights", type=Path, help="state dict (default: the shipped one)")
    parser.add_argument("--self-ensemble", action="store_true", help="mean over flips, rotations")
    add_device(parser.add_argument)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a page and PNG strips")
    parser.add_argument("--training-log", type=Path, metavar="CSV", help="curves for the report")
    args = parser.parse_args(argv)
    if args.data_path and args.protocol != "modelzoo":
        parser.error("--data-path: the file holds pairs of the modelzoo protocol; use --images-dir")
    if args.training_log and not args.report:
        parser.error("--training-log is drawn in the report; add --report DIR")
    images, report = (path and os.path.realpath(path) for path in (args.images_dir, args.report))
    if images and images == report:
        parser.error(f"--report {args.report} is the folder of the images; name another one")
    return args


def check_outputs(args: argparse.Namespace, weights: Path) -> None:
    """Raise UserError where what is asked for cannot be written, or is read."""
    for path in (args.json, args.report and args.report / "index.html"):
        if path:
            check_writable(path)
    if args.json:
        inputs = [weights, *(args.images_dir or args.data_path / "val").glob("*")]
        inputs += [args.training_log] if args.training_log else []
        # JSON beside images is none of them, and may be an earlier result.
        refuse_inputs("--json", args.json, (path for path in inputs if path.suffix != ".json"))


def measure(sample: Sample, output: np.ndarray, protocol: Protocol, scale: int) -> dict:
    """Return the figures of one image, named as in the JSON file."""
    bicubic = protocol.measure(sample.bicubic, sample.original, scale)
    srcnn = protocol.measure(output, sample.original, scale)
    figures = (bicubic[0], srcnn[0], bicubic[1], srcnn[1])
    return {"name": sample.name, **dict(zip(FIGURES, figures, strict=True))}


def table(result: dict, note: str) -> str:
    """Lay out the figures of a result as text, the note behind the weights' name."""
    rows = [{**row, "name": printable(row["name"])} for row in result["images"]]
    rows += [{"name": "mean", **result["mean"]}]
    width = max(len(row["name"]) for row in [*rows, {"name": "image"}])
    weights = printable(result["weights"])
    lines = [
        f"x{result['scale']}, protocol {result['protocol']}, weights {weights}{note}",
        f"{'':{width}}  {'bicubic':^14}  {'SRCNN':^14}",
        f"{'image':{width}}  {'PSNR':>6}  {'SSIM':>6}  {'PSNR':>6}  {'SSIM':>6}    gain",
    ]
    for row in rows:
        bicubic_psnr, srcnn_psnr, bicubic_ssim, srcnn_ssim = (row[key] for key in FIGURES)
        lines.append(
            f"{row['name']:{width}}  {bicubic_psnr:6.2f}  {bicubic_ssim:6.4f}"
            f"  {srcnn_psnr:6.2f}  {srcnn_ssim:6.4f}  {gain(row):+6.2f}"
        )
    return "\n".join(lines)


def to_json(result: dict) -> str:
    """Return the result as JSON, which has no infinity."""

    def finite(figures: dict) -> dict:
        return {key: figures[key] if math.isfinite(figures[key]) else None for key in FIGURES}

    images = [{"name": image["name"], **finite(image)} for image in result["images"]]
    result = {**result, "images": images, "mean": finite(result["mean"])}
    return json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write what was asked for."""
    args = parse_args(argv)
    check_memory_limit()

    from inference.restore import restore
    from inference.weights import load_luminance_weights, shipped_weights
    from runtime.device import choose_device, keep_fp32

    weights = args.weights or shipped_weights(args.scale)
    check_outputs(args, weights)
    device = choose_device(args.device).value
    keep_fp32(device)
    model = load_luminance_weights(weights).to(device)
    protocol = PROTOCOLS[args.protocol]
    if args.data_path:
        samples = read_dataset(args.data_path, args.scale)
    else:
        samples = read_folder(args.images_dir, args.scale, protocol)
    report = None
    if args.report:
        from report.page import Report

        report = Report(args.report, args.training_log)

    images = []
    for sample in tqdm(samples, "measured", unit=" images", leave=False, disable=None):
        try:
            output = restore(model, sample.bicubic, args.self_ensemble)
        except (MemoryError, RuntimeError) as error:
            if not lack_of_memory(error):
                raise
            size = "×".join(map(str, sample.bicubic.shape[::-1]))
            raise RunError(
                f"not enough memory for {sample.name}, {size}; cut it in pieces"
            ) from None
        if not np.isfinite(output).all():
            raise RunError(f"{weights} make values that are not finite of {sample.name}")
        images.append(measure(sample, output, protocol, args.scale))
        if report:
            visible = sample.visible(protocol.finish(output))
            report.add(images[-1], sample.visible_bicubic, visible, sample.visible_original)
    result = {
        "protocol": protocol.name,
        "scale": args.scale,
        "weights": str(args.weights or Path("weights", weights.name)),  # the same everywhere
        "images": images,
        "mean": {key: float(np.mean([image[key] for image in images])) for key in FIGURES},
    }
    note = ", self-ensemble" if args.self_ensemble else ""
    print(table(result, note))
    if args.json:
        write_text(args.json, to_json(result))
    if report:
        print(f"report: {printable(report.write(result, note))}")


if __name__ == "__main__":
    end_at_signals()
    sys.exit(run_main(main))
