"""A report: answers, tables, pictures and stories, computed from evidence; as Markdown, and its table in a document."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from grouped_lm.errors import ConfigError, DataError, GvcError
from grouped_lm.report.style import PlotLibraryError, styled_matplotlib
from grouped_lm.reproduction.claims import Claims, load_claims
from grouped_lm.reproduction.evidence import BENCHES, Evidence, collect_evidence
from grouped_lm.reproduction.pictures import Picture, all_pictures
from grouped_lm.reproduction.rules import Answer, answer_claims
from grouped_lm.reproduction.tables import all_tables, verdicts_table
from grouped_lm.reproduction.verdicts import SMOKE, WORDS, Verdict, matches, runs_in, setting_of
from grouped_lm.system.files import write_text
from grouped_lm.system.tables import Table, escape

SECTIONS = yaml.safe_load(files("grouped_lm.reproduction").joinpath("sections.yaml").read_text(encoding="utf-8"))
HEADING = ": the claims, checked"
"""The end of the first line of every report."""
BEGIN, END = "<!-- verdicts -->\n", "<!-- end of verdicts -->\n"
"""Marks around the table of verdicts in a document."""
SUMMARY = ("memory", "throughput", "on-par-gpt2")
"""The claims that the summary is about."""
SMOKE_BANNER = """This is a smoke test. It shows that every part of the reproduction works, and nothing about the \
claims: no claim is answered at this scale."""


@dataclass(frozen=True)
class Report:
    """The content of a report."""

    claims: Claims
    evidence: Evidence
    answers: list[Answer]
    tables: dict[str, Table]
    pictures: list[Picture]
    stories: list[dict[str, Any]]
    """Prompts, each with the texts of the methods."""

    @property
    def scale(self) -> str:
        """Name of the list of steps; "" where no steps were run."""
        return next((str(row["scale"]) for row in self.evidence["steps"]), "")

    @property
    def banner(self) -> str:
        """A warning for the reader; "" where there is none."""
        return SMOKE_BANNER if self.scale == SMOKE else ""

    def origin(self) -> str:
        """Return a sentence about the runs and benches that the report is made from."""
        texts = sorted({str(row["data"]) for row in self.evidence["runs"] if row.get("data")})
        runs = f"{len(self.evidence['runs'])} runs" + (f" on {' and '.join(texts)}" if texts else "")
        bench_rows = sum(len(self.evidence[name]) for name in BENCHES)
        return (f"Scale {self.scale}: " if self.scale else "") + f"{runs}, {bench_rows:,} rows of benches."

    def summary(self) -> list[str]:
        """Return one sentence each on memory, speed and quality."""
        answers = {answer.claim.id: answer for answer in self.answers}
        return [summary_sentence(answers[claim]) for claim in SUMMARY if claim in answers]

    def summary_pictures(self) -> list[Picture]:
        """Return the pictures that stand before everything else."""
        return [picture for picture in self.pictures if picture.section == "summary"]

    def counts(self) -> list[tuple[str, int]]:
        """Return how many claims got each verdict."""
        return [(word, sum(answer.verdict.word == word for answer in self.answers)) for word in WORDS]

    def sections(self) -> list[tuple[str, str, list[Table], list[Picture]]]:
        """Return key, title, tables and pictures of every section that is not empty."""
        sections = []
        for key, section in SECTIONS.items():
            tables = [self.tables[name] for name in section["tables"] if name in self.tables]
            pictures = [picture for picture in self.pictures if picture.section == key]
            if tables or pictures or (key == "stories" and self.stories):
                sections.append((key, section["title"], tables, pictures))
        return sections


def make_report(evidence: Evidence, say: Callable[[str], None]) -> Report:
    """Return the report of the evidence.

    Args:
        evidence: as read back from CSV.
        say: shows a line about what is left out.
    """
    claims = load_claims()
    answers = answer_claims(claims, evidence)
    pictures: list[Picture] = []
    try:
        with styled_matplotlib():  # is it installed?
            pictures = all_pictures(claims, evidence)
    except PlotLibraryError as error:
        say(f"gvc: {error}")
    tables, stories = all_tables(claims, evidence, answers), side_by_side(claims, evidence)
    return Report(claims, evidence, answers, tables, pictures, stories)


def summary_sentence(answer: Answer) -> str:
    """Return a claim, its verdict and its figure as one sentence."""
    figure = "" if answer.verdict.figure == "-" else f" ({answer.verdict.figure})"
    return f'"{answer.claim.says.removesuffix(".")}": {answer.verdict.text}{figure}.'


def side_by_side(claims: Claims, evidence: Evidence) -> list[dict[str, Any]]:
    """Return one story of every method at its best rate, for the first prompt and seed."""
    runs = {row["run"]: row for row in evidence["runs"]}
    stories: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in evidence["stories"]:
        run = runs.get(row["run"], {})
        setting = setting_of(run)
        for key, method in claims.methods.items():
            if key == "any_size" or row["index"] != 0 or setting is None or not matches(run, method):
                continue
            if run in runs_in(evidence, method, setting).values():
                where = (run.get("data"), run.get("model"), run.get("seed"), row["prompt"])
                entry = stories.setdefault(where, {"texts": {}, "where": where})
                entry["texts"].setdefault(method.name, f"{row['prompt']}{row.get('text', '')}")
    return list(stories.values())[:1]


class StaleTableError(GvcError):
    """The table in a document does not agree with the figures."""


def report_markdown(report: Report) -> str:
    """Return the whole report."""
    paper = report.claims.paper
    text = f"# {paper['title']}{HEADING}\n\n{paper['authors']}, <{paper['url']}>\n\n"
    text += f"{report.origin()} " + "; ".join(f"{count} {word}" for word, count in report.counts()) + ".\n\n"
    text += f"**{report.banner}**\n\n" if report.banner else ""
    text += "".join(f"- {escape(sentence)}\n" for sentence in report.summary()) + "\n"
    text += pictures_markdown(report.summary_pictures())
    text += f"## Verdicts\n\n{verdicts_table(report.answers).markdown()}\n"
    for answer in report.answers:
        text += claim_markdown(answer)
    for key, title, tables, pictures in report.sections():
        text += f"## {title}\n\n"
        text += pictures_markdown(pictures)
        for table in tables:
            note = f" ({table.note})" if table.note else ""
            text += f"**{table.title}**{note}, `tables/{table.name}.csv`\n\n{table.markdown()}\n"
        for entry in report.stories if key == "stories" else []:
            for method, story in entry["texts"].items():
                text += f"**{method}**\n\n" + "".join(f"> {line}\n" for line in story.splitlines()) + "\n"
    return text


def pictures_markdown(pictures: list[Picture]) -> str:
    """Return the pictures, with what they show as the text beside them."""
    return "".join(f"![{escape(picture.alt)}](figures/{picture.name}.svg)\n\n" for picture in pictures)


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
    both = split_at_marks(document)[1].splitlines(), expected_table(folders).splitlines()
    for number, (line, figures) in enumerate(zip_longest(*both, fillvalue="nothing"), start=1):
        if line != figures:
            raise StaleTableError(f"{document}: line {number} of its verdicts says {line!r}, the figures {figures!r}")


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
