"""The network ready to enlarge pictures: on its device, as fast as that allows."""

import io
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from imaging.album import STREAM, PathOrStream, Plan
from imaging.decoding import Picture
from imaging.enlarge import enlarge, silent
from imaging.kinds import PictureError
from imaging.photo import Photo, open_photo
from inference.fast_cpu import for_cpu
from inference.restore import restore
from inference.weights import load_luminance_weights
from runtime.device import has_bf16, keep_fp32
from runtime.errors import RunError, first_line, lack_of_memory, printable
from runtime.files import whole_file
from runtime.memory import available_memory

Advance = Callable[..., object]
BAR = "{percentage:3.0f}%|{bar}| {n:.1f} of {total} pictures [{elapsed}<{remaining}]"
MOST_THREADS = 16
TILE_BYTES = 50_000_000  # what a tile takes in the network, of which each thread holds one


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
        keep_fp32(device)
        self.scale, self.ensemble, self.radius = scale, ensemble, model.receptive_radius
        self.map_fn: Callable[..., Iterable[np.ndarray]] = map
        self.threads, self.pool = 1, None
        if device.type == "cpu":  # a thread per tile: layers need not wait for the slowest thread
            self.threads = min(torch.get_num_threads(), MOST_THREADS)
            self.pool = ThreadPoolExecutor(self.threads, "tile", torch.set_num_threads, (1,))
            self.map_fn = self.pool.map
        self.exact = for_cpu(model, bf16=False) if device.type == "cpu" else model.to(device)
        self.model = self.exact
        if device.type == "cpu" and (precision == "bf16" or (precision == "auto" and has_bf16())):
            self.model = for_cpu(model, bf16=True)
        self.deep = self.model if precision == "bf16" else self.exact

    def enlarge(self, photo: Photo, advance: Advance = silent) -> Picture:
        """Return the picture enlarged; `advance` is told of each piece that is done."""
        model = self.model if isinstance(photo.image, Image.Image) else self.deep
        return enlarge(
            photo.image,
            self.scale,
            lambda luminance: restore(model, luminance, self.ensemble),
            self.radius,
            advance=advance,
            map_fn=self.map_fn,
        )

    def enlarge_file(
        self, source: Path | BinaryIO, target: PathOrStream, advance: Advance, share: int = 1
    ) -> tuple[int, str]:
        """Enlarge one file into another.

        Args:
            source: the picture.
            target: the result, or STREAM for standard output.
            advance: called with the share of the picture that each tile is.
            share: how many pictures share the memory.

        Returns:
            The pixels of the result, and what a person should know of it, or nothing.

        Raises:
            PictureError, RunError: the picture cannot be read, or the result not written.
        """
        name = source.name if isinstance(source, Path) else ""
        photo = open_photo(source, name, self.scale, room=self.room() // share)
        pixels = photo.size[0] * photo.size[1] * self.scale**2
        result = self.enlarge(photo, lambda done: advance(done / pixels))
        if isinstance(target, str):
            file = io.BytesIO()
            photo.save(result, file)
            sys.stdout.buffer.write(file.getbuffer())
            sys.stdout.buffer.flush()
        else:
            with whole_file(target) as temporary:
                photo.save(result, temporary)
        return pixels, photo.note

    def stop(self) -> None:
        """Begin no more tiles, of pictures in work neither: Python waits for all as it ends."""
        if self.pool:
            self.pool.shutdown(wait=False, cancel_futures=True)

    def room(self) -> int:
        """Return the bytes of memory that are left for pictures."""
        return max(available_memory() - self.threads * TILE_BYTES, 0)


def enlarge_all(made: Plan, upscaler: Upscaler, jobs: int, piped: bytes = b"") -> None:
    """Enlarge files side by side; what fails is told at once and counted at the end.

    What the plan refused counts, too.

    Raises:
        RunError: some could not be enlarged.
    """
    stopped, start, pixels = threading.Event(), time.perf_counter(), 0
    failed = len(made.refused)
    count = len(made.work) + failed
    share = min(jobs, len(made.work))  # of the memory
    bar = tqdm(total=len(made.work), disable=None, bar_format=BAR)

    def advance(part: float) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        bar.update(part)

    with bar, ThreadPoolExecutor(jobs) as pool:
        try:
            futures = {}
            for target, source in made.work.items():
                file = io.BytesIO(piped) if isinstance(source, str) else source
                future = pool.submit(upscaler.enlarge_file, file, target, advance, share)
                futures[future] = source
            for future in as_completed(futures):
                try:
                    size, note = future.result()
                except Exception as error:  # one picture's, whatever it is: the others go on
                    if STREAM in made.work and isinstance(error, OSError):
                        raise  # standard output is full, or nobody reads it
                    failed += 1
                    note = f"{futures[future]}: {what_happened(error)}"
                    if count == 1:
                        raise RunError(note) from None
                    note = f"error: {note}"
                else:
                    pixels += size
                    note = note and f"warning: {futures[future]}: {note}"
                if note:
                    bar.write(printable(note), file=sys.stderr)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # before a thread asks for the next one
            stopped.set()  # after an interruption, tiles in work end the others
    seconds = time.perf_counter() - start
    if pixels:
        print(
            f"{count - failed} of {count} pictures enlarged: {pixels / 1e6:.1f} megapixels "
            f"in {seconds:.1f} s, {pixels / 1e6 / seconds:.2f} megapixels/s",
            file=sys.stderr if STREAM in made.work else sys.stdout,
        )
    if failed:
        raise RunError(f"{failed} of {count} pictures could not be enlarged, see above")


def what_happened(error: Exception) -> str:
    """Return on one line what a picture's exception says; torch's go on over many."""
    if isinstance(error, (PictureError, RunError)):
        return str(error)
    if lack_of_memory(error):
        return "not enough memory; cut it in pieces, or end other programs"
    return f"failed ({type(error).__name__}: {first_line(error)})"
