"""The verdict table in a document, held against the figures that it comes from."""

from pathlib import Path

from grouped_lm.errors import ConfigError, DataError, GvcError
from grouped_lm.reproduction.claims import load_claims
from grouped_lm.reproduction.evidence import collect_evidence
from grouped_lm.reproduction.markdown import verdicts_markdown
from grouped_lm.reproduction.verdicts import judge
from grouped_lm.system.files import write_text

BEGIN, END = "<!-- verdicts -->\n", "<!-- end of verdicts -->\n"
"""Marks around the table in a document."""


class StaleTableError(GvcError):
    """A table that says something else than the figures."""


def expected_table(folders: list[Path]) -> str:
    """Return the table that the figures in `folders` give."""
    return verdicts_markdown(judge(load_claims(), collect_evidence(folders)))


def check_table(document: Path, folders: list[Path]) -> None:
    """Compare the table between the marks with the figures.

    Raises:
        StaleTableError: a line differs; the message has both.
        ConfigError: the document has no marks.
        DataError: it cannot be read.
    """
    _, found, _ = _split(document)
    wanted = expected_table(folders).splitlines()
    lines = found.splitlines()
    for number in range(max(len(wanted), len(lines))):
        says = lines[number] if number < len(lines) else "nothing"
        figures = wanted[number] if number < len(wanted) else "nothing"
        if says != figures:
            raise StaleTableError(
                f"{document}: line {number + 1} of its verdicts says {says!r}, the figures {figures!r}"
            )


def write_table(document: Path, folders: list[Path]) -> None:
    """Put the table of the figures between the marks.

    Raises:
        ConfigError, DataError: see `check_table`.
    """
    before, _, after = _split(document)
    write_text(document, before + BEGIN + expected_table(folders) + END + after)


def check_marks(document: Path) -> None:
    """Refuse a document that has no place for the table.

    Raises:
        ConfigError, DataError: see `check_table`.
    """
    _split(document)


def _split(document: Path) -> tuple[str, str, str]:
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{document} cannot be read: {error}") from error
    before, begin, rest = text.partition(BEGIN)
    found, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{document} has no lines {BEGIN.strip()} and {END.strip()}, between which the table stands")
    return before, found, after
