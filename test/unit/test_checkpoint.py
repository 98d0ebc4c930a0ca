"""Checkpoints: whole or refused, the newest two kept, nothing executed."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from samples import Mischief

from runtime.errors import RunError, UserError
from training import checkpoint


def state(step: int, **training: object) -> dict:
    """A state of the form that results.py gives to a checkpoint."""
    return {"options": {"lr": 1e-4}, "training": {"step": step, **training}, "recorder": {}}


def test_what_is_saved_comes_back_and_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 90, 100):
        weights = torch.full((3,), float(step))
        checkpoint.save(tmp_path, step, checkpoint.pack(state(step, w=weights)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint_100.pt", "checkpoint_90.pt"]
    path, loaded = checkpoint.load_newest(tmp_path)
    assert path.name == "checkpoint_100.pt"
    assert loaded["training"]["step"] == 100
    assert torch.equal(loaded["training"]["w"], torch.full((3,), 100.0))


def test_an_old_one_that_someone_else_removes_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "checkpoint_1.pt"
    newest_first = checkpoint._newest_first
    monkeypatch.setattr(checkpoint, "_newest_first", lambda folder: [*newest_first(folder), gone])
    for step in (2, 3):
        checkpoint.save(tmp_path, step, checkpoint.pack(state(step)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint_2.pt", "checkpoint_3.pt"]


def test_an_old_one_that_cannot_be_removed_stays(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_1.pt").mkdir()
    for step in (2, 3):
        checkpoint.save(tmp_path, step, checkpoint.pack(state(step)))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_checkpoint_is_one_plain_file_of_torch(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, checkpoint.pack(state(1, w=torch.ones(3))))
    loaded = torch.load(path, weights_only=True)
    assert set(loaded) == {"options", "training", "recorder"}
    assert torch.equal(loaded["training"]["w"], torch.ones(3))


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path) is None


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_torn_file_falls_back_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture, share: float
) -> None:
    checkpoint.save(tmp_path, 1, checkpoint.pack(state(1)))
    newest = checkpoint.save(tmp_path, 2, checkpoint.pack(state(2)))
    whole = newest.read_bytes()
    newest.write_bytes(whole[: int(share * len(whole))])
    assert checkpoint.load_newest(tmp_path)[1] == state(1)
    assert f"warning: {newest}" in capsys.readouterr().err


def test_one_that_may_not_be_read_is_not_damaged(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 5, checkpoint.pack(state(5)))
    newest = tmp_path / "checkpoint_10.pt"
    newest.mkdir()  # root may read all files, but no folder
    with pytest.raises(UserError, match=f"^cannot read {newest}: Is a directory$"):
        checkpoint.load_newest(tmp_path)


@pytest.mark.parametrize("hidden", [False, True])
def test_one_for_which_memory_is_short_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: bool
) -> None:
    checkpoint.save(tmp_path, 5, checkpoint.pack(state(5)))

    def read(*_: object) -> bytes:
        try:
            raise MemoryError
        except MemoryError:
            if hidden:  # as zipfile does when it closes what it could not write
                raise ValueError("I/O operation on closed file.") from None
            raise

    monkeypatch.setattr("zipfile.ZipFile.read", read)
    with pytest.raises(MemoryError):
        checkpoint.load_newest(tmp_path)


def test_whatever_bytes_are_damaged_nothing_wrong_is_loaded(tmp_path: Path) -> None:
    """Every byte in turn: it is refused, or lies where it has no meaning."""
    weights = torch.arange(64.0)
    path = checkpoint.save(tmp_path, 1, checkpoint.pack(state(1, w=weights)))
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 0x10
        path.write_bytes(data)
        try:
            loaded = checkpoint.load(path)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert torch.equal(loaded["training"].pop("w"), weights)
            assert loaded == state(1)
    assert refused > len(whole) // 2
    with pytest.raises(UserError, match="no intact checkpoint"):
        path.write_bytes(whole[:-1])
        checkpoint.load_newest(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(value)])
def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, save: object) -> None:
    mischief, path = Mischief(tmp_path / "executed"), tmp_path / "checkpoint_1.pt"
    save(mischief if save is torch.save else pickle.dumps(mischief), path)
    with pytest.raises(UserError, match="no whole checkpoint"):
        checkpoint.load(path)
    assert not (tmp_path / "executed").exists()


def test_weights_are_saved_as_fp32(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    weights = {"a": torch.ones(2, dtype=torch.float16, requires_grad=True)}
    path.write_bytes(checkpoint.pack_weights(weights))
    loaded = torch.load(path, weights_only=True)
    assert loaded["a"].dtype == torch.float32
    assert not loaded["a"].requires_grad


def test_a_disk_that_is_full_leaves_the_checkpoints_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (0, 1):
        checkpoint.save(tmp_path, step, checkpoint.pack(state(step)))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"checkpoint_2\.pt: No space left on device"):
        checkpoint.save(tmp_path, 2, checkpoint.pack(state(2)))
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["checkpoint_0.pt", "checkpoint_1.pt"]
