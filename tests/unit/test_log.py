"""The log of findings: entries of one form, and links that lead somewhere."""

import re
from pathlib import Path

import pytest

LOG = Path(__file__).parents[2] / "runs" / "log"
MONTHS = [path for path in sorted(LOG.glob("*.md")) if re.fullmatch(r"\d{4}-\d\d", path.stem)]
PARTS = ["**Question.**", "**Setting.**", "**Result.**", "**Conclusion.**"]
LINK = re.compile(r"^\[[a-z0-9-]+\]: ", re.MULTILINE)
MAX_LINES, MAX_COLUMNS = 25, 100


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def entries() -> dict[str, str]:
    """Return the title and the text of every entry of every month."""
    parts = [part for path in MONTHS for part in re.split(r"^## ", read(path), flags=re.MULTILINE)[1:]]
    return {part.splitlines()[0]: LINK.split(part)[0].rstrip() for part in parts}


@pytest.mark.parametrize("title", entries())
def test_an_entry_has_a_date_four_parts_and_at_most_25_lines(title):
    text = entries()[title]
    assert re.match(r"\d{4}-\d\d-\d\d ", title)
    assert re.findall(r"^\*\*[A-Z][a-z]+\.\*\*", text, re.MULTILINE) == PARTS
    assert len(text.splitlines()) <= MAX_LINES


def test_entries_of_a_month_are_newest_first():
    for path in MONTHS:
        dates = re.findall(r"^## (\S+)", read(path), re.MULTILINE)
        assert dates == sorted(dates, reverse=True)
        assert all(date.startswith(path.stem) for date in dates)


@pytest.mark.parametrize("path", [*MONTHS, LOG / "README.md"], ids=lambda path: path.name)
def test_links_lead_to_headings_and_lines_are_short(path):
    text = read(path)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
    for target in targets:
        name, _, anchor = target.partition("#")
        titles = re.findall(r"^#+ (.*)$", read(path.parent / name), re.MULTILINE)
        known = {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not anchor or anchor in known, target
    defined = set(re.findall(r"^\[([^\]]+)\]: ", text, re.MULTILINE))
    assert defined == set(re.findall(r"\]\[([^\]]+)\]", text))
    long = [line for line in text.splitlines() if len(line) > MAX_COLUMNS and not LINK.match(line)]
    assert long == []
