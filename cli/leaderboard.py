"""`gvc leaderboard`."""

import itertools
from pathlib import Path
from typing import Annotated

import typer


def leaderboard(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders of them; none: the CSV alone.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="TEXT", help="Judge the runs on this text, which nothing was chosen by.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="NAME", help="What to call the runs' text in the CSV.")] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="Keep the rows there, a row a run, and show all that it has. Without runs the default is "
            "runs/results/leaderboard.csv.",
        ),
    ] = None,
    reference: Annotated[str, typer.Option(metavar="HEAD", help="The head that others are held against.")] = "dense",
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw the differences along training into this folder.")
    ] = None,
) -> None:
    """Rank the heads of complete runs, and show how far each is from the best dense one.

    Rows of the same run are replaced. Each head stands at the learning rate with the most seeds, and of these at the
    one that is best on its runs' own validation text.
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
