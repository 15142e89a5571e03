"""Output for people: progress and closing table of a run on stderr, and tables on stdout."""

from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from grouped_lm.system.phases import Phase, say
from grouped_lm.system.tables import GIB, columns, show

LINE = {
    "train/loss": "loss {:.3f}",
    "train/perplexity": "ppl {:,.1f}",
    "val/perplexity": "val ppl {:,.2f}",
    "throughput/tokens_per_sec": "{:,.0f} tok/s",
    "memory": "peak {}",
}
"""Figures of `one_line`."""
LEAST_FIRST = ("memory", "train/perplexity", "throughput/tokens_per_sec", "val/perplexity", "train/loss")
FIXED_WIDTH = 34
"""Characters of a progress line beside title, steps and figures: spinner, shortest bar, time left, gaps."""

CLOSING_ROWS = columns("""
    validation perplexity = val/perplexity {:,.2f}; validation nats per token = val/loss {:.4f}
    nats of the network alone = val/loss_head {:.4f}; nats of the counts alone = val/loss_prior {:.4f}
    nats with one weight = val/loss_weight {:.4f}; share of the counts = val/prior_share {:.1%}
    bits per byte = val/bits_per_byte {:.4f}; group accuracy = val/group_accuracy {:.1%}
    accuracy inside the group = val/token_in_group_accuracy {:.1%}
    tokens per second = throughput/tokens_per_sec {:,.0f}; milliseconds per step = time/step_ms {:,.1f}
    share of the matrix-multiply roof = throughput/mfu {:.1%}; peak GPU memory, GiB = memory/peak_gpu_gib {:.3f}
    peak tensor memory, GiB = memory/peak_tensor_gib {:.3f}
    peak memory of the head alone, GiB = memory/peak_head_gib {:.3f}
    peak resident memory, GiB = memory/peak_rss_gib {:.3f}
    steps left out in float16 = train/overflow_steps {:,}
    parameters = params/total {:,}; parameters of the head alone = params/head {:,}
""")


def peak_memory_gib(row: dict[str, Any]) -> float | None:
    """Return the peak memory of a run: of the GPU's allocator if there is one, else of live tensors."""
    return row.get("memory/peak_gpu_gib") or row.get("memory/peak_tensor_gib")


def one_line(row: dict[str, Any], width: int | None = None) -> str:
    """Return one line with the loss, perplexity, speed and memory of a row of metrics, as far as it has them.

    Figures that do not fit into `width` characters are left out, the least important one first.
    """
    peak = peak_memory_gib(row)
    row = row | {"memory": peak and show(peak * GIB, "bytes")}
    figures = {key: form.format(row[key]) for key, form in LINE.items() if row.get(key) is not None}
    for key in LEAST_FIRST:
        if width is not None and len("  ".join(figures.values())) > width:
            figures.pop(key, None)
    return "  ".join(figures.values())


class TrainDisplay:
    """A progress line while training, and the closing table. With `quiet` nothing is shown."""

    def __init__(self, title: str, max_steps: int, step: int, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._title, self._max_steps, self._first_step = title, max_steps, step
        self._phase = Phase(title, max_steps)

    def __enter__(self) -> "TrainDisplay":
        self._phase.start()
        self._phase.update(self._first_step)
        return self

    def __exit__(self, *exception: object) -> None:
        self._phase.stop()

    def step(self, step: int) -> None:
        """Move the bar."""
        self._phase.update(step)

    def row(self, step: int, row: dict[str, Any]) -> None:
        """Show a row of metrics."""
        if self._console.is_terminal:
            taken = len(self._title) + 2 * len(str(self._max_steps)) + FIXED_WIDTH
            self._phase.update(step, note=one_line(row, self._console.width - taken))
        else:
            self._console.print(f"{self._title}  step {step}/{self._max_steps}  {one_line(row)}", soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line above the progress."""
        if not self._console.quiet:
            say(text)

    def close(self, result: dict[str, Any]) -> None:
        """Remove the progress line and print the closing table."""
        self._phase.stop()
        self._console.print(metrics_table(self._title, result))


def metrics_table(title: str, metrics: dict[str, Any]) -> Table:
    """Return a table of the final metrics of one run, one per line."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for label, key, form in CLOSING_ROWS:
        if metrics.get(key) is not None:
            table.add_row(label, form.format(metrics[key]))
    return table


def print_table(table: Table) -> None:
    """Print a table on stdout. On a terminal it is split into blocks of columns that fit the width.

    Title and caption use the width of the terminal, also above a narrow table. Elsewhere they are not wrapped.
    """
    console, bare = Console(highlight=False), copy(table)
    bare.title = bare.caption = None
    if not console.is_terminal:
        console = Console(highlight=False, width=natural_width(bare))
    if table.title:
        console.print(table.title, style="table.title", soft_wrap=not console.is_terminal)
    for block in column_blocks(bare, console.width):
        console.print(block)
    if table.caption:
        console.print(table.caption, style="table.caption", soft_wrap=not console.is_terminal)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on stdout. A terminal wraps them between words."""
    console = Console(highlight=False)
    for line in lines:
        console.print(line, markup=False, soft_wrap=not console.is_terminal)


def print_entries(entries: Iterable[tuple[str, str]]) -> None:
    """Print on stdout a list of names, each with a text below it."""
    console = Console(highlight=False)
    for name, text in entries:
        console.print(Text(name, "bold"), soft_wrap=not console.is_terminal)
        if console.is_terminal:
            console.print(Padding(Text(text), (0, 0, 0, 4)))
        else:
            console.print(f"    {text}", markup=False, soft_wrap=True)


def terminal_width() -> int | None:
    """Return the width of the terminal in characters, and None if stdout is not a terminal."""
    console = Console()
    return console.width if console.is_terminal else None


def natural_width(table: Table) -> int:
    """Return the width in characters at which no cell of a table is wrapped."""
    return Console(width=10_000).measure(table).maximum


def column_blocks(table: Table, width: int) -> list[Table]:
    """Return the table split into tables of at most `width` characters. Each one repeats the first column.

    The first column then takes at most a third. A column that does not fit has a table of its own with wrapped cells.
    """
    if natural_width(table) <= width or len(table.columns) < 3:
        return [table]
    table = with_columns(table, table.columns[1:], width // 3)
    blocks: list[list[Column]] = []
    for column in table.columns[1:]:
        wider = [*blocks[-1], column] if blocks else [column]
        if blocks and natural_width(with_columns(table, wider)) <= width:
            blocks[-1] = wider
        else:
            blocks.append([column])
    tables = [with_columns(table, block) for block in blocks]
    for part in tables:
        part.title, part.caption = None, None
    tables[0].title, tables[-1].caption = table.title, table.caption
    return tables


def with_columns(table: Table, others: list[Column], first_width: int | None = None) -> Table:
    """Return a table of the first column of `table`, at most `first_width` wide, and of `others`."""
    narrow = copy(table)
    narrow.columns = [replace(column, _index=index) for index, column in enumerate([table.columns[0], *others])]
    narrow.columns[0].max_width = first_width or table.columns[0].max_width
    return narrow


class EvalDisplay:
    """The phases of an evaluation, one after the other. A bar may cover several of them."""

    def __init__(self) -> None:
        self._phase: Phase | None = None

    def __enter__(self) -> "EvalDisplay":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._phase is not None:
            self._phase.stop()

    def phase(self, text: str, total: float | None = None) -> None:
        """Say what is done now. With `total` a bar of so many units begins, which take equal times.

        Without it a bar that is not full stays.
        """
        if self._phase is not None and total is None and not self._phase.is_full:
            self._phase.rename(text)
            return
        self.__exit__()
        self._phase = Phase(text, total, counted=False)
        self._phase.start()

    def done(self, units: float) -> None:
        """Move the bar by so many units."""
        if self._phase is not None:
            self._phase.advance(units)


def print_checks(checks: list[Any]) -> None:
    """Print the results of `gvc doctor`, one per line."""
    console = Console(highlight=False)
    for check in checks:
        mark = "[red]no[/]  " if not check.ok else "[yellow]look[/]" if check.warn else "[green]ok[/]  "
        console.print(f"{mark}{check.what}: {escape(check.detail)}", soft_wrap=not console.is_terminal)
