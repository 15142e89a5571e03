"""The documentation: its figures are those of the committed files, and what it names exists."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from grouped_lm.config import Config, config_to_dict
from grouped_lm.heads import HEADS
from grouped_lm.runs.schema import list_keys, list_parts
from grouped_lm.system.tables import csv_text

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
IN_GROUPS = ("model", "head", "grouping", "data", "tokenizer", "optim", "train", "tracking", "judge")
FILES = (".json", ".txt", ".safetensors", ".jsonl", ".yaml")
GENERATED = {"reference/cli.md", "reference/config.md", "reference/api.md"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@pytest.fixture(autouse=True)
def docs_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))


@every_page
def test_generated_blocks_agree_with_the_committed_figures(page):
    text = page.read_text(encoding="utf-8")
    assert importlib.import_module("generate").fill(text) == text, "run: python docs/generate.py"


def test_a_changed_figure_changes_the_page(monkeypatch):
    tables = importlib.import_module("docs_tables")
    rows = tuple(row | {"report_loss_nats": "9.5"} for row in tables.read("leaderboard.csv"))
    before = tables.groupings()
    monkeypatch.setattr(tables, "read", lambda name: rows)
    assert tables.groupings() != before


def test_heads_on_a_gpu_are_those_of_one_shape(monkeypatch):
    tables = importlib.import_module("docs_tables")
    rows = tables.read("bench-heads-gpu.csv")
    before, summary = tables.gpu_heads(), tables.summary()
    changes = ({"n_tokens": "8192"}, {"n_embd": "768"}, {"vocab_size": "128256"})
    more = rows + tuple(row | change | {"ms": "9999"} for change in changes for row in rows)
    read = tables.read
    monkeypatch.setattr(tables, "read", lambda name: more if name == "bench-heads-gpu.csv" else read(name))
    assert (tables.gpu_heads(), tables.summary()) == (before, summary)
    more = (*rows[:-1], rows[-1] | {"peak_bytes": ""})  # it was timed, but not checked
    assert tables.gpu_heads().split("\n\n")[0].endswith(" | - |")


def test_a_changed_contest_changes_the_page(monkeypatch, tmp_path):
    contests = importlib.import_module("docs_contests")
    before = contests.equal_tokens()
    rows = contests.read_rows(contests.RESULTS / "equal-tokens.csv")
    changed = [row | {"report_loss_nats": "9.5"} if row["head"] == "shortlist" else row for row in rows]
    (tmp_path / "equal-tokens.csv").write_text(csv_text(changed), encoding="utf-8")
    monkeypatch.setattr(contests, "RESULTS", tmp_path)
    contests.boards.cache_clear()
    assert "9.500" in contests.equal_tokens()
    contests.boards.cache_clear()
    assert "9.500" not in before


def test_pictures_agree_with_the_committed_figures():
    for name, picture in importlib.import_module("pictures").pictures().items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == picture, "run: python docs/pictures.py"


def test_cases_C7_no_page_replaces_the_editable_install():
    texts = [page.read_text("utf-8") for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "Makefile"]]
    commands = re.findall(r"pip install [^`\n]*'\.\[[^`\n]*", "\n".join(texts))
    assert len(commands) > 5
    assert [command for command in commands if " -e " not in command] == []


def test_every_block_is_on_a_page():
    used = {name for page in PAGES for name in re.findall(r"<!-- block: ([a-z0-9_-]+) -->", page.read_text("utf-8"))}
    assert used == set(importlib.import_module("docs_tables").BLOCKS)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "results" in page.parts or page.name == "README.md"], ids=name_of
)
def test_measured_numbers_stand_in_generated_blocks_alone(page):
    text = re.sub(r"<!-- block:.*?<!-- end of block -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    measured = re.findall(r"[+-]?\d+(?:\.\d+)?x\b|[+-]\d\.\d+|\b\d+\.\d+ (?:nats|ms|s|GiB|times)\b", text)
    assert measured == []


def test_sentences_and_the_front_page_are_short():
    assert importlib.import_module("check_english").problems() == []


@every_page
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
    for link in links:
        path, _, anchor = link.partition("#")
        if path.startswith("http"):
            continue
        target = (page.parent / path).resolve() if path else page
        if target.is_relative_to(ROOT / "docs") and str(target.relative_to(ROOT / "docs")) in GENERATED:
            continue
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}, link


@every_page
def test_files_that_are_named_exist(page):
    if "extend" in page.parts:
        return  # examples of new files
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:cli|conf|docs|grouped_lm|tests|runs/results)/[^`\s*]+)`", text):
        made_by_command = re.search(r"[A-Z]{3,}|bench-[a-z]+-gpu|/mine", path)
        assert made_by_command or (ROOT / path.split("::")[0]).exists(), path


def test_the_tests_of_the_promises_exist():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for file, test in re.findall(r"`(?:tests/[a-z/]+/)?(test_\w+\.py)::(test_\w+)`", text):
        (found,) = (ROOT / "tests").rglob(file)
        assert f"def {test}(" in found.read_text(encoding="utf-8"), f"{file}::{test}"


def split_code(text: str) -> tuple[str, str]:
    """Return the shell and text blocks of a page, and all that is outside blocks."""
    parts = re.split(r"^ *```(\w*)\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE)
    blocks = [code for kind, code in zip(parts[1::3], parts[2::3], strict=True) if kind in ("", "bash", "text")]
    return "\n".join(blocks), "\n".join(parts[::3])


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the words of every `gvc` command in a page."""
    code, prose = split_code(text)
    for line in [*code.replace("\\\n", " ").splitlines(), *re.findall(r"`(gvc [^`]+)`", prose)]:
        found = re.search(r"\bgvc [a-z-].*", line.split("  #")[0])
        if found:
            yield shlex.split(found[0].split("||")[0])


@every_page
def test_commands_and_their_options_exist(page):
    known = dict(importlib.import_module("docs_reference").commands())
    for words in command_lines(page.read_text(encoding="utf-8")):
        name = " ".join(words[:3] if words[1] == "data" and len(words) > 2 else words[:2])
        if name in ("gvc COMMAND", "gvc --help", "gvc data") or words[1].startswith("-"):
            continue
        assert name in known, f"there is no {name}"
        options = {option for param in known[name].params for option in param.opts} | {"--help"}
        for word in words[2:]:
            if re.match(r"--?[a-z]", word):
                assert word.split("=")[0] in options, f"{name} has no {word}"


@every_page
def test_config_keys_exist(page):
    if "extend" in page.parts:
        return  # examples of new keys
    known = {key.path for part in list_parts() for key in list_keys(part)}
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w/.*-])((?:{'|'.join(IN_GROUPS)})\.[a-z_]+)(?=[=`])", text)
    assert {name for name in named if not name.endswith(FILES)} <= known


def test_the_reference_has_every_command_and_every_key():
    reference = importlib.import_module("docs_reference")
    pages = reference.reference_pages()
    assert set(pages) == GENERATED
    for name, command in reference.commands():
        assert f"## {name}\n" in pages["reference/cli.md"]
        assert all(
            option in pages["reference/cli.md"]
            for param in command.params
            for option in param.opts
            if option.startswith("-") and option != "--help"
        )
    assert "| int | `300` | steps | [1, 1e+09] | Optimizer steps. |" in pages["reference/config.md"]
    for part, values in config_to_dict(Config(head=HEADS["shortlist"].schema())).items():
        if isinstance(values, dict) and part not in ("head", "grouping", "data"):
            assert all(f"`{part}.{key}`" in pages["reference/config.md"] for key in values)


def example(page: str) -> dict:
    """Run the Python block of a page and return its names."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    names: dict = {"__name__": page}
    exec(compile(code, page, "exec"), names)
    return names


def test_the_example_of_the_heads_page():
    names = example("heads/index.md")
    assert torch.allclose(names["loss"].nll, names["loss"].group_nll + names["loss"].token_nll)
