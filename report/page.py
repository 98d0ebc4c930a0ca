"""The report: one HTML file that works from disk, without network, and PNG strips beside it."""

import base64
import io
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from imaging.metrics import PROTOCOLS, gain
from imaging.pictures import most_changed, save_strip
from runtime.files import SHOWN, file_name, write_bytes, write_text

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals["gain"] = gain


class Report:
    """Collects one card per image, then writes the page.

    Args:
        folder: made when the page is written; `index.html` and strips of the same names in it are
            replaced.
        training_log: CSV of a training run, drawn as curves.

    Raises:
        UserError: the training log is none.
    """

    def __init__(self, folder: Path, training_log: Path | None = None) -> None:
        self.folder = Path(folder)
        self._cards: list[dict] = []
        self._strips: dict[str, bytes] = {}
        self._curves: dict[str, str] = {}
        if training_log:
            from report.curves import draw_log  # noqa: PLC0415 - matplotlib loads slowly

            self._curves = draw_log(training_log)

    def add(
        self, figures: dict, bicubic: np.ndarray, output: np.ndarray, original: np.ndarray
    ) -> None:
        """Keep the strip and the card of an image.

        Args:
            figures: `name`, `bicubic_psnr`, `srcnn_psnr`, `bicubic_ssim`, `srcnn_ssim`.
            bicubic: H×W×3 or H×W, uint8.
            output: the network's, same shape.
            original: same shape.
        """
        strip = f"{len(self._cards):02d}_{Path(figures['name']).name[:SHOWN]}.png"
        psnrs = figures["bicubic_psnr"], figures["srcnn_psnr"]
        pictures = (bicubic, output, original)
        buffer = io.BytesIO()
        save_strip(buffer, figures["name"], *pictures, psnrs=psnrs)
        self._strips[file_name(strip)] = buffer.getvalue()
        height, width = original.shape[:2]
        top, left, side = most_changed(bicubic, output)
        captions = (f"{psnrs[0]:.2f} dB", f"{psnrs[1]:.2f} dB", "")
        self._cards.append(
            {
                **figures,
                "strip": strip,
                "height": height,
                "width": width,
                "region": f"left: {left / width:.3%}; top: {top / height:.3%}; "
                f"width: {side / width:.3%}; height: {side / height:.3%}",
                "views": [
                    {
                        "kind": kind,
                        "caption": caption,
                        "image": _data_uri(pixels),
                        "zoom": _data_uri(pixels[top : top + side, left : left + side]),
                    }
                    for kind, caption, pixels in zip(
                        ("Bicubic", "SRCNN", "Original"), captions, pictures, strict=True
                    )
                ],
            }
        )

    def write(self, result: dict, note: str = "") -> Path:
        """Write the strips and `index.html`; return its path.

        Args:
            result: `protocol`, `scale`, `weights` and `mean`, as in evaluate.py's JSON file.
            note: said behind the weights' name.

        Raises:
            RunError: they cannot be written.
        """
        page = TEMPLATES.get_template("page.html").render(
            result,
            note=note,
            summary=PROTOCOLS[result["protocol"]].summary,
            cards=self._cards,
            curves=self._curves,
        )
        for name, data in self._strips.items():
            write_bytes(self.folder / name, data)
        write_text(self.folder / "index.html", page)
        return self.folder / "index.html"


def _data_uri(pixels: np.ndarray) -> str:
    """Return an image as a URI that contains it, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "WEBP", lossless=True, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
