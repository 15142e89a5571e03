"""`gvc leaderboard`."""

import itertools
from pathlib import Path
from typing import Annotated

import typer


def leaderboard(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="RUNS", help="Run folders, or folders of them.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="TEXT", help="A held-out text to evaluate on.")] = None,
    data: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the runs' text in the CSV.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep the rows here, and show all of them.")] = None,
    reference: Annotated[str, typer.Option(metavar="HEAD", help="The head to compare with.")] = "dense",
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Plot the differences along training here.")] = None,
) -> None:
    """Rank the heads of complete runs by their distance to the best dense head.

    Without runs, the rows of --csv are shown, by default runs/results/leaderboard.csv. Each head counts at the learning
    rate with the most seeds, and of several such rates at the one with the lowest validation loss.

    Example: gvc leaderboard runs/leaderboard-screen --report other.txt
    """
    from grouped_lm.errors import ConfigError, disk_errors
    from grouped_lm.report.leaderboard import (
        SETTING,
        leaderboard_rows,
        merge_rows,
        read_rows,
        standings,
        standings_table,
        text_row,
    )
    from grouped_lm.report.leaderboard_plot import write_leaderboard_plot
    from grouped_lm.system.console import print_table

    if folders:
        new = leaderboard_rows(folders, report, data)
        rows = merge_rows(csv, new) if csv else [text_row(row) for row in new]
    else:
        csv = csv or Path("runs/results/leaderboard.csv")
        if not csv.is_file():
            raise ConfigError(f"--csv: there is no file {csv}, and no run folder is named")
        if report is not None or data is not None:
            raise ConfigError("--report and --data are for runs: name their folders")
        rows = read_rows(csv)
    heads = sorted({row["head"] for row in rows})
    if reference not in ("dense", *heads):  # without a dense head there are no differences
        raise ConfigError(f"--reference: no run has the head {reference}; there are {', '.join(heads)}")
    ordered = sorted(rows, key=lambda row: [row[key] for key in SETTING])
    for place, own in itertools.groupby(ordered, key=lambda row: [row[key] for key in SETTING]):
        title = "{}, {} of width {}, {} layers, {} steps, {} tokens".format(*place)
        found = standings(list(own), reference)
        print_table(standings_table(title, found, reference).terminal())
        if plots is not None:
            name = "leaderboard-{}-{}-{}x{}-{}-{}".format(*place).replace("/", "-")
            with disk_errors(plots):
                drawn = write_leaderboard_plot(title, found, reference, plots / name)
            if not drawn:
                print(f"no picture: no head was evaluated at two steps or more that {reference} has too")
            print(*drawn, sep="\n", end="\n" if drawn else "")
    if folders and csv:
        print(csv)
