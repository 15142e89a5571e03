"""`gvc demo`."""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from .options import Overrides

HEADS = {
    "dense": ["experiment=demo-dense"],
    "the paper's head": ["experiment=demo", "head=grouped"],
    "the default": ["experiment=demo"],
}
"""The columns of the table, and what trains them."""
PROMPT = "One day"


def demo(overrides: Overrides = None) -> None:
    """Train three heads on generated stories for some minutes, and compare them.

    The full softmax, the paper's head and the default head have the same body, read the same tokens and have the
    learning rate that is the best of three for each. No network is needed.

    Example: gvc demo
    """
    from grouped_lm.errors import ConfigError
    from grouped_lm.generate import Sampling, generate_texts
    from grouped_lm.jobs.launch import preflight, run_training

    from .compose.compose import HydraFlags
    from .compose.run import compose_one

    for word in overrides or []:
        if (key := word.partition("=")[0].lstrip("+~")) in ("head", "variant", "experiment"):
            raise ConfigError(f"{word}: gvc demo compares three heads, so that it chooses {key} itself: leave it out")
        if key.startswith("hydra") or key == "data":
            what = "generates its text" if key == "data" else "makes a folder in runs/"
            raise ConfigError(f"{word}: gvc demo {what} itself: leave it out, or take gvc train")
    folder = Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    configs = {name: compose_one([*words, *(overrides or [])], HydraFlags()) for name, words in HEADS.items()}
    results: dict[str, dict[str, Any]] = {}
    for name, config in configs.items():
        preflight(config)
        results[name] = run_training(config, folder / config.head.name)
    print_columns(results)
    for name, config in configs.items():
        run = folder / config.head.name
        (text,) = generate_texts(run, config, prompt=PROMPT, max_new_tokens=60, sampling=Sampling(temperature=0.5))
        print(f"\nA story of {name}:\n{PROMPT}{text.text}")
    print(f"\n{closing_sentence(results)}\n\nNext, on your own text:\n  {next_command()}")


def print_columns(results: dict[str, dict[str, Any]]) -> None:
    """Print a table with a column per head."""
    from rich.table import Table

    from grouped_lm.system.console import CLOSING_ROWS, print_table

    table = Table("", title=f"{tokens_of(results):,} tokens of generated stories each", title_justify="left")
    for name in results:
        table.add_column(name, justify="right")
    for label, key, form in CLOSING_ROWS:
        cells = [form.format(r[key]) if r.get(key) is not None else "-" for r in results.values()]
        if set(cells) != {"-"}:
            table.add_row(label, *cells)
    print_table(table)


def tokens_of(results: dict[str, dict[str, Any]]) -> int:
    """Return the tokens that each head has read."""
    (tokens,) = {result["trainer/tokens"] for result in results.values()}
    return int(tokens)


def closing_sentence(results: dict[str, dict[str, Any]]) -> str:
    """Return what was measured, in one sentence."""
    dense, paper, default = (f"{result['val/perplexity']:.1f}" for result in results.values())
    slow, _, fast = (result.get("throughput/tokens_per_sec") for result in results.values())
    speed = (
        f", and the default trained {fast / slow:.1f} times as fast as dense on this machine" if fast and slow else ""
    )
    return (
        f"After {tokens_of(results):,} tokens of generated stories, with one seed and a tuned learning rate for each "
        f"head, the validation perplexity is {default} with the default head, {dense} with dense and {paper} "
        f"with the paper's head{speed}."
    )


def next_command() -> str:
    """Return the command to train on a text of one's own, as this shell can run it."""
    called = Path(sys.argv[0])
    gvc = os.path.relpath(called) if called.name == "gvc" and not shutil.which("gvc") else "gvc"
    return f"{gvc} train data=text data.train=train.txt data.valid=valid.txt"
