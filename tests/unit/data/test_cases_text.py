"""Text that fails or surprises: small inputs, each with the answer that a user needs."""

import bz2
import gzip
import json
import logging
import lzma
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grouped_lm.config import TokenizerConfig
from grouped_lm.data import TextConfig, iter_documents, prepare_data
from grouped_lm.data.sources import readers
from grouped_lm.errors import DataError

BYTES = TokenizerConfig(name="bytes")
STORY = "Once upon a time there was a cat."


def read(path: Path | str) -> list[str]:
    return list(iter_documents(TextConfig(train=str(path), valid=str(path)), "train"))


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as raised:
        read(path)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.fixture(autouse=True)
def _warnings_anew():
    readers.warn_once.cache_clear()


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("pack", "remedy"),
    [
        (gzip.compress, "gunzip"),
        (bz2.compress, "bunzip2"),
        (lzma.compress, "unxz"),
        (lambda _: b"PK\x03\x04", "zip"),
    ],
)
def test_case_T1_a_packed_file_under_another_suffix(tmp_path, suffix, pack, remedy):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(pack(STORY.encode()))
    message = refusal(path)
    assert remedy in message
    assert "UTF-8" not in message


def test_case_T1_a_parquet_file_under_another_suffix(tmp_path):
    path = tmp_path / "x.txt"
    pq.write_table(pa.table({"text": [STORY]}), path)
    assert "is a parquet file: rename it to .parquet" in refusal(path)


@pytest.mark.parametrize("indent", [None, 2])
def test_case_T1_a_json_array_under_jsonl(tmp_path, indent):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps([{"text": STORY}] * 3, indent=indent))
    message = refusal(path)
    assert "one object per line" in message
    assert "jq -c '.[]' x.jsonl > lines.jsonl" in message
    assert STORY not in message


def test_case_T1_an_object_over_several_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": STORY}, indent=2))
    assert "line 1 is not JSON" in refusal(path)
    assert "one object per line" in refusal(path)


def test_case_T1_a_binary_parquet_column(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": pa.array([STORY.encode()], pa.binary())}), path)
    assert "row 0, column text is binary; convert the column to text" in refusal(path)


@pytest.mark.parametrize("content", [" ", "\n\n\t\n", "<|endoftext|>\n<|endoftext|>"])
def test_case_T1_a_blank_text(tmp_path, content):
    path = tmp_path / "x.txt"
    path.write_text(content)
    with pytest.raises(DataError) as raised:
        prepare_data(TextConfig(train=str(path), valid=str(path), cache_dir=str(tmp_path / "cache")), BYTES)
    assert str(raised.value) == f"no document with text in {path}: give a text with more than blank lines"


LINES = "one\ntwo\n\nthree"


@pytest.mark.parametrize("end", ["\r\n", "\r"])
@pytest.mark.parametrize("block_bytes", [1, 2, 1 << 20])
def test_case_T2_windows_line_ends_are_read_as_lf_and_that_is_logged_once(
    tmp_path, monkeypatch, caplog, end, block_bytes
):
    monkeypatch.setattr(readers, "BLOCK_BYTES", block_bytes)
    text = LINES.replace("\n", end)
    (tmp_path / "x.txt").write_bytes(f"{text}{end}<|endoftext|>{end}{text}".encode())
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": text}))
    pq.write_table(pa.table({"text": [text]}), tmp_path / "x.parquet")
    for _ in range(2):
        assert read(tmp_path / "x.txt") == [LINES, LINES]
    assert caplog.text.count("x.txt has Windows line ends (CR LF or CR); they are read as LF") == 1
    assert read(tmp_path / "x.jsonl") == read(tmp_path / "x.parquet") == [LINES]


def test_case_T2_no_word_about_other_line_ends(tmp_path, caplog):
    (tmp_path / "x.txt").write_bytes(b"one\ntwo")
    assert read(tmp_path / "x.txt") == ["one\ntwo"]
    assert caplog.text == ""


def test_case_T2_crlf_and_lf_texts_have_the_same_tokens(tmp_path):
    tokens = []
    for name, end in (("unix", "\n"), ("windows", "\r\n")):
        path = tmp_path / f"{name}.txt"
        path.write_bytes((LINES * 50).replace("\n", end).encode())
        data = TextConfig(train=str(path), valid=str(path), cache_dir=str(tmp_path / "cache"))
        tokens.append(np.array(prepare_data(data, BYTES).train.tokens()))
    assert np.array_equal(*tokens)


@pytest.mark.parametrize(("length", "noted"), [(1, True), (150, True), (400, False)])
def test_case_T3_a_validation_text_of_few_tokens_is_noted(tmp_path, caplog, length, noted):
    (tmp_path / "train.txt").write_text(STORY * 20)
    (tmp_path / "valid.txt").write_text("x" * length)
    texts = {key: str(tmp_path / f"{key}.txt") for key in ("train", "valid")}
    with caplog.at_level(logging.WARNING):
        corpus = prepare_data(TextConfig(**texts, cache_dir=str(tmp_path / "cache")), BYTES)
    assert corpus.valid.target_tokens == length + 1
    note = f"the validation text has {length + 1} tokens to predict: with fewer than 200 its loss and perplexity"
    assert (note in caplog.text) is noted


@pytest.mark.parametrize(
    ("length", "most", "cause", "advice"),
    [
        (400, 50, ", cut by data.max_valid_tokens=50", "set it to 200 or more"),
        (150, 50, ", cut by data.max_valid_tokens=50", "give more text in data.valid"),
        (49, 50, "", "give more text in data.valid"),
    ],
)
def test_case_T3_the_note_names_what_cut_the_validation_text(tmp_path, caplog, length, most, cause, advice):
    (tmp_path / "train.txt").write_text(STORY * 20)
    (tmp_path / "valid.txt").write_text("x" * length)
    texts = {key: str(tmp_path / f"{key}.txt") for key in ("train", "valid")}
    prepare_data(TextConfig(**texts, cache_dir=str(tmp_path / "cache"), max_valid_tokens=most), BYTES)
    note = f"the validation text has 50 tokens to predict{cause}: with fewer than 200 its loss and perplexity are"
    assert note in caplog.text
    assert caplog.messages[0].endswith(advice)


def test_a_long_name_of_a_text_is_cut_in_the_cache(tmp_path):
    (tmp_path / "a.txt").write_text(STORY * 20)
    texts = {key: str(tmp_path / "a.txt") for key in ("train", "valid")}
    config = TextConfig(name="long-" * 50, **texts, cache_dir=str(tmp_path / "cache"))
    folder = prepare_data(config, BYTES).train.folder
    assert folder.name.startswith("long-" * 20 + "-train-")
    assert prepare_data(config, BYTES).train.folder == folder


def test_case_C3_a_comma_in_a_name(tmp_path):
    (tmp_path / "a,b").mkdir()
    (tmp_path / "a,b" / "train.txt").write_text(STORY)
    (tmp_path / "a=b").mkdir()
    (tmp_path / "a=b" / "x.txt").write_text("two")
    config = TextConfig(train=[f"{tmp_path}/a,b/train.txt", f"{tmp_path}/a=b/x.txt"], valid=f"{tmp_path}/a=b/x.txt")
    assert list(iter_documents(config, "train")) == [STORY, "two"]


@pytest.mark.parametrize("folder", ["[v1]", "a[0-9]b", "x/[v1]/y"])
@pytest.mark.parametrize("pattern", ["*.txt", "**/*.txt", "?.txt", "[a-c].txt"])
def test_case_C4_a_glob_in_a_folder_whose_name_has_brackets(tmp_path, folder, pattern):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "a.txt").write_text(STORY)
    assert read(tmp_path / folder / pattern) == [STORY]


def test_case_C4_brackets_stay_a_set_where_they_match(tmp_path):
    for name in ("v1", "v2", "[v1]"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    assert read(tmp_path / "v[12]" / "*.txt") == ["v1", "v2"]
    assert "matches no file" in refusal(tmp_path / "v[34]" / "*.txt")


def test_case_24_utf_16_is_named_with_and_without_a_byte_order_mark(tmp_path):
    for name, codec in (("le", "utf-16-le"), ("be", "utf-16-be"), ("bom", "utf-16")):
        path = tmp_path / f"{name}.txt"
        path.write_bytes((STORY * 9).encode(codec))
        assert "UTF-16" in refusal(path)


def test_case_24_a_few_nul_bytes_are_noted_once(tmp_path, caplog):
    path = tmp_path / "a.txt"
    path.write_text(f"{STORY}\0{STORY}\0" * 9)
    with caplog.at_level(logging.WARNING):
        assert read(path) == [f"{STORY}\0{STORY}\0" * 9]
    assert [record.message for record in caplog.records] == [
        f"{path} has NUL bytes; they are read as characters of the text"
    ]


def test_case_24_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    assert "is a pipe or a device" in refusal(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match="/dev/null is a pipe or a device"):
        read("/dev/null")


def test_case_24_a_pdf_and_an_empty_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"%PDF-1.7 ...")
    assert "pdftotext" in refusal(tmp_path / "a.txt")
    (tmp_path / "b.txt").touch()
    assert refusal(tmp_path / "b.txt").endswith("b.txt is empty: give a file with text")
