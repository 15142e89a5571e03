"""`gvc report`: the page of verdicts, tables and pictures from any runs."""

import functools
from pathlib import Path
from typing import Annotated

import typer


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Run folders, bench folders, or a report's folder.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: report/ in the first folder.")] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Compare the verdict table in FILE. Write nothing.")
    ] = None,
    into: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the verdict table into FILE.")] = None,
) -> None:
    """Write a page that answers every claim of the paper from runs and benches.

    The page is report.html and report.md, with tables as CSV and plots as SVG. The same runs give the same bytes. A
    claim without evidence reads "not shown at this scale".

    Example: gvc report runs/reproduce-smoke
    """
    from grouped_lm.reproduction.evidence import DATA
    from grouped_lm.reproduction.page import default_place, write_report
    from grouped_lm.reproduction.report import check_table, split_at_marks, write_table

    say = functools.partial(typer.echo, err=True)
    if check is not None:
        check_table(check, folders)
        print(f"{check}: its verdicts are those of {', '.join(map(str, folders))}")
        return
    if into is not None:
        split_at_marks(into)
    place = out or default_place(folders[0])
    page = write_report(folders, place, say)
    if not any((place / DATA).iterdir()):
        say(f"gvc: no run and no bench in {', '.join(map(str, folders))}: nothing speaks for any claim")
    if into is not None:
        write_table(into, folders)
    print(page)
