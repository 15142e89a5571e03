import json
import os
import random
import re
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grouped_lm.config import DataConfig, TokenizerConfig
from grouped_lm.data import (
    HubConfig,
    TextConfig,
    TinytalesConfig,
    build_tokenizer,
    iter_documents,
    open_source,
    prepare_data,
)
from grouped_lm.data.sources import readers, text_files
from grouped_lm.data.sources.hub import HubSource
from grouped_lm.data.sources.readers import decode_blocks, split_documents
from grouped_lm.data.sources.text_files import check_splits_apart, find_files
from grouped_lm.errors import ConfigError, DataError


def text_config(train, **changes):
    return TextConfig(train=train, valid=train, **changes)


def documents(train, **changes):
    return list(iter_documents(text_config(str(train), **changes), "train"))


@pytest.fixture
def files(tmp_path):
    """The documents "one" to "four", in three kinds of file."""
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    (tmp_path / "b" / "c.jsonl").write_text('{"text": " three\\n", "n": 1}\n\n')
    pq.write_table(pa.table({"text": ["four"], "n": [1]}), tmp_path / "b" / "d.parquet")
    (tmp_path / "README.md").write_text("not text to train on")
    return tmp_path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a story", ["a story"]),
        ("\n a \n<|endoftext|>\n\tb\n", ["a", "b"]),
        ("a<|endoftext|>b<|endoftext|>", ["a", "b"]),
        ("a\n<|endoftext|>\n\n<|endoftext|>\nb", ["a", "", "b"]),
        ("<|endoftext|>a", ["", "a"]),
        ("two\r\nlines\n\nand  more", ["two\nlines\n\nand  more"]),
        ("\ufeffbyte order mark", ["byte order mark"]),
        ("é" * 5 + "<|endoftext|>" + "🙂", ["é" * 5, "🙂"]),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 3, 1 << 20])
def test_txt_borders(tmp_path, monkeypatch, content, expected, block_bytes):
    monkeypatch.setattr(readers, "BLOCK_BYTES", block_bytes)
    (tmp_path / "x.txt").write_bytes(content.encode())
    assert documents(tmp_path / "x.txt") == expected


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_a_long_document_in_fragments_has_the_same_tokens(monkeypatch, name):
    monkeypatch.setattr(readers, "FRAGMENT_CHARS", 40)
    text = ("It's  a dog.\n\n\tHe said:  'we'll \x1c go'!\u00a0 7 \u3000 " * 40 + "<|endoftext|>\n short \n") * 2
    chunks = [text[i : i + 17] for i in range(0, len(text), 17)]
    fragments = list(split_documents(chunks))
    assert len(fragments) > 50
    tokenizer = build_tokenizer(TokenizerConfig(name=name))
    whole = [(part.strip(), True) for part in text.split("<|endoftext|>") if part.strip()]
    assert "".join(part for part, _ in fragments) == "".join(part for part, _ in whole)
    assert tokenizer.encode_fragments(fragments).tolist() == tokenizer.encode_fragments(whole).tolist()


def test_whitespace_around_a_fragmented_document_is_stripped(monkeypatch):
    monkeypatch.setattr(readers, "FRAGMENT_CHARS", 8)
    chunks = ["   ", "\n" * 20, "one two", " three four five", " " * 20, "\n" * 20, "<|endoftext|> \n"]
    fragments = list(split_documents(chunks))
    assert len(fragments) > 1
    assert [last for _, last in fragments] == [False] * (len(fragments) - 1) + [True]
    assert "".join(text for text, _ in fragments) == "one two three four five"


def split_whole(chunks, border="<|endoftext|>"):
    """`split_documents` on a text that is joined and split again at every chunk: slow, and easy to check by eye."""
    rest, begun = "", False
    for chunk in chunks:
        parts = (rest + chunk).split(border) if border else [rest + chunk]
        for part in parts[:-1]:
            yield (part.rstrip() if begun else part.strip()), True
            begun = False
        rest = parts[-1]
        if len(rest) > readers.FRAGMENT_CHARS:
            rest = rest if begun else rest.lstrip()
            start = max(0, len(rest) - readers._CUT_SEARCH_CHARS)
            cut = max((m.end() for m in readers._CUT.finditer(rest, start)), default=0)
            if cut:
                yield rest[:cut], False
                rest, begun = rest[cut:], True
    if begun or rest.strip():
        yield (rest.rstrip() if begun else rest.strip()), True


@pytest.mark.parametrize("seed", range(40))
def test_fragments_are_those_of_the_whole_text(monkeypatch, seed):
    draw = random.Random(seed)
    monkeypatch.setattr(readers, "FRAGMENT_CHARS", draw.choice([0, 5, 30, 200]))
    monkeypatch.setattr(readers, "_CUT_SEARCH_CHARS", draw.choice([1, 7, 20, 500]))
    words = ["a", "bc" * 9, " ", "\n", "\u3000", "  \t", "<|endoftext|>", "<|endof", "text|>", "<|endoftext|>" * 2]
    rare = draw.choice([0.02, 0.2, 1.0])
    text = "".join(draw.choices(words, [5, 5, *[4 * rare] * 4, *[rare] * 4], k=400))
    sizes = draw.choice([[1], [3, 17], [1, 2, 90], [1000]])
    chunks, place = [], 0
    while place < len(text):
        chunks.append(text[place : place + draw.choice(sizes)])
        place += len(chunks[-1])
    for border in ("<|endoftext|>", None):
        assert list(split_documents(chunks, border)) == list(split_whole(chunks, border))


def test_a_text_without_spaces_takes_time_in_proportion_to_its_length(monkeypatch):
    monkeypatch.setattr(readers, "FRAGMENT_CHARS", 1000)
    monkeypatch.setattr(readers, "_CUT_SEARCH_CHARS", 100)

    def seconds(n_chunks):
        chunks = ["x" * 4000] * n_chunks
        began = time.process_time()  # of this process: others on the machine do not count
        ((text, last),) = split_documents(chunks)
        assert (len(text), last) == (4000 * n_chunks, True)
        return time.process_time() - began

    seconds(100)
    short, long = (min(seconds(count) for _ in range(3)) for count in (500, 4000))
    assert long < 24 * short  # 8 times as long; joined and split again at every chunk it is 64 times


def test_files_folders_globs_and_lists(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    assert documents(files) == ["one", "two", "three", "four"]
    assert documents(files / "*.txt") == ["one", "two"]
    assert documents(files / "**/*.[jp]*") == ["three", "four"]
    assert documents("~/b/d.parquet") == ["four"]
    both = text_config([str(files / "b" / "d.parquet"), str(files / "a.txt")])
    assert list(iter_documents(both, "valid")) == ["four", "one", "two"]


def test_hidden_files_of_a_folder_are_left_out(files):
    for hidden in (files / ".ipynb_checkpoints", files / "b" / ".old", files / "b" / ".old" / "deeper"):
        hidden.mkdir()
        (hidden / "a-checkpoint.txt").write_text("an older version")
    (files / "b" / ".c.jsonl").write_text('{"text": "hidden"}')
    assert documents(files) == ["one", "two", "three", "four"]
    assert documents(files / ".ipynb_checkpoints") == ["an older version"]  # named by the user
    (files / "b").rename(files / ".b")
    assert documents(files / ".b") == ["three", "four"]


@contextmanager
def ordinary_user():
    """Root reads everything: be nobody for a while where the tests run as root."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(own)


@pytest.mark.parametrize(
    ("mode", "named"), [(0o000, "b"), (0o444, r"b/[cd]\.[a-z]+")], ids=["no names", "names, but no files"]
)
def test_a_folder_that_cannot_be_read_is_not_skipped(files, monkeypatch, mode, named):
    monkeypatch.chdir(files)  # the folders above are closed to others
    files.chmod(0o755)
    Path("b").chmod(mode)
    try:
        with ordinary_user(), pytest.raises(DataError, match=rf"^(\./)?{named} cannot be read: Permission denied$"):
            find_files(".")
        with ordinary_user(), pytest.raises(DataError, match=r"b/c\.jsonl cannot be read: Permission denied$"):
            find_files("b/c.jsonl")
    finally:
        Path("b").chmod(0o755)


def test_an_existing_folder_with_brackets_goes_before_a_set(tmp_path):
    for folder in ("[a]", "a"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(f"of {folder}")
    assert documents(tmp_path / "[a]" / "*.txt") == ["of [a]"]
    assert documents(tmp_path / "a" / "*.txt") == ["of a"]
    assert documents(tmp_path / "[ab]" / "*.txt") == ["of a"]


def test_an_unknown_user_is_one_line(tmp_path):
    for path in ("~nosuchuser/a.txt", "~nosuchuser/*.txt", "~nosuchuser"):
        with pytest.raises(DataError, match=re.escape(f"data.train: {path}: no home folder is known for ~nosuchuser")):
            documents(path)
    (tmp_path / "a.txt").write_text("one")
    config = text_config(str(tmp_path / "a.txt"), cache_dir="~nosuchuser/cache")
    with pytest.raises(DataError, match=re.escape("data.cache_dir: ~nosuchuser/cache: no home folder")):
        prepare_data(config, TokenizerConfig(name="bytes"))


def test_a_name_that_is_not_utf8(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(text_files, "REMEMBERED_BYTES", 1)  # as of large files
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    path.write_text("one two")
    config = text_config(str(path), cache_dir=str(tmp_path / "cache"))
    first = prepare_data(config, TokenizerConfig(name="bytes"))
    assert first.train.num_tokens == 9
    assert len(list((tmp_path / "cache" / "hashes").iterdir())) == 1
    assert prepare_data(config, TokenizerConfig(name="bytes")).train.folder == first.train.folder
    assert "caf\ufffd.txt is both data.train and data.valid" in caplog.text  # a log file holds it


def test_a_file_that_several_patterns_name_is_read_once(files):
    (files / "link.txt").symlink_to(files / "a.txt")
    twice = [str(files / "b" / "d.parquet"), str(files / "*.txt"), str(files / "b"), str(files / "a.txt")]
    assert list(iter_documents(text_config(twice), "train")) == ["four", "one", "two", "three"]


@pytest.mark.parametrize(
    ("train", "valid"),
    [(".", "b/c.jsonl"), ("**/*.jsonl", "b/c.jsonl"), (["a.txt", "b"], "./b/c.jsonl"), ("b/c.jsonl", "b"), ("b", "b")],
)
def test_a_file_of_a_folder_in_both_splits_is_refused(files, monkeypatch, train, valid):
    monkeypatch.chdir(files)
    with pytest.raises(
        ConfigError, match=rf"/b/c\.jsonl is in data\.train=.* and in data\.valid={re.escape(valid)}: move"
    ):
        check_splits_apart(TextConfig(train=train, valid=valid))


def test_splits_that_are_apart_or_both_name_a_file(files, caplog):
    for train, valid in (("b", "a.txt"), ("*.txt", "b"), ("a.txt", "b/c.jsonl")):
        check_splits_apart(TextConfig(train=str(files / train), valid=str(files / valid)))
    check_splits_apart(DataConfig())
    assert caplog.text == ""
    for _ in range(2):
        check_splits_apart(text_config(str(files / "a.txt")))
    assert caplog.text.count("a.txt is both data.train and data.valid") == 1


def test_columns(tmp_path):
    (tmp_path / "x.jsonl").write_text('\ufeff{"story": "a"}\n{"story": null}\n{"story": "\\ud800"}')
    pq.write_table(pa.table({"n": [1, 2], "story": [None, "b "]}), tmp_path / "y.parquet")
    assert documents(tmp_path, text_field="story") == ["a", "", "\ufffd", "", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"", "is empty"),
        ("x.txt", b"good " * 3 + b"\xff bad", "is not UTF-8 at byte 15;"),
        ("x.txt", b"cut \xe2\x82", "is not UTF-8 at byte 4;"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "is not UTF-8 at byte 24;"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("x.jsonl", b'["a"]\n', "is a JSON array; a .jsonl file has one object per line"),
        ("x.jsonl", b'{"story": "a", "n": 1}\n', "line 1 has no column 'text', it has story, n;"),
        ("x.jsonl", b'{"text": 7}\n', "line 1, column text must hold text, got int"),
        ("x.parquet", b"no parquet here", "cannot be read"),
        ("x.csv", b"a,b", r"must end in one of \.txt, \.jsonl, \.parquet"),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_bad_files_end_in_one_line(tmp_path, monkeypatch, name, content, message, block_bytes):
    monkeypatch.setattr(readers, "BLOCK_BYTES", block_bytes)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        documents(tmp_path / name)
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)


def test_bad_parquet_columns(tmp_path):
    pq.write_table(pa.table({"story": ["a"], "n": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"has no column 'text', it has story, n; set data.text_field"):
        documents(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="row 0, column n must hold text, got int"):
        documents(tmp_path / "x.parquet", text_field="n")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("nothing.txt", "does not exist"), ("*.txt", "matches no file"), ("", "is a folder without .txt")],
)
def test_nothing_there(tmp_path, pattern, message):
    with pytest.raises(DataError, match=re.escape(message)):
        documents(tmp_path / pattern)


def test_unreadable_and_changing_files(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    path.write_text("one<|endoftext|>two")
    reading = iter_documents(text_config(str(path)), "train")
    assert next(reading) == "one"
    path.write_text("one, but longer than before")
    with pytest.raises(DataError, match="changed while it was read"):
        list(reading)

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(readers, "decode_blocks", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        documents(path)


def test_big_files_are_read_in_blocks(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"x" * (2 * readers.BLOCK_BYTES + 1))
    assert [len(block) for block in decode_blocks(path)] == [readers.BLOCK_BYTES] * 2 + [1]


def test_descriptions_follow_the_content(files):
    config = text_config(str(files / "a.txt"))
    first = open_source(config, "train").describe()
    assert first == open_source(config, "valid").describe() == json.loads(json.dumps(first))
    (files / "a.txt").write_text("ONE\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    assert open_source(config, "train").describe() != first
    tales = open_source(TinytalesConfig(seed=1), "train").describe()
    assert tales == open_source(TinytalesConfig(seed=1), "train").describe() == json.loads(json.dumps(tales))
    assert tales != open_source(TinytalesConfig(seed=2), "train").describe()
    assert tales != open_source(TinytalesConfig(seed=1), "valid").describe()


def test_tinytales():
    config = TinytalesConfig(num_train_stories=5, num_valid_stories=2)
    train, valid = (list(iter_documents(config, split)) for split in ("train", "valid"))
    assert len(train) == 5
    assert len(valid) == 2
    assert train == list(iter_documents(config, "train"))
    assert not set(train) & set(valid)
    with pytest.raises(ConfigError, match="split must be one of train, valid"):
        open_source(config, "test")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A dataset's folder, with everything that would reach for the network switched off."""
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tiny"
    folder.mkdir()
    pq.write_table(pa.table({"text": [" = A =\n", "", "one two\n"], "n": [1, 2, 3]}), folder / "train-0.parquet")
    pq.write_table(pa.table({"text": ["valid"], "n": [1]}), folder / "validation-0.parquet")
    (folder / "V2-train.txt").write_text("one\n<|endoftext|>\ntwo\n")
    return folder


def hub_config(hub, **changes):
    return HubConfig(hub_id=str(hub), **changes)


def test_hub_rows(hub):
    assert list(iter_documents(hub_config(hub), "train")) == ["= A =", "", "one two"]
    assert list(iter_documents(hub_config(hub), "valid")) == ["valid"]
    assert list(iter_documents(hub_config(hub, hub_join_rows=True), "train")) == ["= A =\none two"]
    first = open_source(hub_config(hub), "train").describe()
    assert first["fingerprint"]
    assert first == open_source(hub_config(hub), "train").describe() == json.loads(json.dumps(first))
    assert first != open_source(hub_config(hub, hub_join_rows=True), "train").describe()


def test_hub_text_file(hub):
    config = hub_config(hub, hub_train="V2-train.txt")
    assert list(iter_documents(config, "train")) == ["one", "two"]
    assert len(open_source(config, "train").describe()["fingerprint"]) == 64


def test_the_commit_is_recorded(hub, tmp_path, monkeypatch):
    """`huggingface_hub` keeps files under snapshots/COMMIT, `datasets` under ID/CONFIG/VERSION/COMMIT."""
    import huggingface_hub

    snapshot = tmp_path / "snapshots" / ("ab" * 20)
    snapshot.mkdir(parents=True)
    (hub / "V2-train.txt").rename(snapshot / "V2-train.txt")
    asked = {}

    def download(repo_id, filename, **options):
        asked.update(options, repo_id=repo_id)
        return str(snapshot / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    config = HubConfig(hub_id="own/tiny", hub_train="V2-train.txt", hub_revision="v1")
    assert open_source(config, "train").describe()["commit"] == "ab" * 20
    assert asked == {"repo_id": "own/tiny", "repo_type": "dataset", "revision": "v1"}
    assert list(iter_documents(config, "train")) == ["one", "two"]


@pytest.mark.parametrize("part", ["train", "V2-train.txt"])
def test_hub_name_without_a_network(hub, part):
    config = HubConfig(hub_id="own/absent", hub_train=part)
    with pytest.raises(DataError, match=r"own/absent.*use data=text .* or data=tinytales$") as raised:
        next(iter_documents(config, "train"))
    assert "\n" not in str(raised.value)


def test_another_commit_than_the_pinned_one_is_refused(hub):
    rows = SimpleNamespace(cache_files=[{"filename": f"/cache/own___tiny/default/0.0.0/{'ab' * 20}/tiny-train.arrow"}])
    for revision in (None, "main", "ab" * 20, "cd" * 20):
        source = HubSource(HubConfig(hub_id="own/tiny", hub_revision=revision), "train")
        source.__dict__["_rows"] = rows
        if revision == "cd" * 20:
            with pytest.raises(DataError, match=f"hub_revision={revision} is not cached, only {'ab' * 20} is"):
                source.describe()
        else:
            assert source.describe()["commit"] == "ab" * 20


def test_hub_names_that_are_not_there(hub):
    with pytest.raises(DataError, match=r'Unknown split "test".*hub_train'):
        next(iter_documents(hub_config(hub, hub_train="test"), "train"))
    with pytest.raises(DataError, match=r"has no column 'story', it has text, n; set data.text_field"):
        next(iter_documents(hub_config(hub, text_field="story"), "train"))
