"""Words of a command line that stand for others: `init_from=RUN` and `train.micro_batch_size=auto`."""

import json
import shlex
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from grouped_lm.system.phases import say

from .compose import config_groups, parse, quoted
from .explain import is_override

ADOPTED = ("model", "head", "grouping", "data", "tokenizer")
"""Parts of the config that a run takes from its `init_from`."""
CHOOSERS = {"experiment", "variant"}
"""Config groups that choose several parts: beside them nothing is taken."""


def start_command(run: Path, overrides: list[str]) -> str:
    """Return the command that starts a run from the weights of `run`, to be copied into a shell."""
    word = f"init_from={run}"
    return shlex.join(["gvc", "train", word if is_override(word) else f"init_from={quoted(str(run))}", *overrides])


def auto_micro_batch(overrides: list[str]) -> list[str]:
    """Return the overrides with the flag that `train.micro_batch_size=auto` stands for."""
    return ["train.auto_micro_batch=true" if word == "train.micro_batch_size=auto" else word for word in overrides]


def adopt_source(overrides: list[str], swept: Iterable[str] = (), config_dir: str | None = None) -> list[str]:
    """Return the overrides, after those that give a run the parts of `ADOPTED` of its `init_from`, if it has one.

    A part that the overrides or a sweep over the keys `swept` choose is left to them; single keys of a part are
    replaced. The user's `config_dir` has choices of its own. Prints what was taken.
    """
    overrides = auto_micro_batch(overrides)
    parsed = parse(overrides)
    given = [o.value() for o in parsed if o.key_or_group == "init_from" and not o.is_sweep_override()]
    chosen = {o.key_or_group for o in parsed} | set(swept)
    if not given or not given[-1] or CHOOSERS & chosen:
        return overrides
    from grouped_lm.runs.load import load_config, own_tokenizer

    source = Path(str(given[-1]))
    saved = load_config(source)
    saved = replace(saved, tokenizer=own_tokenizer(source, saved.tokenizer))
    words: list[str] = []
    choices = config_groups(config_dir)
    taken = [part for part in ADOPTED if part not in chosen]
    for part in taken:
        values = asdict(getattr(saved, part))
        choice = values["source" if part == "data" else "name"]
        if part == "data" and choice == "hub":
            choice = "wikitext"  # any of the hub: all keys follow
        if choice in choices[part]:
            words.append(f"{part}={choice}")
        words += [
            f"{part}.{key}={as_word(value)}" for key, value in values.items() if key not in ("source", "cache_dir")
        ]
    if taken:
        say(f"gvc: {', '.join(taken)} as in {source} (init_from)")
    return [*words, *overrides]


def as_word(value: Any) -> str:
    """Return a value as Hydra's command line takes it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(as_word(part) for part in value)}]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)
