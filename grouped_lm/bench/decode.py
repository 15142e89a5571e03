"""`gvc bench decode`: milliseconds of one new token, head and whole, plain, greedy and top-p.

Letters: B sequences side by side, D width, V vocabulary.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from grouped_lm.bench.heads import Cell
from grouped_lm.bench.implementations import BASELINE
from grouped_lm.bench.results import Row
from grouped_lm.bench.timing import Sampler, interleave, timed
from grouped_lm.bench.workload import Workload
from grouped_lm.generate import Context
from grouped_lm.heads import DenseHead, Head
from grouped_lm.heads.decoding.truncation import Truncation
from grouped_lm.models import build_body
from grouped_lm.models.lm import LanguageModel
from grouped_lm.runs.load import load_config, load_model

Picker = Callable[[Head, Tensor], Tensor]


def ways_to_pick(top_p: float) -> dict[str, Picker]:
    """Return how `gvc sample` may choose the next token, each exact for the joint distribution of (B, D) states.

    Fresh heads are nearly uniform, for which top-p keeps most of V; runs show what it costs in use.
    """
    truncation = Truncation(top_p=top_p)
    return {
        "plain": lambda head, states: head.sample(states),
        "greedy": lambda head, states: head.argmax(states),
        "top-p": lambda head, states: head.sample(states, truncation=truncation),
    }


def decode_cells(work: Workload) -> list[Cell]:
    """Return a cell per B, in which all heads and ways take turns; see `interleave`."""
    grid = work.settings.decode
    label = {"model": grid.model, "context": grid.context, "runs": grid.runs}
    return [({**label, "batch_size": batch}, partial(measure_cell, work, batch)) for batch in grid.batches]


def contenders(work: Workload) -> dict[str, LanguageModel]:
    """Return the runs' models by folder, or fresh ones of every implementation that is as configured, on one body.

    Others are left out: compiled, tuned, and of another's code, they differ in how a loss is computed or chosen, and
    here there is none.
    """
    grid = work.settings.decode
    torch.manual_seed(work.settings.seed)
    if grid.runs:
        return {run: load_model(Path(run), load_config(Path(run)), torch.device("cpu"))[0] for run in grid.runs}
    config = work.models[grid.model]
    body = build_body(config, work.vocab_size)
    wte = body.wte.weight
    found = {}
    for c in work.implementations:
        if c.is_plain:
            head = c.build({}, config.n_embd, work.vocab_size, work.counts, wte, work.train_file.tokens)  # type: ignore[arg-type]
            found[c.name] = LanguageModel(body, head).eval()
    return found


def measure_cell(work: Workload, batch_size: int) -> list[Row]:
    """Return a row per head and way."""
    grid = work.settings.decode
    ways = ways_to_pick(grid.top_p)
    ids, _ = work.batches(batch_size, grid.context).batch(0)
    models = contenders(work)
    names = [(head, way) for way in ways for head in models]
    samplers = {f"{head}|{way}": token_sampler(models[head], ids, ways[way]) for head, way in names}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(model.head.frozen())
        session = interleave(samplers, work.settings.meter)
    rows: list[Row] = []
    for head, way in names:
        timing = session.timings[f"{head}|{way}"]
        columns = timing.columns("head_ms") | timing.columns("ms") | session.columns(f"{head}|{way}")
        rows.append({"head": head, "way": way, **columns})
    dense = next((h for h, m in models.items() if h == BASELINE or isinstance(m.head, DenseHead)), None)
    for row in rows:
        base = next((r for r in rows if r["head"] == dense and r["way"] == row["way"]), None)
        row["head_speedup"] = base and base["head_ms"] / row["head_ms"]
        row["speedup"] = base and base["ms"] / row["ms"]
    return rows


def token_sampler(model: LanguageModel, ids: Tensor, pick: Picker) -> Sampler:
    """Return what times the body over one new token behind a cached context, and the head on its states."""

    @torch.no_grad()
    def sample() -> dict[str, float]:
        context, found = Context(model, ids[:, :-1]), list[Tensor]()
        context.states()  # reads what stands before, untimed
        context.append(ids[:, -1])
        body_ms = timed(lambda: found.append(context.states()))
        head_ms = timed(lambda: pick(model.head, found[0]))
        return {"head_ms": head_ms, "ms": body_ms + head_ms}

    return sample
