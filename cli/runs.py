"""`gvc ls`, `gvc leaderboard` and `gvc dashboard`: several runs side by side."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Json, check_file, complete_run, starting


def list_runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUNS", help="Run folders, or folders of them; default runs/.", autocompletion=complete_run
        ),
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
    with starting():
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


def leaderboard(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="RUNS", help="Run folders, or folders of them.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="TEXT", help="A held-out text to evaluate on.")] = None,
    data: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the runs' text in the CSV.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep the rows here, and show all of them.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="HEAD", help="The heads to compare with; default: dense, in contests dense,trim."),
    ] = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Plot the losses along training here.")] = None,
) -> None:
    """Rank the heads of complete runs by their distance to the best dense head.

    Without runs, the rows of --csv are shown, by default those of runs/results: the first leaderboard, and the contests
    at equal tokens and at equal time. Each head counts at the learning rate with the most seeds, and of several such
    rates at the one with the lowest validation loss. At equal time the body is chosen in the same way.

    Example: gvc leaderboard runs/leaderboard-screen --report other.txt
    """
    with starting():
        from grouped_lm.errors import ConfigError
        from grouped_lm.report import leaderboard as board
        from grouped_lm.report.documents import merge_documents, read_documents

    check_file("--csv", csv)
    if folders:
        new, losses = board.leaderboard_rows(folders, report, data)
        if csv:
            merge_documents(csv, losses)
            boards = [(board.merge_rows(csv, new), read_documents(csv))]
        else:
            boards = [([board.text_row(row) for row in new], losses)]
    else:
        results = Path("runs/results")
        files = [csv] if csv else [results / "leaderboard.csv", *sorted(results.glob("equal-*.csv"))]
        if not files[0].is_file():
            raise ConfigError(f"--csv: there is no file {files[0]}, and no run folder is named")
        if report is not None or data is not None:
            raise ConfigError("--report and --data are for runs: name their folders")
        boards = [(board.read_rows(file), read_documents(file)) for file in files]
    heads = sorted({row["head"] for rows, _ in boards for row in rows})
    unknown = [head for head in (reference or "dense").split(",") if head not in ("dense", *heads)]
    if unknown:  # without a dense head there are no differences
        raise ConfigError(f"--reference: no run has the head {unknown[0]}; there are {', '.join(heads)}")
    for rows, losses in boards:
        _show_board(rows, losses, reference, plots)
    if folders and csv:
        print(csv)


def _show_board(rows: list[dict[str, Any]], losses: dict[Any, Any], reference: str | None, plots: Path | None) -> None:
    """Print a table for each place of a leaderboard, and draw its pictures."""
    from grouped_lm.errors import disk_errors
    from grouped_lm.report import leaderboard as board
    from grouped_lm.report import leaderboard_plot as pictures
    from grouped_lm.report.contest import places
    from grouped_lm.system.console import print_table

    timed = []
    for place in places(rows):
        names = reference or place.reference
        found = board.standings(place.rows, names, place.choice, losses, place.timed)
        print_table(board.standings_table(place, found, names).terminal())
        timed += [(place, found)] if place.timed else []
        if plots is not None and not place.timed:
            with disk_errors(plots):
                drawn = pictures.write_place_plots(place, found, names, plots)
            if not drawn:
                print(f"no picture: no head was evaluated at two steps or more that {names} has too")
            print(*drawn, sep="\n", end="\n" if drawn else "")
    if plots is not None and timed:
        with disk_errors(plots):
            print(*pictures.write_minutes_plots(timed, plots), sep="\n")


def dashboard(
    offline: Annotated[bool, typer.Option("--offline", help="Write JSON, even with a login.")] = False,
    project: Annotated[str, typer.Option(metavar="NAME", help="The W&B project of the runs.")] = "gvc",
    entity: Annotated[str | None, typer.Option(metavar="NAME", help="A user or team; default: your own.")] = None,
    name: Annotated[str, typer.Option(metavar="TEXT", help="Name of the view.")] = "gvc: quality, memory, speed",
    out: Annotated[Path, typer.Option(metavar="FILE", help="The JSON file.")] = Path("runs/dashboard.json"),
) -> None:
    """Create a W&B workspace with quality, memory, speed and their trade-off.

    Without a login the workspace is written as JSON. Offline runs are uploaded by wandb sync
    RUN/wandb/offline-run-*.

    Example: gvc dashboard --offline
    """
    from grouped_lm.errors import DiskError
    from grouped_lm.report.dashboard import build_workspace, save_workspace, workspace_json
    from grouped_lm.runs.tracking import has_key
    from grouped_lm.system.files import write_text

    if not offline and has_key():
        print(save_workspace(entity, project, name))
        return
    text = workspace_json(build_workspace(entity or "entity", project, name))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    except OSError as error:
        raise DiskError(f"--out {out} cannot be written ({error.strerror or error}): give another file") from error
    if not offline:
        typer.echo("gvc: no W&B key here: written as JSON; `wandb login` first saves it there", err=True)
    print(out)
