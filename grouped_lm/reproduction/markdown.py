"""The report as Markdown: for a repository, a terminal, and machines without jinja2."""

from typing import TYPE_CHECKING

from grouped_lm.report.markdown import escape, markdown_table
from grouped_lm.reproduction.table import Table
from grouped_lm.reproduction.tables import verdicts_table
from grouped_lm.reproduction.verdicts import Answer

if TYPE_CHECKING:
    from grouped_lm.reproduction.page import Report

HEADING = ": the claims, checked"
"""How the first line of every report ends."""


def table_markdown(table: Table) -> str:
    """Return a table without its title."""
    return markdown_table(table.filled(), table.cells())


def verdicts_markdown(answers: list[Answer]) -> str:
    """Return the table of verdicts alone, as README has it."""
    return table_markdown(verdicts_table(answers))


def report_markdown(report: "Report") -> str:
    """Return the whole report."""
    paper = report.claims.paper
    text = f"# {paper['title']}{HEADING}\n\n{paper['authors']}, <{paper['url']}>\n\n"
    text += f"{report.origin()} " + "; ".join(f"{count} {word}" for word, count in report.counts()) + ".\n\n"
    text += f"## Verdicts\n\n{verdicts_markdown(report.answers)}\n"
    for answer in report.answers:
        text += claim_markdown(answer)
    for key, title, tables, pictures in report.sections():
        text += f"## {title}\n\n"
        for picture in pictures:
            text += f"![{escape(picture.alt)}](figures/{picture.name}.svg)\n\n"
        for table in tables:
            note = f" ({table.note})" if table.note else ""
            text += f"**{table.title}**{note}, `tables/{table.name}.csv`\n\n{table_markdown(table)}\n"
        for entry in report.stories if key == "stories" else []:
            for method, story in entry["texts"].items():
                text += f"**{method}**\n\n" + "".join(f"> {line}\n" for line in story.splitlines()) + "\n"
    return text


def claim_markdown(answer: Answer) -> str:
    """Return one claim in full: what it says, what was measured, both answers, and the runs behind them."""
    claim, verdict, ours = answer.claim, answer.verdict, answer.ours
    text = f"### {claim.says}\n\n"
    text += (f'"{claim.quote}" ({claim.source})' if claim.quote else f"({claim.source})") + f". {claim.measured}\n\n"
    parts = [f"**{verdict.text}**", verdict.figure, verdict.interval]
    text += f"- {escape('; '.join(p for p in parts if p not in ('', '-')))}. {escape(verdict.why)}\n"
    if ours is not None:
        parts = [f"with our best head: {ours.text}", ours.figure, ours.interval]
        text += f"- {escape('; '.join(p for p in parts if p not in ('', '-')))}. {escape(ours.why)}\n"
    if verdict.runs:
        text += f"- from {escape(', '.join(f'`{run}`' for run in verdict.runs))}\n"
    return text + "\n"
