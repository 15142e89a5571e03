"""`gvc ls`."""

import json
from pathlib import Path
from typing import Annotated

import typer


def list_runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders of them; default runs/.")
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help="Only runs with head=grouped, perplexity<70, ...")] = None,
    sort: Annotated[str | None, typer.Option(help="Order by a column: perplexity, tokens/s, seed, ...")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Largest first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout, every figure in full.")] = False,
) -> None:
    """Show runs side by side: quality, speed, memory, size."""
    from grouped_lm.display import print_table
    from grouped_lm.report import collect_runs, comparison_table, select_rows, sort_rows, to_csv

    rows = select_rows(collect_runs(folders or [Path("runs")]), where or [])
    if sort is not None:
        rows = sort_rows(rows, sort, reverse)
    if as_json:
        print(json.dumps(rows, indent=2))
    elif as_csv:
        print(to_csv(rows), end="")
    elif not rows:
        print("no run meets these conditions")
    else:
        print_table(comparison_table(rows))
