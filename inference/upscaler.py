"""The network ready to enlarge pictures: on its device, as fast as that allows."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image

from imaging.enlarge import enlarge, one_by_one, silent
from imaging.photo import Photo, PictureError, open_photo
from inference.fast_cpu import for_cpu
from inference.restore import restore
from inference.weights import load_luminance_weights
from runtime.device import has_bf16
from runtime.files import whole_file

Advance = Callable[..., object]
MOST_THREADS = 16  # each holds the feature maps of a tile, 40 MB


class Upscaler:
    """Enlarges pictures by one scale. May be called from several threads.

    Args:
        weights: a state dict of a network on luminance.
        scale: what it was trained for.
        device: where it runs.
        precision: "fp32"; "bf16", which on a CPU rounds what can be rounded (see
            inference/fast_cpu.py) and changes nothing elsewhere; or "auto": bf16 where the CPU
            computes in it, except for 16-bit pictures.
        ensemble: average over flips and rotations; takes 8 times as long.
    """

    def __init__(
        self,
        weights: Path,
        scale: int,
        device: torch.device,
        precision: str = "auto",
        ensemble: bool = False,
    ) -> None:
        model = load_luminance_weights(weights)
        self.scale, self.ensemble, self.radius = scale, ensemble, model.receptive_radius
        self.each: Callable[..., Iterable] = one_by_one
        if device.type == "cpu":  # a thread per tile: layers need not wait for the slowest thread
            threads = min(torch.get_num_threads(), MOST_THREADS)
            pool = ThreadPoolExecutor(threads, "tile", torch.set_num_threads, (1,))
            self.each = pool.map
        self.exact = for_cpu(model, bf16=False) if device.type == "cpu" else model.to(device)
        self.model = self.exact
        if device.type == "cpu" and (precision == "bf16" or (precision == "auto" and has_bf16())):
            self.model = for_cpu(model, bf16=True)
        self.deep = self.model if precision == "bf16" else self.exact

    def enlarge(self, photo: Photo, advance: Advance = silent) -> Image.Image:
        """Return the picture enlarged; `advance` is told of each piece that is done."""
        model = self.deep if photo.image.mode == "F" else self.model
        return enlarge(
            photo.image,
            self.scale,
            lambda luminance: restore(model, luminance, self.ensemble),
            self.radius,
            advance=advance,
            each=self.each,
        )

    def enlarge_file(
        self, source: Path, target: Path, force: bool, advance: Advance
    ) -> tuple[int, str]:
        """Enlarge one file into another.

        Args:
            source: the picture.
            target: the result.
            force: overwrite what is there.
            advance: called with the pixels done and, once, with 0 and those that are to be done.

        Returns:
            The pixels of the result, and what a person should know of it, or nothing.

        Raises:
            PictureError, RunError: the picture cannot be read, or the result not written.
        """
        if target.exists() and not force:
            raise PictureError(f"{target} exists; --force overwrites it")
        photo = open_photo(source, source.name, self.scale)
        pixels = photo.image.width * photo.image.height * self.scale**2
        advance(0, pixels)
        result = self.enlarge(photo, advance)
        with whole_file(target) as temporary:
            photo.save(result, temporary)
        return pixels, photo.note
