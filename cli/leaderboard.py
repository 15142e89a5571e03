"""`gvc leaderboard`."""

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from grouped_lm.report.leaderboard import Standing


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
    from grouped_lm.report.leaderboard import PLACE, ladder_rows, merge_rows, read_rows, standings, text_row
    from grouped_lm.report.leaderboard_plot import write_leaderboard_plot
    from grouped_lm.system.console import print_table

    if folders:
        new = ladder_rows(folders, report, data)
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
    ordered = sorted(rows, key=lambda row: [row[key] for key in PLACE])
    for place, own in itertools.groupby(ordered, key=lambda row: [row[key] for key in PLACE]):
        title = "{}, {} of width {}, {} layers, {} steps, {} tokens".format(*place)
        found = standings(list(own), reference)
        print_table(table(title, found, reference))
        if plots is not None:
            name = "leaderboard-{}-{}-{}x{}-{}-{}".format(*place).replace("/", "-")
            with disk_errors(plots):
                drawn = write_leaderboard_plot(title, found, reference, plots / name)
            if not drawn:
                print(f"no picture: no head was evaluated at two steps or more that {reference} has too")
            print(*drawn, sep="\n", end="\n" if drawn else "")
    if folders and csv:
        print(csv)


def table(title: str, found: "list[Standing]", reference: str) -> "Table":
    """Return the standings as a terminal shows them."""
    from rich.table import Table

    from grouped_lm.report.leaderboard import short_names

    shown = Table(
        "head", "lr", "seeds", "nats", "bits/byte", f"minus best {reference}", "95 %", "along training", title=title
    )
    partly = len({entry.judged for entry in found}) == 2
    notes = ["of the --report text, where runs were judged on one", "b: bits per byte"]
    notes += ["*: of the runs' own validation text"] if partly else []
    shown.caption = "; ".join([*notes, "along training: of the runs' validation text"])
    names = short_names(found)
    for entry in found:
        unit = "" if entry.unit == "loss_nats" else " b"
        gap = "" if entry.difference is None else f"{entry.difference:+.3f}{unit}"
        interval = "" if entry.low is None or entry.high is None else f"{entry.low:+.3f} to {entry.high:+.3f}{unit}"
        points = entry.trend[:: -max(1, len(entry.trend) // 4)][::-1]  # the last one among them
        along = " ".join(f"{gap:+.3f}" for _, gap in points)
        bits = "" if math.isnan(entry.bits_per_byte) else f"{entry.bits_per_byte:.4f}"
        nats = f"{entry.loss:.4f}" + ("*" if partly and not entry.judged else "")
        shown.add_row(names[entry.head], entry.lr, str(entry.seeds), nats, bits, gap, interval, along)
    return shown
