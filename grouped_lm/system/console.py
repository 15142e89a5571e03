"""Output for people: progress and closing table of a run on stderr, and tables on stdout."""

from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import replace
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from grouped_lm.system.tables import columns

Part = TypeVar("Part")

CLOSING_ROWS = columns("""
    validation perplexity = val/perplexity {:,.2f}; validation nats per token = val/loss {:.4f}
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


def one_line(row: dict[str, Any]) -> str:
    """Return one line with the loss, perplexity, speed and memory of a row of metrics, as far as it has them."""
    forms = {
        "train/loss": "loss {:.3f}",
        "train/perplexity": "ppl {:,.1f}",
        "val/perplexity": "val ppl {:,.2f}",
        "throughput/tokens_per_sec": "{:,.0f} tok/s",
        "memory": "peak {:.2f} GiB",
    }
    row = row | {"memory": peak_memory_gib(row)}
    return "  ".join(form.format(row[key]) for key, form in forms.items() if row.get(key) is not None)


class TrainDisplay:
    """A progress line while training, and the closing table. With `quiet` nothing is shown."""

    def __init__(self, title: str, max_steps: int, step: int, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._title, self._max_steps = title, max_steps
        self._line = ""
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=1, overflow="ellipsis")),
            BarColumn(bar_width=6),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(max_steps)) + 1)),
            TextColumn("{task.fields[line]}", table_column=Column(no_wrap=True, min_width=44)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
            console=self._console,
            expand=True,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task(title, total=max_steps, completed=step, line="")

    def __enter__(self) -> "TrainDisplay":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def step(self, step: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=step)

    def row(self, step: int, row: dict[str, Any]) -> None:
        """Show a row of metrics."""
        self._line = one_line(row)
        if self._console.is_terminal:
            self._progress.update(self._task, completed=step, line=self._line)
        else:
            self._console.print(f"{self._title}  step {step}/{self._max_steps}  {self._line}", soft_wrap=True)

    def validating(self, parts: Iterable[Part], total: int) -> Iterator[Part]:
        """Yield `parts`, and show on a terminal how many of `total` are done."""
        for done, part in enumerate(parts):
            self._progress.update(self._task, line=f"validating {done}/{total}")
            yield part
        self._progress.update(self._task, line=self._line)

    def say(self, text: str) -> None:
        """Print a line above the progress."""
        self._console.print(text, soft_wrap=True, markup=False)

    def close(self, result: dict[str, Any]) -> None:
        """Remove the progress line and print the closing table."""
        self._progress.stop()
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
    """Print a table on stdout. On a terminal it is split into blocks of columns that fit the width."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=natural_width(table))
    for block in column_blocks(table, console.width):
        console.print(block)


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


class PrepareDisplay(Progress):
    """A progress bar on stderr while a corpus is prepared. It shows nothing if the corpus is prepared already."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False)
        columns = TextColumn("preparing text"), BarColumn(bar_width=18), TextColumn("{task.fields[line]}")
        super().__init__(*columns, console=console, disable=not console.is_terminal, transient=True)

    def progress(self, done: int, total: int | None) -> None:
        """Show `done` of `total` units. None is an unknown total."""
        if not self.task_ids:
            self.add_task("text", total=total, line="")
        self.update(self.task_ids[0], completed=done, total=total, line=f"{done:,}")


class EvalDisplay(Progress):
    """A progress bar of an evaluation on stderr, with the time left; without a terminal, one line per phase."""

    def __init__(self, disable: bool = False) -> None:
        console = Console(stderr=True, highlight=False, quiet=disable)
        columns = (
            TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=2, overflow="ellipsis")),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
        )
        off = disable or not console.is_terminal
        super().__init__(*columns, console=console, disable=off, transient=True, expand=True)

    def phase(self, text: str, total: float | None = None) -> None:
        """Say what is done now. With `total`, a new bar of so many units begins; units take equal times."""
        if self.disable:
            self.console.print(text, soft_wrap=True)
        if total is None and self.task_ids:
            self.update(self.task_ids[-1], description=text, refresh=True)
            return
        for task in self.task_ids:
            self.remove_task(task)
        self.add_task(text, total=total)

    def done(self, units: float) -> None:
        """Move the bar by so many units."""
        self.update(self.task_ids[-1], advance=units)


def print_checks(checks: list[Any]) -> None:
    """Print the results of `gvc doctor`, one per line."""
    console = Console(highlight=False)
    for check in checks:
        mark = "[red]no[/]  " if not check.ok else "[yellow]look[/]" if check.warn else "[green]ok[/]  "
        console.print(f"{mark}{check.what}: {check.detail}", soft_wrap=True)
