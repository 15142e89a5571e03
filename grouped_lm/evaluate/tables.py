"""What a person sees of `gvc eval`: figures, tables by frequency and position, verdicts."""

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
OTHER_ROWS = (
    ("the right last sentence of four", "task/choice_accuracy", "{:.1%}"),
    ("the last word", "task/cloze_accuracy", "{:.1%}"),
    ("written: distinct 1-grams", "sample/distinct_1", "{:.3f}"),
    ("written: distinct 2-grams", "sample/distinct_2", "{:.3f}"),
    ("written: distinct 3-grams", "sample/distinct_3", "{:.3f}"),
    ("written: repeated 4-grams", "sample/repetition_4", "{:.1%}"),
    ("written: ends in end-of-text", "sample/end_of_text", "{:.1%}"),
    ("written: mean length, tokens", "sample/mean_tokens", "{:,.1f}"),
)


def print_run(figures: dict[str, Any]) -> None:
    """Print one run: both readings side by side, what was written, where the loss lies, the diagnosis."""
    table = Table(title=f"{figures['run']}, step {figures['trainer/step']:,}", title_justify="left")
    table.add_column("")
    for column in ("packed", "per story"):
        table.add_column(column, justify="right")
    for label, key, form in ROWS:
        if figures.get(f"val/{key}") is not None:
            table.add_row(label, form.format(figures[f"val/{key}"]), form.format(figures[f"story/{key}"]))
    for label, key, form in OTHER_ROWS:
        if key in figures:
            table.add_row(label, form.format(figures[key]), "")
    for task, results in figures.get("harness", {}).items():
        for name, value in results.items():
            if isinstance(value, float):
                table.add_row(f"{task} {name.removesuffix(',none')}", f"{value:,.4f}", "")
    for name in CRITERIA:
        if f"judge/{name}" in figures:
            value, half = figures[f"judge/{name}"], figures[f"judge/{name}_half_width"]
            table.add_row(f"{name}, 1 to 10, says {figures['judge/model']}", f"{value:.2f} ± {half:.2f}", "")
    print_table(table)
    if "judge/prompt_tokens" in figures:
        print_costs(figures)
    for key, title in (("by_frequency", "training frequency"), ("by_position", "tokens read before")):
        if figures.get(key):
            print_table(means_table(title, figures[key]))
    console = Console(highlight=False, width=120)
    console.print(f"{figures['val/tokens']:,} targets. packed: {figures['reading']['val']}.", soft_wrap=True)
    console.print(f"per story: {figures['reading']['story']}.", soft_wrap=True)
    if not figures.get("by_frequency"):
        console.print("By training frequency: not known, the training text is not there.")
    for sentence in figures["diagnosis"]:
        console.print(sentence)


def print_costs(figures: dict[str, Any]) -> None:
    """Print how many stories a judge graded, and what that took."""
    cost = figures.get("judge/cost_usd")
    Console(highlight=False, width=120).print(
        f"{figures['judge/stories']} stories graded; {figures['judge/prompt_tokens']:,} tokens asked, "
        f"{figures['judge/completion_tokens']:,} answered" + (f", {cost:.4f} USD." if cost is not None else "."),
        soft_wrap=True,
    )


def means_table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Return means by some label as a table."""
    table = Table(title_justify="left")
    for column in (title, "targets", "nats", "top-1"):
        table.add_column(column, justify="left" if column == title else "right")
    for row in rows:
        table.add_row(row["name"], f"{row['tokens']:,}", f"{row['loss']:.4f}", f"{row['top1_accuracy']:.1%}")
    return table


def print_comparison(found: dict[str, Any]) -> None:
    """Print the differences between checkpoints, then the verdicts about methods."""
    table = Table(title="These checkpoints, story by story (second less first)", title_justify="left")
    for column in ("first", "second", "nats per token", "95 % interval", "p"):
        table.add_column(column)
    for row in found["checkpoints"]:
        interval = f"{row['low']:+.4f} to {row['high']:+.4f}"
        table.add_row(row["first"], row["second"], f"{row['difference']:+.4f}", interval, f"{row['p_value']:.4f}")
    print_table(table)
    if not found["methods"]:
        return
    table = Table(title="These methods, over seeds (second less first)", title_justify="left")
    for column in ("first", "second", "seeds", "nats per token", "90 % interval", "within 0.01 nats"):
        table.add_column(column)
    for row in found["methods"]:
        interval = "one seed" if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}"
        seeds = " + ".join(map(str, row["seeds"]))
        table.add_row(row["first"], row["second"], seeds, f"{row['difference']:+.4f}", interval, row["verdict"])
    print_table(table)
