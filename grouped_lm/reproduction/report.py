"""The content of a report: answers, tables, pictures and stories, computed from evidence."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from grouped_lm.report.style import PlotLibraryError, styled_matplotlib
from grouped_lm.reproduction.claims import Claims, load_claims
from grouped_lm.reproduction.evidence import BENCHES, Evidence
from grouped_lm.reproduction.pictures import Picture, all_pictures
from grouped_lm.reproduction.rules import Answer, answer_claims
from grouped_lm.reproduction.tables import all_tables
from grouped_lm.reproduction.verdicts import SMOKE, WORDS, matches
from grouped_lm.system.tables import Table

SECTIONS = yaml.safe_load(files("grouped_lm.reproduction").joinpath("sections.yaml").read_text(encoding="utf-8"))
SMOKE_BANNER = (
    "This is a smoke test. It shows that every part of the reproduction works, and nothing about the claims: no claim "
    "is answered at this scale."
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of a report."""

    claims: Claims
    answers: list[Answer]
    tables: dict[str, Table]
    pictures: list[Picture]
    stories: list[dict[str, Any]]
    """Prompts, each with the texts of the methods."""
    runs: list[dict[str, Any]]
    bench_rows: int
    scale: str | None

    def origin(self) -> str:
        """Return a sentence about the runs and benches that the report is made from."""
        texts = sorted({str(row["data"]) for row in self.runs if row.get("data")})
        scale = f"Scale {self.scale}: " if self.scale else ""
        runs = f"{len(self.runs)} runs" + (f" on {' and '.join(texts)}" if texts else "")
        return f"{scale}{runs}, {self.bench_rows:,} rows of benches."

    @property
    def banner(self) -> str:
        """A warning for the reader; "" where there is none."""
        return SMOKE_BANNER if self.scale == SMOKE else ""

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
    return Report(
        claims=claims,
        answers=answers,
        tables=all_tables(claims, evidence, answers),
        pictures=pictures,
        stories=side_by_side(claims, evidence),
        runs=evidence["runs"],
        bench_rows=sum(len(evidence[name]) for name in BENCHES),
        scale=next((str(row["scale"]) for row in evidence["steps"]), None),
    )


def side_by_side(claims: Claims, evidence: Evidence) -> list[dict[str, Any]]:
    """Return one story of every method, for the first prompt and seed."""
    runs = {row["run"]: row for row in evidence["runs"]}
    stories: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in evidence["stories"]:
        run = runs.get(row["run"], {})
        for key, method in claims.methods.items():
            if key != "any_size" and row["index"] == 0 and run and matches(run, method):
                where = (run.get("data"), run.get("model"), run.get("seed"), row["prompt"])
                entry = stories.setdefault(where, {"prompt": row["prompt"], "texts": {}, "where": where})
                entry["texts"].setdefault(method.name, f"{row['prompt']}{row.get('text', '')}")
    return list(stories.values())[:1]
