"""`gvc ls`."""

import json
from pathlib import Path
from typing import Annotated

import typer


def list_runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders of them; default runs/.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Only runs with head=grouped,dense, state!=complete, 'seed<3' ...; may be repeated.",
        ),
    ] = None,
    sort: Annotated[str | None, typer.Option(metavar="COLUMN", help="Sort by a column, smallest first.")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Largest first, or the last run first.")] = False,
    wide: Annotated[bool, typer.Option("--wide", help="Show every column, also those that do not fit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout: every figure of every run.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout: the same.")] = False,
) -> None:
    """Show runs side by side: state, quality, speed, memory, size.

    A run in training reads `running`, one that nobody trains `unfinished`, with its last figures. `front` marks the
    runs shown that no other on the same text beats in loss, tokens/s and peak memory together.
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
