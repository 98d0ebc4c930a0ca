"""The output folder of a run: checkpoints, weights, tables, pictures. The main process's only."""

import contextlib
import fcntl
import math
import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from datasets import EvalDataset
from imaging.metrics import psnr
from imaging.pictures import save_strip
from inference.restore import restore
from inference.weights import load_weights
from runtime.errors import RunError, UserError, printable
from runtime.files import file_name, is_temporary, whole_file, write_bytes
from training import checkpoint
from training.evaluation import Evaluator
from training.recorder import Recorder, summary_writer
from training.state import TrainingState

LOCK = ".lock"
LEFT = (".pth", ".pt", ".csv")  # what a run has left that came as far as its first epoch


class Results:
    """Keeps a run's folder. A run that did not begin there renames what an earlier one left.

    One that is resumed, in its own folder or in another, has its tables and best weights there.

    Args:
        folder: made if need be; one run at a time may have it.
        options: the options that decide the mathematics, for the checkpoints.
        save_every: epochs between two files epoch_{n}.pth.
        tensorboard: write TensorBoard events, too.
        resumed: the checkpoint to go on from, or None.
        elsewhere: it is not from this folder; what is here is of another run.

    Raises:
        UserError: another run writes there.
        RunError: it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        options: dict[str, Any],
        save_every: int = 1,
        tensorboard: bool = False,
        resumed: dict[str, Any] | None = None,
        elsewhere: bool = False,
    ) -> None:
        self.folder, self.options, self.save_every = folder, options, save_every
        if tensorboard:
            summary_writer()  # before anything is moved
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = _lock(folder)
            anew = not resumed or elsewhere
            place = folder.resolve() if folder.is_symlink() else folder  # the link stays
            if anew and (aside := _move_earlier_aside(place)):
                print(f"earlier results are now in {printable(aside)}")
                place.mkdir()
                self.lock = _lock(folder)
            for path in folder.iterdir():
                if is_temporary(path):  # of a killed run
                    path.unlink()
            if resumed:
                checkpoint.leave_behind(folder, resumed["training"]["step"])
        except OSError as error:
            place = error.filename or folder
            raise RunError(f"cannot write to {place}: {error.strerror}") from None
        self.writer = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None
        self.recorder = Recorder(folder, tensorboard)
        if resumed:
            self.recorder.load_state_dict(resumed["recorder"])
            for name, data in self.recorder.tables().items():
                write_bytes(folder / name, data)
            if best := resumed["training"]["best_weights"]:
                write_bytes(folder / "best.pth", checkpoint.pack_weights(best))

    def add_epoch(
        self, state: TrainingState, metrics: dict[str, Any], timing: dict[str, Any]
    ) -> None:
        """Record an epoch, its weights and a checkpoint; they are written while training goes on.

        Raises:
            RunError: what the epoch before left to be written could not be.
        """
        files = self.recorder.add(metrics, timing)
        epoch, last = metrics["epoch"], state.step == state.total_steps
        names = [f"epoch_{epoch}.pth"] if last or epoch % self.save_every == 0 else []
        names += ["best.pth"] if state.best.get("step") == state.step else []
        if names:
            files |= dict.fromkeys(names, checkpoint.pack_weights(state.weights()))
        self._start_writing(state, files)

    def save_checkpoint(self, state: TrainingState) -> None:
        """Save all that going on from here needs; it is on the disk when this returns."""
        self._start_writing(state, {})
        self.wait()

    def _start_writing(self, state: TrainingState, files: dict[str, bytes]) -> None:
        packed = checkpoint.pack(  # now: training goes on to change what it holds
            {
                "options": self.options,
                "training": state.state_dict(),
                "recorder": self.recorder.state_dict(),
            }
        )
        self.wait()
        self.writing = self.writer.submit(self._write, files, state.step, packed)

    def wait(self) -> None:
        """Wait until all that was added is on the disk.

        Raises:
            RunError: it could not be written.
        """
        if self.writing:
            self.writing.result()

    def _write(self, files: dict[str, bytes], step: int, packed: bytes) -> None:
        """Write files, and then the checkpoint, which says that they are there."""
        try:
            for name, data in files.items():
                self._check_folder()
                write_bytes(self.folder / name, data)
            self._check_folder()
            checkpoint.save(self.folder, step, packed)
        except RunError:
            self._check_folder()  # a folder that is gone is the better reason
            raise

    def _check_folder(self) -> None:
        """Fail when the folder is no longer the one that this run has locked."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self.lock), (self.folder / LOCK).stat()):
                return
        raise RunError(f"{self.folder} was removed or replaced during the run; nothing is written")

    def finish(self, evaluator: Evaluator) -> None:
        """Print each image's PSNR with best.pth next to bicubic's; make curve and pictures."""
        self.wait()
        with evaluator.precision.evaluation():
            means = _report_images(self.folder, evaluator.eval_set)
        print(f"{'mean':<14}  {means[0]:7.2f}  {means[1]:7.2f}")
        curve = self.recorder.draw_curves(evaluator.bicubic_psnr, evaluator.name)
        self.recorder.close()
        folder = printable(self.folder)
        print(f"weights: {folder}/best.pth\ncurve: {folder}/{curve.name}")
        print(f"pictures: {folder}/strip_*.png")


def _lock(folder: Path) -> int:
    """Lock a folder for this process; the system lets go when the process ends, however.

    lockf, not flock: workers that outlive a killed run by seconds do not inherit it.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise UserError(f"another run is writing to {folder}; use another --outputs-dir") from None
    except OSError:
        print(f"warning: {folder} cannot be locked; start no second run there", file=sys.stderr)
    return descriptor


def _move_earlier_aside(folder: Path) -> Path | None:
    if not any(path.suffix in LEFT for path in folder.iterdir()):  # glob hides errors
        return None
    stamp, number = time.strftime("%Y%m%d-%H%M%S"), 0
    while (aside := folder.with_name(f"{folder.name}.{stamp}.{number}")).exists():
        number += 1
    try:
        return folder.rename(aside)
    except OSError as error:
        raise RunError(
            f"cannot move earlier results from {folder}: {error.strerror}; "
            f"name another --outputs-dir"
        ) from None


def _report_images(folder: Path, eval_set: EvalDataset) -> list[float]:
    """Print a line and save a strip of pictures for each image; return the two means."""
    model = load_weights(folder / "best.pth")
    print(f"{eval_set.path.stem}, modelzoo protocol, PSNR in dB")
    print(f"{'image':<14}  bicubic    SRCNN")
    figures = []
    for name, (lr, hr) in zip(eval_set.names, eval_set, strict=True):
        bicubic, original = (255.0 * pixels[0].numpy() for pixels in (lr, hr))
        output = restore(model, bicubic).clip(0.0, 255.0)
        figures.append((psnr(bicubic, original), psnr(output, original)))
        print(f"{name:<14}  {figures[-1][0]:7.2f}  {figures[-1][1]:7.2f}")
        with whole_file(folder / file_name(f"strip_{name}.png")) as temporary:
            save_strip(temporary, name, bicubic, output, original, psnrs=figures[-1])
    return [math.fsum(column) / len(figures) for column in zip(*figures, strict=True)]
