"""A BPE of one's own: lossless, trained once per text and size, kept with the run."""

import json
from pathlib import Path

import numpy as np
import pytest

from grouped_lm.config import DataConfig, TokenizerConfig
from grouped_lm.data import TextConfig, build_tokenizer, iter_documents, prepare_split
from grouped_lm.data.sources import readers
from grouped_lm.data.tokenizers import build as build_module
from grouped_lm.data.tokenizers.bpe import byte_characters, read_bpe, train_bpe
from grouped_lm.errors import ConfigError, DataError


@pytest.fixture
def data(texts, tmp_path) -> DataConfig:
    return TextConfig(train=texts["train"], valid=texts["valid"], cache_dir=str(tmp_path / "cache"))


def test_every_byte_has_an_id_of_its_own():
    assert sorted(byte_characters().values()) == list(range(256))
    tokenizer = train_bpe(iter(["ab ab ab"]), 258)
    assert {tokenizer.token_bytes(i) for i in range(256)} == {bytes([b]) for b in range(256)}
    odd = "".join(chr(c) for c in range(0x2000)) + "\U0001f642<|endoftext|>"
    ids = tokenizer.encode(odd)
    assert tokenizer.decode(ids) == odd
    assert max(ids) < tokenizer.eot_id == 257


def test_merges_shorten_the_text_it_was_trained_on(data):
    small, large = (train_bpe(iter_documents(data, "train"), size) for size in (260, 320))
    text = next(iter_documents(data, "valid"))
    assert len(large.encode(text)) < len(small.encode(text)) < len(text.encode())
    assert b" the" not in {large.token_bytes(i) for i in range(256)}
    assert large.fingerprint == train_bpe(iter_documents(data, "train"), 320).fingerprint != small.fingerprint


def test_trained_once_per_text_and_size_and_on_training_text_alone(data, monkeypatch):
    trained = []
    original = train_bpe
    monkeypatch.setattr(build_module, "train_bpe", lambda *words: trained.append(words[1]) or original(*words))
    config = TokenizerConfig(name="bpe", vocab_size=300)
    valid, train = (prepare_split(data, config, split) for split in ("valid", "train"))
    assert trained == [300]
    assert valid.manifest["tokenizer"] == train.manifest["tokenizer"]
    assert train.manifest["tokenizer"]["vocab_size"] == 300
    prepare_split(data, TokenizerConfig(name="bpe", vocab_size=310), "train")
    assert trained == [300, 310]
    tokenizer = build_tokenizer(config, data)
    whole = [t for text in iter_documents(data, "train") for t in tokenizer.encode_document(text).tolist()]
    assert train.tokens().tolist() == [299, *whole]
    assert train.text_bytes == sum(len(text.encode()) for text in iter_documents(data, "train"))
    assert train.tokens().dtype == np.uint16


ODD_TEXT = "It's  a dog.\n\n\tHe said:  'we'll \x1c go'!\u00a0 7 \u3000 \u4e2d " * 40


def test_fragments_give_the_merges_of_the_whole_text(tmp_path, monkeypatch):
    path = tmp_path / "long.txt"
    path.write_text(" ".join(f"{ODD_TEXT} word{number % 7}" for number in range(5)), encoding="utf-8")
    data = TextConfig(train=str(path), valid=str(path), cache_dir=str(tmp_path / "cache"))
    whole = train_bpe(iter_documents(data, "train"), 285)
    monkeypatch.setattr(readers, "FRAGMENT_CHARS", 500)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 97)
    longest = []
    original = train_bpe

    def measured(texts, size):
        return original((longest.append(len(text)) or text for text in texts), size)

    monkeypatch.setattr(build_module, "train_bpe", measured)
    built = build_tokenizer(TokenizerConfig(name="bpe", vocab_size=285), data)
    assert built.fingerprint == whole.fingerprint
    assert len(longest) > 10
    assert max(longest) < 700


@pytest.mark.parametrize("content", ["", "{}", '{"version": "1.0", "model": '])
def test_a_broken_tokenizer_in_the_cache_is_trained_again(data, tmp_path, caplog, content):
    readers.warn_once.cache_clear()
    config = TokenizerConfig(name="bpe", vocab_size=300)
    first = build_tokenizer(config, data)
    (cached,) = (tmp_path / "cache").glob("bpe-*.json")
    good = cached.read_bytes()
    cached.write_text(content)
    read_bpe.cache_clear()  # as in another process
    assert build_tokenizer(config, data).fingerprint == first.fingerprint
    assert cached.read_bytes() == good
    assert caplog.text.count("training the tokenizer again: cannot read the tokenizer") == 1
    own = tmp_path / "own.json"
    own.write_text(content)
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        build_tokenizer(TokenizerConfig(name="bpe", vocab_size=300, file=str(own)), data)
    assert own.read_text() == content


def test_too_little_text_and_broken_files_are_said(data, tmp_path):
    with pytest.raises(DataError, match=r"tokens at most, tokenizer\.vocab_size asks for 8192"):
        prepare_split(data, TokenizerConfig(name="bpe", vocab_size=8192), "train")
    assert not list((tmp_path / "cache").glob("*.json"))
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        build_tokenizer(TokenizerConfig(name="bpe", vocab_size=300, file=str(broken)))
    train_bpe(iter_documents(data, "train"), 300).save(tmp_path / "ok.json")
    with pytest.raises(DataError, match="has 300 tokens"):
        build_tokenizer(TokenizerConfig(name="bpe", vocab_size=301, file=str(tmp_path / "ok.json")))


@pytest.mark.parametrize(
    "values", [{"name": "bpe"}, {"name": "bpe", "vocab_size": 257}, {"vocab_size": 300}, {"file": "x.json"}]
)
def test_sizes_belong_to_bpe(values):
    with pytest.raises(ConfigError, match=r"tokenizer\.(vocab_size|file)"):
        TokenizerConfig(**values)


def test_a_run_keeps_its_tokenizer(gvc, tiny, texts):
    words = [word for word in tiny if not word.startswith("tokenizer=")]
    words += ["tokenizer=bpe", "tokenizer.vocab_size=300", "grouping=brown", "hydra.run.dir=run"]
    run = gvc("train", *words).run_dir
    result = json.loads((run / "result.json").read_text())
    assert result["tokenizer"] == "bpe-300"
    evaluated = gvc("eval", str(run), "--json", "data.train=gone.txt")
    found = json.loads(evaluated.out)["val/bits_per_byte"]
    assert found == pytest.approx(result["val/bits_per_byte"], rel=1e-6), (
        evaluated.err
    )  # rows are summed in another order
    assert gvc("sample", str(run), "--prompt", "Once").code == 0
    assert json.loads(gvc("ls", "run", "--json").out)[0]["vocab_size"] == 300
    groups = json.loads(Path(run / "grouping.json").read_text())
    assert groups["special_tokens"]["<|endoftext|>"]["id"] == 299
    assert groups["vocab_size"] == 300
    assert gvc("plan", *words[:1], *words[-4:-1], "--memory", "1GiB").code == 0
    assert gvc("train", *words).code == 0  # the same run again: nothing to do
