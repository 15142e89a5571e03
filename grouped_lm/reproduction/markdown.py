"""The report as Markdown, and the table of verdicts inside another document."""

from pathlib import Path

from grouped_lm.errors import ConfigError, DataError, GvcError
from grouped_lm.reproduction.claims import load_claims
from grouped_lm.reproduction.evidence import collect_evidence
from grouped_lm.reproduction.report import Report
from grouped_lm.reproduction.rules import Answer, answer_claims
from grouped_lm.reproduction.tables import verdicts_table
from grouped_lm.reproduction.verdicts import Verdict
from grouped_lm.system.files import write_text
from grouped_lm.system.tables import escape

HEADING = ": the claims, checked"
"""The end of the first line of every report."""
BEGIN, END = "<!-- verdicts -->\n", "<!-- end of verdicts -->\n"
"""Marks around the table of verdicts in a document."""


class StaleTableError(GvcError):
    """The table in a document does not agree with the figures."""


def report_markdown(report: Report) -> str:
    """Return the whole report."""
    paper = report.claims.paper
    text = f"# {paper['title']}{HEADING}\n\n{paper['authors']}, <{paper['url']}>\n\n"
    text += f"{report.origin()} " + "; ".join(f"{count} {word}" for word, count in report.counts()) + ".\n\n"
    text += f"**{report.banner}**\n\n" if report.banner else ""
    text += f"## Verdicts\n\n{verdicts_table(report.answers).markdown()}\n"
    for answer in report.answers:
        text += claim_markdown(answer)
    for key, title, tables, pictures in report.sections():
        text += f"## {title}\n\n"
        for picture in pictures:
            text += f"![{escape(picture.alt)}](figures/{picture.name}.svg)\n\n"
        for table in tables:
            note = f" ({table.note})" if table.note else ""
            text += f"**{table.title}**{note}, `tables/{table.name}.csv`\n\n{table.markdown()}\n"
        for entry in report.stories if key == "stories" else []:
            for method, story in entry["texts"].items():
                text += f"**{method}**\n\n" + "".join(f"> {line}\n" for line in story.splitlines()) + "\n"
    return text


def claim_markdown(answer: Answer) -> str:
    """Return one claim in full: the quote, what was measured, both answers, and the runs behind them."""

    def line(verdict: Verdict, word: str) -> str:
        parts = [part for part in (word, verdict.figure, verdict.interval) if part not in ("", "-")]
        return f"- {escape('; '.join(parts))}. {escape(verdict.why)}\n"

    claim, verdict, ours = answer.claim, answer.verdict, answer.ours
    text = f"### {claim.says}\n\n"
    text += (f'"{claim.quote}" ({claim.source})' if claim.quote else f"({claim.source})") + f". {claim.measured}\n\n"
    text += line(verdict, f"**{verdict.text}**")
    if ours is not None:
        text += line(ours, f"with our best head: {ours.text}")
    if verdict.runs:
        text += f"- from {escape(', '.join(f'`{run}`' for run in verdict.runs))}\n"
    return text + "\n"


def expected_table(folders: list[Path]) -> str:
    """Return the table of verdicts that the figures in `folders` give."""
    return verdicts_table(answer_claims(load_claims(), collect_evidence(folders))).markdown()


def check_table(document: Path, folders: list[Path]) -> None:
    """Compare the table between the marks of a document with the figures.

    Raises:
        StaleTableError: a line differs; the message has both lines.
        ConfigError: the document has no marks.
        DataError: the document cannot be read.
    """
    lines, expected = split_at_marks(document)[1].splitlines(), expected_table(folders).splitlines()
    for number in range(max(len(expected), len(lines))):
        line, figures = (part[number] if number < len(part) else "nothing" for part in (lines, expected))
        if line != figures:
            raise StaleTableError(
                f"{document}: line {number + 1} of its verdicts says {line!r}, the figures {figures!r}"
            )


def write_table(document: Path, folders: list[Path]) -> None:
    """Write the table that the figures give between the marks of a document.

    Raises:
        ConfigError: the document has no marks.
        DataError: the document cannot be read.
    """
    before, _, after = split_at_marks(document)
    write_text(document, before + BEGIN + expected_table(folders) + END + after)


def split_at_marks(document: Path) -> tuple[str, str, str]:
    """Return the text before, between and after the marks of a document.

    Raises:
        ConfigError: the document has no marks.
        DataError: the document cannot be read.
    """
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{document} cannot be read: {error}") from error
    before, begin, rest = text.partition(BEGIN)
    table, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{document} has no lines {BEGIN.strip()} and {END.strip()}, around its table of verdicts")
    return before, table, after
