"""The output of `gvc eval` for people: metrics, means by frequency and position, comparisons."""

from typing import Any

from rich.console import Console
from rich.table import Table

from grouped_lm.evaluate.llm_judge import CRITERIA
from grouped_lm.system.console import print_table

ROWS = (
    ("validation perplexity", "perplexity", "{:,.2f}"),
    ("nats per token", "loss", "{:.4f}"),
    ("bits per byte", "bits_per_byte", "{:.4f}"),
    ("perplexity per word", "perplexity_per_word", "{:,.1f}"),
    ("top-1 accuracy", "top1_accuracy", "{:.1%}"),
    ("top-5 accuracy", "top5_accuracy", "{:.1%}"),
    ("calibration error", "calibration_error", "{:.4f}"),
    ("nats for the group", "loss_group", "{:.4f}"),
    ("nats inside the group", "loss_token", "{:.4f}"),
    ("group accuracy", "group_accuracy", "{:.1%}"),
    ("accuracy inside the group", "token_in_group_accuracy", "{:.1%}"),
    ("calibration error of the group", "group_calibration_error", "{:.4f}"),
)
"""Label, key after `val/` and `story/`, and format."""
OTHER_ROWS = (
    ("the right last sentence of four", "task/choice_accuracy", "{:.1%}"),
    ("the last word", "task/cloze_accuracy", "{:.1%}"),
    ("generated: distinct 1-grams", "sample/distinct_1", "{:.3f}"),
    ("generated: distinct 2-grams", "sample/distinct_2", "{:.3f}"),
    ("generated: distinct 3-grams", "sample/distinct_3", "{:.3f}"),
    ("generated: repeated 4-grams", "sample/repetition_4", "{:.1%}"),
    ("generated: ends in end-of-text", "sample/end_of_text", "{:.1%}"),
    ("generated: mean length, tokens", "sample/mean_tokens", "{:,.1f}"),
)


def make_table(
    columns: tuple[str, ...], rows: list[tuple[str, ...]], title: str | None = None, texts: int = 1
) -> Table:
    """Return a table whose first `texts` columns are aligned left."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < texts else "right")
    for row in rows:
        table.add_row(*row)
    return table


def metric_rows(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return label, value for the text as one sequence, and value for single stories, of all metrics that exist."""
    rows: list[tuple[str, ...]] = [
        (label, form.format(metrics[f"val/{key}"]), form.format(metrics[f"story/{key}"]))
        for label, key, form in ROWS
        if metrics.get(f"val/{key}") is not None
    ]
    rows += [(label, form.format(metrics[key]), "") for label, key, form in OTHER_ROWS if key in metrics]
    rows += [
        (f"{task} {name.removesuffix(',none')}", f"{value:,.4f}", "")
        for task, results in metrics.get("harness", {}).items()
        for name, value in results.items()
        if isinstance(value, float)
    ]
    for name in CRITERIA:
        if f"judge/{name}" in metrics:
            value, half = metrics[f"judge/{name}"], metrics[f"judge/{name}_half_width"]
            rows.append((f"{name}, 1 to 10, by {metrics['judge/model']}", f"{value:.2f} ± {half:.2f}", ""))
    return rows


def print_run(metrics: dict[str, Any]) -> None:
    """Print the evaluation of one run: metrics, means by frequency and position, and the diagnosis."""
    title = f"{metrics['run']}, step {metrics['trainer/step']:,}"
    print_table(make_table(("", "packed", "per story"), metric_rows(metrics), title))
    for key, label in (("by_frequency", "training frequency"), ("by_position", "tokens read before")):
        if metrics.get(key):
            rows: list[tuple[str, ...]] = [
                (row["name"], f"{row['tokens']:,}", f"{row['loss']:.4f}", f"{row['top1_accuracy']:.1%}")
                for row in metrics[key]
            ]
            print_table(make_table((label, "targets", "nats", "top-1"), rows))
    lines = [f"{metrics['val/tokens']:,} targets. packed: {metrics['reading']['val']}."]
    lines.append(f"per story: {metrics['reading']['story']}.")
    if not metrics.get("by_frequency"):
        lines.append("By training frequency: not known, the training text is not there.")
    console = Console(highlight=False, width=120)
    for line in [*judge_lines(metrics), *lines, *metrics["diagnosis"]]:
        console.print(line, soft_wrap=True)


def judge_lines(metrics: dict[str, Any]) -> list[str]:
    """Return the number of graded stories and the cost of the LLM judge, or nothing if there was none."""
    if "judge/prompt_tokens" not in metrics:
        return []
    cost = metrics.get("judge/cost_usd")
    return [
        f"{metrics['judge/stories']} stories graded; {metrics['judge/prompt_tokens']:,} tokens asked, "
        f"{metrics['judge/completion_tokens']:,} answered" + (f", {cost:.4f} USD." if cost is not None else ".")
    ]


def print_comparison(comparison: dict[str, Any]) -> None:
    """Print the differences between checkpoints, and the verdicts about methods."""

    def interval(row: dict[str, Any]) -> str:
        return "one seed" if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}"

    checkpoints: list[tuple[str, ...]] = [
        (row["first"], row["second"], f"{row['difference']:+.4f}", interval(row), f"{row['p_value']:.4f}")
        for row in comparison["checkpoints"]
    ]
    columns: tuple[str, ...] = ("first", "second", "nats per token", "95 % interval", "p")
    title = "These checkpoints, story by story (second less first)"
    print_table(make_table(columns, checkpoints, title, texts=5))
    methods: list[tuple[str, ...]] = []
    for row in comparison["methods"]:
        seeds = " + ".join(map(str, row["seeds"]))
        methods.append((row["first"], row["second"], seeds, f"{row['difference']:+.4f}", interval(row), row["verdict"]))
    if methods:
        columns = ("first", "second", "seeds", "nats per token", "90 % interval", "within 0.01 nats")
        print_table(make_table(columns, methods, "These methods, over seeds (second less first)", texts=6))
