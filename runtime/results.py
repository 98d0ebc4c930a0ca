"""The end of a run: the table of figures and the pictures."""

import time
from pathlib import Path

from datasets import EvalDataset
from imaging.metrics import psnr
from imaging.pictures import save_strip
from runtime.files import whole_file
from runtime.inference import restore
from runtime.weights import load_weights


def move_earlier_aside(folder: Path) -> Path | None:
    """Rename a folder that holds an earlier run's results; return its new name."""
    if not any(folder.glob("*.pth")) and not any(folder.glob("*.pt")):
        return None
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = next(
        path
        for n in range(1000)
        if not (path := folder.with_name(f"{folder.name}.{stamp}{f'-{n}' if n else ''}")).exists()
    )
    return folder.rename(aside)


def report(folder: Path, eval_set: EvalDataset) -> None:
    """Print each image's PSNR with best.pth beside bicubic's; save a strip of pictures of each."""
    model = load_weights(folder / "best.pth")
    print(f"{eval_set.path.stem}, modelzoo protocol, PSNR in dB\n{'image':<12}  bicubic    SRCNN")
    sums = [0.0, 0.0]
    for name, (lr, hr) in zip(eval_set.names, eval_set, strict=True):
        bicubic, original = (255.0 * pixels[0].numpy() for pixels in (lr, hr))
        output = restore(model, bicubic).clip(0.0, 255.0)
        figures = psnr(bicubic, original), psnr(output, original)
        sums = [total + figure for total, figure in zip(sums, figures, strict=True)]
        print(f"{name:<12}  {figures[0]:7.2f}  {figures[1]:7.2f}")
        with whole_file(folder / f"strip_{name}.png") as temporary:
            save_strip(temporary, name, bicubic, output, original, psnrs=figures)
    means = [total / len(eval_set) for total in sums]
    print(f"{'mean':<12}  {means[0]:7.2f}  {means[1]:7.2f}")
