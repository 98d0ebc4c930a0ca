"""What a run starts from: weights, or checkpoints, whole, the newest two kept, damage noticed."""

import argparse
import io
import re
import struct
import sys
import zipfile
import zlib
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from inference.weights import RUN_PARTS, load_weights
from runtime.distributed import World
from runtime.errors import UserError, lack_of_memory, printable
from runtime.files import load_tensors, write_bytes

if TYPE_CHECKING:
    from training.state import TrainingState

KEEP = 2
LENGTH = ("num_epochs", "total_steps")  # options that may grow
# What reading an archive with wrong bytes leads to.
DAMAGE = (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError,
          zlib.error, struct.error)  # fmt: skip


class UnreadableError(UserError):
    """A checkpoint that may not be read, whatever is in it."""


def pack(state: dict[str, Any]) -> bytes:
    """Return the bytes of a checkpoint; `torch.load(weights_only=True)` reads them.

    Args:
        state: tensors on the CPU, numbers, texts, and containers of these.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def pack_weights(weights: dict[str, torch.Tensor]) -> bytes:
    """Return the bytes of a plain state dict of fp32 CPU tensors, as published `.pth` files are."""
    state = {name: w.detach().float().cpu().contiguous().clone() for name, w in weights.items()}
    return pack(state)


def save(folder: Path, step: int, packed: bytes) -> Path:
    """Write `checkpoint_{step}.pt` and remove all but the newest two.

    Args:
        folder: the run's output folder.
        step: optimizer steps done, which orders the checkpoints.
        packed: of `pack`.

    Raises:
        RunError: the disk is full or not writable; earlier checkpoints stay.
    """
    path = folder / f"checkpoint_{step}.pt"
    write_bytes(path, packed)
    for old in _newest_first(folder)[KEEP:]:
        with suppress(OSError):  # gone, or not ours to remove
            old.unlink()
    return path


def leave_behind(folder: Path, step: int) -> None:
    """Rename the checkpoints beyond `step`, so that those to come are the newest; says so."""
    number = 0
    for path in _newest_first(folder):
        if _step(path) > step:
            while (left := path.with_name(f"{path.name}.left{number or ''}")).exists():
                number += 1
            path.rename(left)
            print(f"warning: {printable(path)} is ahead of the run that goes on, "
                  f"and now {left.name}", file=sys.stderr)  # fmt: skip


def load(path: Path | str) -> dict[str, Any]:
    """Read one checkpoint; nothing in it is executed.

    zipfile checks the archive's own checksums, which torch.load does not. What it read is packed
    again for torch.load, as the two may read a damaged archive otherwise.

    Raises:
        UnreadableError: it may not be read.
        UserError: it is missing, damaged or no checkpoint.
    """
    try:
        Path(path).open("rb").close()  # what is told here is no fault of the file's bytes
    except FileNotFoundError:
        raise UserError(f"no checkpoint {path}") from None
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror}") from None
    try:
        whole = io.BytesIO()
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(whole, "w") as copy:
            for name in archive.namelist():
                copy.writestr(zipfile.ZipInfo(name), archive.read(name))
        state = load_tensors(io.BytesIO(whole.getvalue()))
    except DAMAGE as error:
        if lack_of_memory(error) or isinstance(error.__context__, MemoryError):  # zipfile hides it
            raise MemoryError(f"to read {path}") from None
        raise UserError(f"{path} is no whole checkpoint ({error})") from None
    if not isinstance(state, dict) or not all(
        isinstance(state.get(part), dict) for part in RUN_PARTS
    ):
        raise UserError(f"{path} holds no state of a run")
    return state


def find(wanted: str | None, folder: Path) -> dict[str, Any] | None:
    """Return the checkpoint that --resume names, or None; says on standard error which it is.

    Args:
        wanted: a file; "auto" for the newest intact one in the run's folder; or None.
        folder: the run's output folder.

    Raises:
        UserError: it is missing or damaged.
    """
    if wanted is None:
        return None
    if wanted != "auto":
        print(f"resuming from {printable(wanted)}", file=sys.stderr)
        try:
            return load(wanted)
        except UserError:
            _refuse_weights(wanted)
            raise
    found = load_newest(folder)
    if found is None:
        print(f"warning: no checkpoint in {printable(folder)} to resume from; starting",
              file=sys.stderr)  # fmt: skip
        return None
    print(f"resuming from {printable(found[0])}", file=sys.stderr)
    return found[1]


def is_elsewhere(wanted: str | None, folder: Path) -> bool:
    """Tell whether --resume names a file outside the run's folder."""
    return wanted not in (None, "auto") and Path(wanted).parent.resolve() != folder.resolve()


def _refuse_weights(path: str) -> None:
    """Say it where what should be a checkpoint is a file of weights."""
    try:
        load_weights(path)
    except UserError:
        return
    raise UserError(
        f"--resume: {path} holds weights, not the state of a run; "
        f"start from them with --init-weights {path}"
    )


def start_from(path: Path, model: nn.Module) -> None:
    """Put the weights of a file into a network that is to be trained.

    Raises:
        UserError: they are not there, or of a network of another shape.
    """
    weights = load_weights(path).state_dict()
    for name, own in model.state_dict().items():
        if weights[name].shape != own.shape:
            raise UserError(
                f"--init-weights: {path} has {name} of shape {tuple(weights[name].shape)}; "
                f"what is trained has {tuple(own.shape)}"
            )
    model.load_state_dict(weights)
    print(f"start: the weights of {printable(path)}")


def same_precision(resumed: dict[str, Any] | None, wanted: str) -> str:
    """Return the precision to train in: of the interrupted run, where that or "auto" is wanted."""
    earlier = resumed["options"].get("precision", wanted) if resumed else wanted
    forms = ("auto", earlier, earlier.partition("-")[0])  # fp32-contiguous is asked for as fp32
    return earlier if wanted in forms else wanted


def deciding_options(
    args: argparse.Namespace, state: "TrainingState", training_set: str, evaluation_set: str
) -> dict[str, Any]:
    """Return what decides the figures of a run, which one that goes on must share.

    Args:
        args: the command line.
        state: of the run, before its first step.
        training_set: its identity, see `datasets.identity`.
        evaluation_set: the same of what it is measured on.
    """
    recipe = asdict(state.recipe)
    return {
        "recipe": recipe.pop("name"),
        **recipe,
        "training set": training_set,
        "evaluation set": evaluation_set,
        "init_weights": args.init_weights and str(args.init_weights.resolve()),
        "scale": args.scale,
        "seed": args.seed,
        "select": args.select,
        "eval_half": args.eval_half,
        "precision": state.precision.name,
        "loss_scale": args.loss_scale,
        "processes": state.world.size,
        "total_steps": state.total_steps,
    }


def restore(resumed: dict[str, Any], options: dict[str, Any], state: "TrainingState") -> None:
    """Put a run's state back.

    Args:
        resumed: a checkpoint.
        options: `deciding_options` of the run that goes on.
        state: takes over the state.

    Raises:
        UserError: the options are others than the checkpoint's, or it is of another kind of run. A
            run may become longer where its schedule does not depend on the length.
    """
    recipe = state.recipe
    for name, value in options.items():
        earlier = resumed["options"].get(name)
        longer = name in LENGTH and isinstance(earlier, int) and value > earlier
        if value == earlier or (longer and not recipe.planned):
            continue
        advice = "use the same, or start anew without --resume"
        if longer:
            advice = (
                f"the schedule of the recipe {recipe.name} is planned for the whole run; "
                f"start anew, or go on from its best.pth with --init-weights"
            )
        raise UserError(f"--resume: {name} is {value}, in the checkpoint {earlier}; {advice}")
    try:
        state.load_state_dict(resumed["training"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        if lack_of_memory(error):
            raise
        raise UserError("--resume: the checkpoint is of another kind of run") from None


def check_together(resumed: dict[str, Any] | None, world: World) -> None:
    """Fail on all processes when not all found the same checkpoint, or none."""
    step = resumed["training"].get("step", 0) if resumed else 0
    first, last = world.lowest(step), world.highest(step)
    if first != last:
        raise UserError(
            f"--resume: processes start from steps {first} to {last}; "
            f"all machines need the same --train_url, on a disk that they share"
        )


def load_newest(folder: Path) -> tuple[Path, dict] | None:
    """Return the newest intact checkpoint of a run's folder, or None when there is none at all.

    A damaged one is named on standard error and the one before is taken.

    Raises:
        UnreadableError: the newest may not be read, so that nobody knows whether it is intact.
        UserError: there are checkpoints, and none is intact.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            return path, load(path)
        except UnreadableError:
            raise
        except UserError as error:
            print(f"warning: {printable(error)}; trying the one before", file=sys.stderr)
    if paths:
        raise UserError(f"no intact checkpoint in {folder}; start again in another --outputs-dir")
    return None


def _newest_first(folder: Path) -> list[Path]:
    try:
        paths = [path for path in folder.iterdir() if _step(path) >= 0]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnreadableError(f"cannot read {folder}: {error.strerror}") from None
    return sorted(paths, key=_step, reverse=True)


def _step(path: Path) -> int:
    """Return the step of a checkpoint by its name; −1 when it is another file."""
    match = re.fullmatch(r"checkpoint_(\d+)\.pt", path.name)
    return int(match[1]) if match else -1
