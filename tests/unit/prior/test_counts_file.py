"""Counts on disk: the same bytes, whole or not there, and made again when they belong to something else."""

import json
import struct

import numpy as np
import pytest
from filelock import FileLock
from literal_kneser_ney import EOT, HISTORIES, VOCAB, small_text

from grouped_lm.data.token_file import TokenFile
from grouped_lm.errors import DataError
from grouped_lm.prior import build_kneser_ney
from grouped_lm.prior.store import counts_path, load_counts, load_or_build, save_counts


@pytest.mark.parametrize("min_counts", [None, (1, 1, 2)])
def test_save_and_load_and_save_give_the_same_bytes(tmp_path, min_counts):
    model = build_kneser_ney(small_text(), VOCAB, EOT, 3, min_counts)
    save_counts(model, tmp_path / "a", "key")
    loaded = load_counts(tmp_path / "a", "key")
    save_counts(loaded, tmp_path / "b", "key")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert np.array_equal(loaded.probabilities(HISTORIES), model.probabilities(HISTORIES))
    assert (loaded.order, loaded.min_counts) == (model.order, model.min_counts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]  # no temporary file is left


def test_a_damaged_or_foreign_file_is_refused(tmp_path):
    path = tmp_path / "counts"
    save_counts(build_kneser_ney(small_text(), VOCAB, EOT, 3), path, "key")
    with pytest.raises(DataError, match="made from something else"):
        load_counts(path, "another key")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="cannot be read as counts"):
        load_counts(path, "key")
    with pytest.raises(DataError, match="cannot be read as counts"):
        load_counts(tmp_path / "nothing", "key")


@pytest.mark.parametrize("place", [0, 0.1, 0.5, -9])
def test_flipped_bytes_of_the_tables_are_seen(tmp_path, place):
    path = tmp_path / "counts"
    save_counts(build_kneser_ney(small_text(), VOCAB, EOT, 3), path, "key")
    content = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", content[:8])[0]
    content[place if place < 0 else start + int(place * (len(content) - start))] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        load_counts(path, "key")


def test_a_changed_number_of_the_header_is_seen(tmp_path):
    path = tmp_path / "counts"
    save_counts(build_kneser_ney(small_text(), VOCAB, EOT, 3), path, "key")
    content = path.read_bytes()
    assert content.count(b'\\"vocab_size\\": 11') == 1
    path.write_bytes(content.replace(b'\\"vocab_size\\": 11', b'\\"vocab_size\\": 12'))
    with pytest.raises(DataError, match="is damaged"):
        load_counts(path, "key")


def token_file(folder, text, sha256="0" * 64) -> TokenFile:
    text.astype("<u2").tofile(folder / "tokens.bin")
    tokenizer = {"vocab_size": VOCAB, "eot_id": EOT}
    manifest = {"dtype": "uint16", "tokens": len(text), "sha256": sha256, "tokenizer": tokenizer}
    return TokenFile(folder=folder, manifest=manifest)


def test_counts_are_kept_beside_their_tokens_and_made_again_when_damaged(tmp_path, monkeypatch):
    tokens = token_file(tmp_path, small_text())
    model = load_or_build(tokens, 3)
    path = counts_path(tokens, 3)
    assert path.parent == tmp_path
    content = path.read_bytes()
    path.write_bytes(content[:100])
    load_or_build(tokens, 3)
    assert path.read_bytes() == content
    monkeypatch.setattr("grouped_lm.prior.store.build_kneser_ney", None)  # from here on nothing may be counted
    assert np.array_equal(load_or_build(tokens, 3).probabilities(HISTORIES), model.probabilities(HISTORIES))
    other = token_file(tmp_path, small_text(), sha256="1" * 64)
    assert (
        len({counts_path(tokens, 3), counts_path(tokens, 4), counts_path(tokens, 3, (1, 1, 2)), counts_path(other, 3)})
        == 4
    )


def test_counts_that_are_there_need_no_lock_and_no_writing(tmp_path, monkeypatch):
    tokens = token_file(tmp_path, small_text())
    model = load_or_build(tokens, 3)
    monkeypatch.setattr("grouped_lm.prior.store.build_kneser_ney", None)
    before = sorted(path.name for path in tmp_path.iterdir())
    with FileLock(tmp_path / f".{counts_path(tokens, 3).name}.lock"):  # somebody who counts: this call must not wait
        loaded = load_or_build(tokens, 3)
    assert np.array_equal(loaded.probabilities(HISTORIES), model.probabilities(HISTORIES))
    assert {path.name for path in tmp_path.iterdir()} - set(before) <= {f".{counts_path(tokens, 3).name}.lock"}


def test_a_file_without_a_hash_is_counted_again(tmp_path, caplog):
    tokens = token_file(tmp_path, small_text())
    model, path = load_or_build(tokens, 3), counts_path(tokens, 3)
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    inner = json.loads(header["__metadata__"]["kneser_ney"])
    del inner["sha256"]
    header["__metadata__"]["kneser_ney"] = json.dumps(inner)
    old = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(old)) + old + content[8 + size :])
    assert np.array_equal(load_or_build(tokens, 3).probabilities(HISTORIES), model.probabilities(HISTORIES))
    assert path.read_bytes() == content
    assert "counting again" in caplog.text
