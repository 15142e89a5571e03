"""`gvc ls`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import Json


def list_runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="RUNS", help="Run folders, or folders of them; default runs/.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="CONDITION", help="Only runs with head=dense or seed<3. Repeatable.")
    ] = None,
    sort: Annotated[str | None, typer.Option(metavar="COLUMN", help="Sort by a column, smallest first.")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Reverse the order.")] = False,
    wide: Annotated[bool, typer.Option("--wide", help="Show every column.")] = False,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Show runs side by side: state, quality, speed, memory, size.

    The column front marks runs of the Pareto front: no other run on the same text is better in loss, tokens/s and peak
    memory together.

    Example: gvc ls --where head=dense,grouped --sort perplexity
    """
    from grouped_lm.errors import ConfigError
    from grouped_lm.report.tables import comparison_table, runs_csv
    from grouped_lm.runs.query import mark_front, select_rows, sort_rows
    from grouped_lm.runs.table import collect_runs
    from grouped_lm.system.console import print_table, terminal_width

    if as_json and as_csv:
        raise ConfigError("--json or --csv, not both")
    rows = collect_runs(folders or [Path("runs")])
    mark_front(rows)  # so that a condition may name it
    rows = select_rows(rows, where or [])
    mark_front(rows)
    if sort is not None:
        rows = sort_rows(rows, sort, reverse)
    elif reverse:
        rows.reverse()
    if as_json:
        print(json.dumps(rows, indent=2))
    elif as_csv:
        print(runs_csv(rows), end="")
    elif rows:
        print_table(comparison_table(rows, wide, terminal_width()))
    else:
        typer.echo(f"no run with {' and '.join(where or [])}", err=True)
