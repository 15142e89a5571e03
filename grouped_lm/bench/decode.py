"""`gvc bench decode`: the time of one new token, for the head and the whole model, by sampling method.

Letters: B sequences side by side, D width, V vocabulary.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from grouped_lm.bench.implementations import BASELINE
from grouped_lm.bench.results import Cell, Row
from grouped_lm.bench.timing import Sampler, timed
from grouped_lm.bench.workload import Workload
from grouped_lm.data import prepare_split
from grouped_lm.data.loader import TrainBatches
from grouped_lm.errors import ConfigError
from grouped_lm.generate import Context
from grouped_lm.heads import DenseHead, Head
from grouped_lm.heads.decoding.truncation import Truncation
from grouped_lm.models import build_body
from grouped_lm.models.lm import LanguageModel
from grouped_lm.runs.load import load_config, load_model, own_tokenizer

Picker = Callable[[Head, Tensor], Tensor]


def ways_to_pick(top_p: float) -> dict[str, Picker]:
    """Return the ways in which `gvc sample` chooses the next token from (B, D) states, each exact.

    A new head is nearly uniform, so top-p keeps most of V. A trained run shows the usual cost.
    """
    truncation = Truncation(top_p=top_p)
    return {
        "plain": lambda head, states: head.sample(states),
        "greedy": lambda head, states: head.argmax(states),
        "top-p": lambda head, states: head.sample(states, truncation=truncation),
    }


def decode_cells(work: Workload) -> list[Cell]:
    """Return a cell per B. All heads and ways take turns in it."""
    grid = work.settings.decode
    label = {"model": grid.model, "context": grid.context, "runs": grid.runs}
    return [({**label, "batch_size": batch}, partial(measure_cell, work, batch)) for batch in grid.batches]


def models_to_time(work: Workload) -> dict[str, LanguageModel]:
    """Return the models of the runs by folder, or a new model of every plain implementation, on one body.

    Other implementations differ only in how the loss is computed, and decoding computes no loss.
    """
    grid = work.settings.decode
    torch.manual_seed(work.settings.seed)
    if grid.runs:
        return {run: model_of_run(run, grid.context) for run in grid.runs}
    body, tokens = build_body(work.models[grid.model], work.vocab_size), work.train_file.tokens
    return {i.name: i.model({}, work.counts, body, tokens).eval() for i in work.implementations if i.is_plain}


def model_of_run(run: str, context: int) -> LanguageModel:
    """Return the trained model in a run folder; raise `ConfigError` if it has fewer positions than the context."""
    config = load_config(Path(run))
    if context > config.model.block_size:
        raise ConfigError(
            f"decode.context must be in [2, {config.model.block_size}] for decode.runs={run}, the run's "
            f"model.block_size, got {context}"
        )
    return load_model(Path(run), config, torch.device("cpu"))[0]


def contexts(work: Workload, names: list[str], batch_size: int) -> dict[str, Tensor]:
    """Return the (B, T) ids that each model reads: of the bench's text, in a run's own tokenizer."""
    grid, settings = work.settings.decode, work.settings
    if not grid.runs:
        return dict.fromkeys(names, work.batches(batch_size, grid.context).batch(0)[0])
    ids = {}
    for run in names:
        tokenizer = own_tokenizer(Path(run), load_config(Path(run)).tokenizer)
        tokens = prepare_split(settings.data, tokenizer, "train").tokens()
        ids[run] = TrainBatches(tokens, grid.context, batch_size, settings.seed).batch(0)[0]
    return ids


def measure_cell(work: Workload, batch_size: int) -> list[Row]:
    """Return a row per head and way."""
    grid = work.settings.decode
    ways = ways_to_pick(grid.top_p)
    models = models_to_time(work)
    ids = contexts(work, list(models), batch_size)
    samplers = {(h, w): token_sampler(model, ids[h], ways[w]) for w in ways for h, model in models.items()}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(model.head.frozen())
        session = work.interleave({"|".join(key): sampler for key, sampler in samplers.items()})
    rows: list[Row] = []
    for head, way in samplers:
        name = f"{head}|{way}"
        timing = session.timings[name]
        columns = timing.columns("head_ms") | timing.columns("ms") | session.columns(name)
        kind = {"run_head": load_config(Path(head)).head.name} if grid.runs else {}
        rows.append({"head": head, "way": way, **kind, **columns})
    dense = next((h for h, m in models.items() if h == BASELINE or isinstance(m.head, DenseHead)), None)
    for row in rows:
        base = next((r for r in rows if r["head"] == dense and r["way"] == row["way"]), None)
        row["head_speedup"] = base and base["head_ms"] / row["head_ms"]
        row["speedup"] = base and base["ms"] / row["ms"]
    return rows


def token_sampler(model: LanguageModel, ids: Tensor, pick: Picker) -> Sampler:
    """Return a sampler that times the body on one new token after a cached context, and the head on its state."""

    @torch.no_grad()
    def sample() -> dict[str, float]:
        context, states = Context(model, ids[:, :-1]), list[Tensor]()
        context.states()  # reads the context, untimed
        context.append(ids[:, -1])
        body_ms = timed(lambda: states.append(context.states()))
        head_ms = timed(lambda: pick(model.head, states[0]))
        return {"head_ms": head_ms, "ms": body_ms + head_ms}

    return sample
