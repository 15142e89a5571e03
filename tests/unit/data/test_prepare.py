import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from filelock import FileLock

from grouped_lm.config import TokenizerConfig
from grouped_lm.data import (
    TextConfig,
    TinytalesConfig,
    build_tokenizer,
    encode,
    prepare_data,
    prepare_split,
    token_file,
    token_writer,
)
from grouped_lm.data.sources import readers, text_files
from grouped_lm.errors import DataError, DiskError

STORIES = ["One day.", "naïve 🙂 dog", "<b>third</b>\n\nlast"]


@pytest.fixture
def config(tmp_path):
    text = tmp_path / "x.txt"
    text.write_text("\n<|endoftext|>\n".join([*STORIES[:2], " ", STORIES[2]]))
    return TextConfig(name="x", train=str(text), valid=str(text), cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def tales(tmp_path):
    return TinytalesConfig(num_train_stories=400, num_valid_stories=20, cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_file_and_manifest(config, name):
    tokenizer = build_tokenizer(TokenizerConfig(name=name))
    file = prepare_split(config, TokenizerConfig(name=name), "train")
    expected = [tokenizer.eot_id]
    for story in STORIES:
        expected += tokenizer.encode_document(story).tolist()
    ids, starts = file.tokens(), file.document_offsets()
    assert ids.tolist() == expected
    assert ids.dtype == np.uint16
    ends = [*starts[1:], len(ids)]
    assert [tokenizer.decode(ids[a : b - 1]) for a, b in zip(starts, ends, strict=True)] == STORIES
    assert [file.num_tokens, file.target_tokens, file.num_documents] == [len(ids), len(ids) - 1, 3]
    assert file.text_bytes == sum(len(story.encode()) for story in STORIES)
    assert file.manifest["empty_documents"] == 1
    assert file.manifest["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert file.manifest["source"]["files"][0]["path"] == config.train
    assert file.counts().tolist() == np.bincount(expected, minlength=tokenizer.vocab_size).tolist()
    assert file.folder.name.startswith("x-train-")


def test_wide_ids_for_a_wide_vocabulary(config, monkeypatch):
    tokenizer = build_tokenizer(TokenizerConfig(name="bytes"))
    monkeypatch.setattr(type(tokenizer), "vocab_size", 70_000)
    file = prepare_split(config, TokenizerConfig(name="bytes"), "train")
    assert file.tokens().dtype == np.uint32
    assert file.tokens()[1] == ord("O")
    assert len(file.counts()) == 70_000


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_threads_change_nothing(tales, tmp_path, monkeypatch, name):
    monkeypatch.setattr(encode, "BATCH_CHARS", 5_000)
    hashes = set()
    for workers in (1, 2, 5, None):
        tales.cache_dir = str(tmp_path / f"cache-{workers}")
        file = prepare_split(tales, TokenizerConfig(name=name), "train", workers=workers)
        hashes.add((file.manifest["sha256"], file.manifest["documents_sha256"], file.num_documents))
    assert len(hashes) == 1
    assert file.num_documents == 400


def test_progress_ends_at_the_total(config, tales, monkeypatch):
    monkeypatch.setattr(encode, "BATCH_CHARS", 5_000)
    for data, total in ((tales, 400), (config, os.path.getsize(config.train))):  # noqa: PTH202
        seen = []
        prepare_split(data, TokenizerConfig(), "train", progress=lambda *now, seen=seen: seen.append(now))
        assert seen[-1] == (total, total)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert all(t == total for _, t in seen)
        again = []
        prepare_split(data, TokenizerConfig(), "train", progress=lambda *now, again=again: again.append(now))
        assert again == []


def test_reused_until_something_changes(config):
    first = prepare_data(config, TokenizerConfig())
    made = (first.train.folder / "manifest.json").stat().st_mtime_ns
    assert first.train.folder != first.valid.folder
    assert prepare_data(config, TokenizerConfig()).train.folder == first.train.folder
    assert (first.train.folder / "manifest.json").stat().st_mtime_ns == made
    assert prepare_split(config, TokenizerConfig(name="bytes"), "train").folder != first.train.folder
    with open(config.train, "a") as file:  # noqa: PTH123
        file.write(" and more")
    assert prepare_split(config, TokenizerConfig(), "train").folder != first.train.folder


def damage_truncate(folder):
    os.truncate(folder / "tokens.bin", 4)


def damage_flip(folder):
    content = bytearray((folder / "tokens.bin").read_bytes())
    content[5] ^= 1
    (folder / "tokens.bin").write_bytes(content)


def damage_offsets(folder):
    (folder / "documents.bin").unlink()


def damage_manifest(folder):
    (folder / "manifest.json").write_text('{"tokens": 3')


def damage_key(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "key": "another"}))


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_offsets, damage_manifest, damage_key])
def test_damage_is_seen_and_mended(config, caplog, damage):
    file = prepare_split(config, TokenizerConfig(), "train")
    whole = file.tokens().tolist()
    damage(file.folder)
    mended = prepare_split(config, TokenizerConfig(), "train")
    assert mended.tokens().tolist() == whole
    assert "rebuilding" in caplog.text


def test_large_files_are_measured_not_hashed(config, monkeypatch):
    file = prepare_split(config, TokenizerConfig(), "train")
    monkeypatch.setattr(token_file, "VERIFY_MAX_BYTES", 1)
    damage_flip(file.folder)
    assert token_file.read_token_file(file.folder, file.manifest["key"])[0] is not None
    damage_truncate(file.folder)
    assert token_file.read_token_file(file.folder, file.manifest["key"])[0] is None


def test_nothing_but_whitespace(config, tmp_path):
    (tmp_path / "x.txt").write_text("\n<|endoftext|>\n \n")
    with pytest.raises(DataError, match="no document with text"):
        prepare_split(config, TokenizerConfig(), "train")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def test_an_error_in_the_middle_leaves_nothing(config, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "BATCH_CHARS", 10)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1000)
    (tmp_path / "x.txt").write_bytes(b"story <|endoftext|>" * 1000 + b"\xff")
    with pytest.raises(DataError, match="not UTF-8 at byte 19000"):
        prepare_split(config, TokenizerConfig(name="bytes"), "train", workers=2)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def test_unwritable_cache(config, tmp_path):
    (tmp_path / "file").write_text("")
    config.cache_dir = str(tmp_path / "file" / "cache")
    with pytest.raises(DiskError, match=r"cannot write .*data.cache_dir names another place"):
        prepare_split(config, TokenizerConfig(), "train")


BUILDER = """
import os, signal, sys, time
from grouped_lm.config import TokenizerConfig
from grouped_lm.data import TinytalesConfig, encode, prepare_split
encode.BATCH_CHARS = 20_000
calls = []
def progress(done, total):
    calls.append(done)
    time.sleep(0.02)
    if sys.argv[2] == "die" and len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
tales = TinytalesConfig(num_train_stories=400, cache_dir=sys.argv[1])
file = prepare_split(tales, TokenizerConfig(name="bytes"), "train", progress)
print(len(calls), file.manifest["sha256"])
"""


def start_builder(tales, mode):
    command = [sys.executable, "-c", BUILDER, tales.cache_dir, mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


STOPPED_BUILDER = """
import os, signal, sys
from grouped_lm.config import TokenizerConfig
from grouped_lm.data import TinytalesConfig, encode, prepare_split, token_writer
encode.BATCH_CHARS, token_writer.SHARD_BYTES = 20_000, 50_000
calls = []
def progress(done, total):
    calls.append(done)
    if len(calls) == 9:
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
tales = TinytalesConfig(num_train_stories=400, num_valid_stories=20, cache_dir=sys.argv[1])
prepare_split(tales, TokenizerConfig(name="bytes"), "train", progress)
"""


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(encode, "BATCH_CHARS", 20_000)
    monkeypatch.setattr(token_writer, "SHARD_BYTES", 50_000)


@pytest.mark.parametrize("number", ["SIGKILL", "SIGINT"])
def test_a_stopped_build_goes_on_after_its_last_shard(tales, tmp_path, small_shards, caplog, number):
    command = [sys.executable, "-c", STOPPED_BUILDER, tales.cache_dir, number]
    assert subprocess.run(command, capture_output=True).returncode != 0
    (left,) = (tmp_path / "cache").glob(".*.tmp")
    journal = json.loads((left / "journal.json").read_text())
    assert journal["done"]["batches"] >= 3
    caplog.set_level("INFO")
    seen = []
    resumed = prepare_split(tales, TokenizerConfig(name="bytes"), "train", lambda *now: seen.append(now))
    assert f"after {journal['done']['tokens']:,} tokens" in caplog.text
    assert seen[0][0] > journal["done"]["documents"], "what was done is not done again"
    assert sorted(p.name for p in resumed.folder.iterdir()) == ["documents.bin", "manifest.json", "tokens.bin"]
    tales.cache_dir = str(tmp_path / "unbroken")
    unbroken = prepare_split(tales, TokenizerConfig(name="bytes"), "train")
    assert (resumed.folder / "manifest.json").read_bytes() == (unbroken.folder / "manifest.json").read_bytes()
    for name in ("documents.bin", "tokens.bin"):
        assert (resumed.folder / name).read_bytes() == (unbroken.folder / name).read_bytes()


@pytest.mark.parametrize("name", ["tokens.bin", "documents.bin", "journal.json"])
def test_a_stopped_build_that_was_touched_is_built_anew(tales, tmp_path, small_shards, caplog, name):
    subprocess.run([sys.executable, "-c", STOPPED_BUILDER, tales.cache_dir, "SIGKILL"], capture_output=True)
    (path,) = (tmp_path / "cache").glob(f".*.tmp/{name}")
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)
    file = prepare_split(tales, TokenizerConfig(name="bytes"), "train")
    assert "from the start" in caplog.text
    tales.cache_dir = str(tmp_path / "unbroken")
    assert file.manifest == prepare_split(tales, TokenizerConfig(name="bytes"), "train").manifest


def test_other_batches_do_not_go_on_with_a_build(tales, tmp_path, small_shards, monkeypatch, caplog):
    subprocess.run([sys.executable, "-c", STOPPED_BUILDER, tales.cache_dir, "SIGKILL"], capture_output=True)
    monkeypatch.setattr(encode, "BATCH_CHARS", 30_000)
    assert prepare_split(tales, TokenizerConfig(name="bytes"), "train").num_documents == 400
    assert "it belongs to another build" in caplog.text


def test_large_files_are_hashed_once_while_nobody_touches_them(config, monkeypatch):
    hashed = []
    real = text_files.file_sha256
    monkeypatch.setattr(text_files, "file_sha256", lambda path: hashed.append(path.name) or real(path))
    monkeypatch.setattr(text_files, "REMEMBERED_BYTES", 1)
    first = prepare_split(config, TokenizerConfig(), "train")
    assert prepare_split(config, TokenizerConfig(), "train").folder == first.folder
    assert len(hashed) == 1
    with open(config.train, "r+") as file:  # noqa: PTH123
        file.write("E")
    assert prepare_split(config, TokenizerConfig(), "train").folder != first.folder
    assert len(hashed) == 2


def test_what_stopped_builds_of_other_text_have_left_goes_after_a_week(config, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in ("old", "held", "new"):
        left = cache / f".{config.name}-train-{name}.tmp"
        left.mkdir()
        (left / "tokens.bin").write_bytes(b"ids")
        if name != "new":
            os.utime(left, (0, 0))
    with FileLock(cache / f".{config.name}-train-held.lock"):
        prepare_split(config, TokenizerConfig(name="bytes"), "train")
    assert sorted(path.name.split("-")[-1] for path in cache.glob(".*.tmp")) == ["held.tmp", "new.tmp"]


def test_processes_at_once_build_once(tales):
    builders = [start_builder(tales, "live") for _ in range(3)]
    results = [builder.communicate(timeout=60)[0].split() for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0]
    assert sorted(int(calls) > 0 for calls, _ in results) == [False, False, True]
    assert len({sha256 for _, sha256 in results}) == 1


def test_a_killed_builder_leaves_no_half_cache(tales, tmp_path):
    builder = start_builder(tales, "die")
    builder.communicate(timeout=60)
    assert builder.returncode == -signal.SIGKILL
    left = [p.name for p in (tmp_path / "cache").iterdir() if p.is_dir()]
    assert [name.startswith(".") for name in left] == [True], "only the temporary folder"
    file = prepare_split(tales, TokenizerConfig(name="bytes"), "train")
    assert file.num_documents == 400
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.is_dir()] == [file.folder.name]
