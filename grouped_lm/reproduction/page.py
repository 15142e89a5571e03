"""The report: tables as CSV, pictures as SVG, report.md, and report.html, one file that needs nothing else.

Everything follows from the runs: no clock, no path of the machine, so that the same runs give the same bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from grouped_lm.errors import RunFolderError, disk_errors
from grouped_lm.report.style import PlotLibraryError
from grouped_lm.reproduction.claims import Claims, load_claims
from grouped_lm.reproduction.evidence import (
    BENCHES,
    DATA,
    TABLES,
    Evidence,
    collect_evidence,
    read_evidence,
    table_csv,
    write_evidence,
)
from grouped_lm.reproduction.inline_svg import inline_svg
from grouped_lm.reproduction.markdown import HEADING, report_markdown
from grouped_lm.reproduction.pictures import Picture, all_pictures
from grouped_lm.reproduction.table import Table
from grouped_lm.reproduction.tables import all_tables
from grouped_lm.reproduction.verdicts import WORDS, Answer, judge
from grouped_lm.system.files import write_text

SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("families", "The two families beside the paper's figures", ("families", "methods")),
    ("curves", "Learning curves against tokens, time and memory", ()),
    ("memory", "Memory", ("memory-claim", "memory-parts", "memory-grid")),
    ("speed", "Speed", ("speed",)),
    ("sizes", "Group size", ()),
    ("fronts", "Quality, speed and memory together", ()),
    ("deciles", "Frequent and rare tokens", ("deciles", "order")),
    ("vocabularies", "Large vocabularies", ("vocabularies",)),
    ("stories", "Stories side by side", ()),
    ("origin", "Where all this comes from", ("broken", "environments", "steps")),
)
"""Of the page, in order: key of its pictures, title, tables."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a page shows."""

    claims: Claims
    answers: list[Answer]
    tables: dict[str, Table]
    pictures: list[Picture]
    stories: list[dict[str, Any]]
    """Prompt, and the texts by method."""
    runs: list[dict[str, Any]]
    bench_rows: int
    scale: str | None

    def origin(self) -> str:
        """Return what the page is made from, in a sentence."""
        texts = sorted({str(row["data"]) for row in self.runs if row.get("data")})
        scale = f"Scale {self.scale}: " if self.scale else ""
        kinds = f"{len(self.runs)} runs" + (f" on {' and '.join(texts)}" if texts else "")
        return f"{scale}{kinds}, {self.bench_rows:,} rows of benches."

    def counts(self) -> list[tuple[str, int]]:
        """Return how many claims got each verdict."""
        return [(word, sum(answer.verdict.word == word for answer in self.answers)) for word in WORDS]

    def pictures_of(self, section: str) -> list[Picture]:
        """Return the pictures of one section."""
        return [picture for picture in self.pictures if picture.section == section]

    def sections(self) -> list[tuple[str, str, list[Table], list[Picture]]]:
        """Return key, title, tables and pictures of every section that has something."""
        found = []
        for key, title, names in SECTIONS:
            tables = [self.tables[name] for name in names if name in self.tables]
            pictures = self.pictures_of(key)
            if tables or pictures or (key == "stories" and self.stories):
                found.append((key, title, tables, pictures))
        return found


def make_report(evidence: Evidence, say: Callable[[str], None]) -> Report:
    """Return verdicts, tables and pictures.

    Args:
        evidence: as read back from CSV.
        say: told what is left out.
    """
    claims = load_claims()
    answers = judge(claims, evidence)
    pictures: list[Picture] = []
    try:
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
    """Return one story of every method per prompt and seed."""
    from grouped_lm.reproduction.verdicts import matches

    runs = {row["run"]: row for row in evidence["runs"]}
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in evidence["stories"]:
        run = runs.get(row["run"], {})
        for key, method in claims.methods.items():
            if key != "any_size" and row["index"] == 0 and run and matches(run, method):
                where = (run.get("data"), run.get("model"), run.get("seed"), row["prompt"])
                entry = found.setdefault(where, {"prompt": row["prompt"], "texts": {}, "where": where})
                entry["texts"].setdefault(method.name, f"{row['prompt']}{row.get('text', '')}")
    return list(found.values())[:1]


def default_place(folder: Path) -> Path:
    """Return where the report of `folder` goes: where one lies it is made anew, else below it."""
    return folder if is_report(folder) else folder / "report"


def is_report(folder: Path) -> bool:
    """Return whether a folder is that of a report, or of nothing but the tables one is made from."""
    page = folder / "report.md"
    if page.is_file():
        with page.open(encoding="utf-8", errors="replace") as file:
            return file.readline().rstrip("\n").endswith(HEADING)
    tables = {f"{name}.csv" for name in TABLES}
    if any((folder / name).exists() for name in OURS) or not (folder / DATA).is_dir():
        return False
    said: list[str] = []
    return (
        {p.name for p in (folder / DATA).iterdir()} <= tables and bool(read_evidence(folder, said.append)) and not said
    )


def write_report(folders: list[Path], out: Path, say: Callable[[str], None]) -> Path:
    """Write the report of everything in `folders` into `out`, and return its page.

    Without jinja2 there is no HTML, without matplotlib there are no pictures; what else there is is written.

    Args:
        folders: run folders, folders of them, benches, or an earlier report.
        out: report.html, report.md, data/ (what it was made from), tables/ and figures/ go here.
        say: told, in a line each, what was left out.

    Raises:
        RunFolderError: a folder that does not exist, or `out` has other files by the names of a report's.
        DiskError: there is no room.
    """
    if not is_report(out) and (taken := [name for name in (*OURS, DATA) if (out / name).exists()]):
        raise RunFolderError(f"{out} holds {', '.join(taken)} of something else than a report: give another --out")
    collected = collect_evidence(folders, say)
    with disk_errors(out):
        write_evidence(collected, out / DATA)
        report = make_report(read_evidence(out) or collected, say)
        for row in report.tables["broken"].rows if "broken" in report.tables else []:
            say(f"gvc: {row['run']}: {row['state']}" + (f", {row['reason']}" if row.get("reason") else ""))
        write_text(out / "report.md", report_markdown(report))  # first: it says whose folder this is
        write_files(out / "tables", {f"{t.name}.csv": table_csv(t.rows) for t in report.tables.values()})
        write_files(out / "figures", {f"{p.name}.svg": p.svg for p in report.pictures})
        page = render_page(report, say)
        if page is None:
            (out / "report.html").unlink(missing_ok=True)
            return out / "report.md"
        write_text(out / "report.html", page)
    return out / "report.html"


def write_files(folder: Path, texts: dict[str, str]) -> None:
    """Write the files of a folder that is ours alone; those of an earlier report go."""
    if folder.exists():
        for old in folder.iterdir():
            if old.name not in texts and old.is_file():
                old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)


def render_page(report: Report, say: Callable[[str], None]) -> str | None:
    """Return the HTML, None where jinja2 is not installed."""
    try:
        import jinja2
    except ImportError:
        say("gvc: no page: it needs jinja2, pip install 'grouped-lm[report]'; report.md has the same")
        return None
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    source = files("grouped_lm.reproduction").joinpath("page.html.j2").read_text(encoding="utf-8")
    svgs = {p.name: inline_svg(p.svg, p.name, p.alt) for p in report.pictures}
    return environment.from_string(source).render(report=report, svgs=svgs, slugs=SLUGS)


OURS = ("report.md", "report.html", "tables", "figures")
"""What a report's folder has beside the tables it was made from; what is not of the report is deleted there."""
SLUGS = dict(zip(WORDS, ("holds", "where", "fails", "open"), strict=True))
"""Class of a verdict in the page."""
