"""Two halves of a validation text hold every document once, and each is text that can be read again."""

import json

import pytest

from grouped_lm.data import TextConfig, halve, iter_documents
from grouped_lm.errors import DataError


def documents(*paths):
    return list(iter_documents(TextConfig(name="x", train=[str(p) for p in paths], valid="x"), "train"))


def test_every_other_document(tmp_path):
    text = tmp_path / "valid.txt"
    text.write_text("one\n<|endoftext|>\n\n <|endoftext|>\ntwo\n\nlines<|endoftext|>three\n", encoding="utf-8")
    (a, in_a), (b, in_b) = halve(str(text), tmp_path / "new" / "halves")
    assert (a, b) == (tmp_path / "new/halves/valid-a.txt", tmp_path / "new/halves/valid-b.txt")
    assert documents(a) == ["one", "three"]
    assert documents(b) == ["two\n\nlines"]
    assert (in_a, in_b) == (2, 1)


def test_columns_and_globs(tmp_path):
    for number in range(3):
        line = json.dumps({"story": f"document {number}"})
        (tmp_path / f"valid-{number}.jsonl").write_text(line + "\n", encoding="utf-8")
    (a, _), (b, _) = halve(str(tmp_path / "valid-*.jsonl"), tmp_path, text_field="story")
    assert documents(a, b) == ["document 0", "document 2", "document 1"]
    with pytest.raises(DataError, match="text"):
        halve(str(tmp_path / "valid-*.jsonl"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_commands_name_their_own_option_for_the_column(gvc, workdir):
    (workdir / "c.jsonl").write_text('{"story": "one"}\n{"story": "two"}\n')
    (workdir / "d.jsonl").write_text('{"text": 1}\n')
    wanted = "c.jsonl, line 1 has no column 'text', it has story; set --text-field"
    for words in (["halve", "c.jsonl", "--out", "halves"], ["overlap", "c.jsonl", "c.jsonl"]):
        refused = gvc("data", *words)
        assert refused.code == 3
        assert wanted in refused.err
    assert "got int; --text-field names the column" in gvc("data", "halve", "d.jsonl", "--out", "halves").err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("one.txt", "only one\n<|endoftext|>\n", "has 1 documents; two halves need two or more"),
        ("in.jsonl", '{"text": "a<|endoftext|>b"}\n{"text": "c"}\n', "would be two in a .txt"),
        ("x.csv", "a,b\n", "must end in one of"),
    ],
)
def test_what_cannot_be_halved_leaves_nothing(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        halve(str(tmp_path / name), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(gvc, texts, workdir):
    outcome = gvc("data", "halve", texts["valid"], "--out", "halves")
    whole = documents(texts["valid"])
    assert documents("halves/valid-a.txt") == whole[::2]
    assert documents("halves/valid-b.txt") == whole[1::2]
    assert "halves/valid-a.txt: 39 documents, for data.valid" in outcome.out, outcome.out


def test_what_is_there_is_not_overwritten(gvc, texts, workdir):
    words = "data", "halve", texts["valid"], "--out", "halves"
    assert gvc(*words).code == 0
    assert gvc(*words).code == 0  # the same again
    mine = workdir / "halves/valid-b.txt"
    mine.write_text("precious")
    outcome = gvc(*words)
    assert outcome.code == 3
    assert "valid-b.txt is there and holds something else" in outcome.err
    assert mine.read_text() == "precious"
    assert gvc("data", "halve", texts["valid"], "--out", str(mine / "x")).code == 4
