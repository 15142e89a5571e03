"""The output of `gvc eval` for people: metrics, means by frequency and position, comparisons."""

from importlib.resources import files
from typing import Any

import yaml
from rich.table import Table

from grouped_lm.evaluate.llm_judge import CRITERIA
from grouped_lm.system.console import print_lines, print_table

ROWS = yaml.safe_load(files("grouped_lm.evaluate").joinpath("tables.yaml").read_text(encoding="utf-8"))


def print_rows(columns: dict[str, str], rows: list[dict[str, Any]], title: str | None = None, texts: int = 1) -> None:
    """Print a table whose first `texts` columns are aligned left; `columns` has the format of each column's cells."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < texts else "right")
    for row in rows:
        table.add_row(*(form.format(**row) for form in columns.values()))
    print_table(table)


def metric_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the label of each metric that exists, its value for the text as one sequence, and for single stories."""
    cells = [
        (label, form.format(metrics[f"val/{key}"]), form.format(metrics[f"story/{key}"]))
        for label, key, form in ROWS["texts"]
        if metrics.get(f"val/{key}") is not None
    ]
    cells += [(label, form.format(metrics[key]), "") for label, key, form in ROWS["others"] if key in metrics]
    cells += [
        (f"{task} {name.removesuffix(',none')}", f"{value:,.4f}", "")
        for task, results in metrics.get("harness", {}).items()
        for name, value in results.items()
        if isinstance(value, float)
    ]
    for name in CRITERIA:
        if f"judge/{name}" in metrics:
            value, half = metrics[f"judge/{name}"], metrics[f"judge/{name}_half_width"]
            cells.append((f"{name}, 1 to 10, by {metrics['judge/model']}", f"{value:.2f} ± {half:.2f}", ""))
    return [{"label": label, "packed": packed, "story": story} for label, packed, story in cells]


def print_run(metrics: dict[str, Any]) -> None:
    """Print the evaluation of one run: metrics, means by frequency and position, and the diagnosis."""
    title = f"{metrics['run']}, step {metrics['trainer/step']:,}"
    print_rows({"": "{label}", "packed": "{packed}", "per story": "{story}"}, metric_rows(metrics), title)
    means = {"targets": "{tokens:,}", "nats": "{loss:.4f}", "top-1": "{top1_accuracy:.1%}"}
    for key, label in (("by_frequency", "training frequency"), ("by_position", "tokens read before")):
        if metrics.get(key):
            print_rows({label: "{name}"} | means, metrics[key])
    lines = [
        f"{metrics['val/tokens']:,} targets. packed: {metrics['reading']['val']}.",
        f"per story: {metrics['reading']['story']}.",
    ]
    if not metrics.get("by_frequency"):
        lines.append("By training frequency: not known, the training text is not there.")
    if "judge/prompt_tokens" in metrics:
        cost = metrics.get("judge/cost_usd")
        lines.insert(
            0,
            f"{metrics['judge/stories']} stories graded; {metrics['judge/prompt_tokens']:,} tokens asked, "
            f"{metrics['judge/completion_tokens']:,} answered" + (f", {cost:.4f} USD." if cost is not None else "."),
        )
    print_lines([*lines, *metrics["diagnosis"]])


def print_comparison(comparison: dict[str, Any]) -> None:
    """Print the differences between checkpoints, and the verdicts about methods."""

    def with_interval(row: dict[str, Any]) -> dict[str, Any]:
        alone = "one seed" if "seeds" in row else "one story"
        interval = alone if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}"
        p_value = "-" if row.get("p_value") is None else f"{row['p_value']:.4f}"
        return row | {"interval": interval, "p": p_value, "of_seeds": " + ".join(map(str, row.get("seeds", ())))}

    names, difference = {"first": "{first}", "second": "{second}"}, {"nats per token": "{difference:+.4f}"}
    print_rows(
        names | difference | {"95 % interval": "{interval}", "p": "{p}"},
        [with_interval(row) for row in comparison["checkpoints"]],
        "These checkpoints, story by story (second less first)",
        texts=5,
    )
    if comparison["methods"]:
        ends = {"90 % interval": "{interval}", "within 0.01 nats": "{verdict}"}
        print_rows(
            names | {"seeds": "{of_seeds}"} | difference | ends,
            [with_interval(row) for row in comparison["methods"]],
            "These methods, over seeds (second less first)",
            texts=6,
        )
