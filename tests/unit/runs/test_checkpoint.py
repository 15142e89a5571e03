"""Checkpoints are whole or absent, and damage never passes."""

import errno
import random
from pathlib import Path

import pytest

from grouped_lm.errors import CheckpointError, DiskError, SchemaError
from grouped_lm.runs import checkpoint
from grouped_lm.runs.checkpoint import list_checkpoints, load_latest, read_verified, step_folder, write_checkpoint

FILES = {"state.safetensors": bytes(range(256)) * 4, "state.json": b'{"step": 1}'}


def test_written_and_read_back(tmp_path):
    write_checkpoint(tmp_path, 7, FILES, keep=2)
    assert load_latest(tmp_path) == (7, FILES)
    assert load_latest(tmp_path / "elsewhere") is None


def test_keeps_the_newest_and_never_fewer_than_two(tmp_path):
    for step in range(1, 6):
        write_checkpoint(tmp_path, step, FILES, keep=1)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000004", "step-00000005"]


def damage(folder: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(folder.iterdir()))
    data = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "truncate", "zero", "append", "delete"])
    place = rng.randrange(len(data))
    if kind == "flip":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del data[place:]
    elif kind == "zero":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    elif kind == "append":
        data += b"\x00"
    path.write_bytes(data) if kind != "delete" else path.unlink()
    return f"{kind} {path.name}"


def test_damage_is_found_and_the_one_before_is_used(tmp_path, capsys):
    rng, found = random.Random(0), 0
    for trial in range(200):
        parent = tmp_path / str(trial)
        write_checkpoint(parent, 1, FILES, keep=2)
        folder = write_checkpoint(parent, 2, FILES, keep=2)
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        what = damage(folder, rng)
        if {p.name: p.read_bytes() for p in folder.iterdir()} == before:
            continue  # zeroed what was zero
        found += 1
        assert load_latest(parent) == (1, FILES), what
        assert list(parent.glob("corrupt-step-00000002-*")), what
    assert found > 150
    assert "trying the one before" in capsys.readouterr().err


def test_all_damaged_is_an_error_and_nothing_is_deleted(tmp_path):
    (write_checkpoint(tmp_path, 1, FILES, keep=2) / "state.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        load_latest(tmp_path)
    assert list(tmp_path.glob("corrupt-*"))


def test_a_full_disk_leaves_the_old_one(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, 1, FILES, keep=2)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_flushed", full)
    with pytest.raises(DiskError, match="No space left"):
        write_checkpoint(tmp_path, 2, FILES, keep=2)
    assert load_latest(tmp_path) == (1, FILES)
    assert not list(tmp_path.glob(".tmp-*"))


def test_leftovers_of_a_kill_are_not_taken_for_checkpoints(tmp_path):
    write_checkpoint(tmp_path, 1, FILES, keep=2)
    stale = tmp_path / ".tmp-step-00000002-99"
    stale.mkdir()
    (stale / "state.json").write_bytes(b"half")
    assert load_latest(tmp_path) == (1, FILES)
    write_checkpoint(tmp_path, 2, FILES, keep=2)
    assert not stale.exists()


def test_another_schema_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SCHEMA_VERSION", 99)
    write_checkpoint_folder = step_folder(tmp_path, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "verify", lambda folder: None)
        write_checkpoint(tmp_path, 1, FILES, keep=2)
    monkeypatch.undo()
    with pytest.raises(SchemaError, match="schema version 99"):
        read_verified(write_checkpoint_folder)
