"""Checkpoints to go on from: written as a whole, with a checksum, the newest two kept."""

import hashlib
import io
import re
import sys
from pathlib import Path

import torch

from runtime.errors import UserError
from runtime.files import write_bytes
from runtime.text import printable
from runtime.unpickle import load_tensors

KEEP = 2


def pack(state: dict) -> bytes:
    """Return the bytes of a checkpoint: the state beside its SHA-256, so that a torn one shows.

    Args:
        state: what `torch.load(weights_only=True)` can read; tensors on the CPU.
    """
    payload = _serialise(state)
    digest = hashlib.sha256(payload).hexdigest()
    data = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    return _serialise({"sha256": digest, "payload": data})


def pack_weights(weights: dict[str, torch.Tensor]) -> bytes:
    """Return the bytes of a plain state dict of fp32 CPU tensors, as published `.pth` files are."""
    state = {name: w.detach().float().cpu().contiguous().clone() for name, w in weights.items()}
    return _serialise(state)


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
        old.unlink(missing_ok=True)
    return path


def load(path: Path | str) -> dict:
    """Read one checkpoint; nothing in it is executed.

    Raises:
        UserError: it is missing, damaged or no checkpoint.
    """
    try:
        outer = load_tensors(path)
        payload = outer["payload"].numpy().tobytes()
        if hashlib.sha256(payload).hexdigest() != outer["sha256"]:
            raise UserError(f"{path} is damaged: its checksum does not match")
        state = load_tensors(io.BytesIO(payload))
        if not isinstance(state, dict):
            raise UserError(f"{path} holds no state of a run")
        return state
    except FileNotFoundError:
        raise UserError(f"no checkpoint {path}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no whole checkpoint ({error})") from None


def load_newest(folder: Path) -> tuple[Path, dict] | None:
    """Return the newest intact checkpoint of a run's folder, or None when there is none at all.

    A damaged one is named on standard error and the one before is taken.

    Raises:
        UserError: there are checkpoints, and none is intact.
    """
    paths = _newest_first(folder)
    for path in paths:
        try:
            return path, load(path)
        except UserError as error:
            print(f"warning: {printable(error)}; trying the one before", file=sys.stderr)
    if paths:
        raise UserError(f"no intact checkpoint in {folder}; start again in another --outputs-dir")
    return None


def _serialise(value: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _newest_first(folder: Path) -> list[Path]:
    steps = {
        path: int(match[1])
        for path in folder.glob("checkpoint_*.pt")
        if (match := re.fullmatch(r"checkpoint_(\d+)\.pt", path.name))
    }
    return sorted(steps, key=steps.__getitem__, reverse=True)
