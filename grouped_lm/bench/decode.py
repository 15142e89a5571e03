"""`gvc bench decode`: milliseconds of one new token, head and whole, plain, greedy and top-p.

Letters: B sequences side by side, D width, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from grouped_lm.bench.competitors import BASELINE
from grouped_lm.bench.heads import Cell
from grouped_lm.bench.results import Row
from grouped_lm.bench.timing import Sampler, interleave, timed
from grouped_lm.bench.workload import Workload
from grouped_lm.heads import DenseHead, Head
from grouped_lm.models import build_body
from grouped_lm.models.lm import LanguageModel
from grouped_lm.run_folder import RunFolder

Picker = Callable[[Head, Tensor], Tensor]


def pick_plain(head: Head, states: Tensor) -> Tensor:
    """Draw (B,) ids from the joint distribution of (B, D) states."""
    return torch.multinomial(head.log_prob(states).exp(), 1).squeeze(1)


def pick_greedy(head: Head, states: Tensor) -> Tensor:
    """Take the likeliest ids."""
    return head.log_prob(states).argmax(-1)


def pick_top_p(head: Head, states: Tensor, top_p: float) -> Tensor:
    """Draw from the fewest likeliest ids that hold `top_p` of the probability."""
    probs, ids = head.log_prob(states).exp().sort(-1, descending=True)
    probs[probs.cumsum(-1) - probs >= top_p] = 0.0
    return ids.gather(1, torch.multinomial(probs, 1)).squeeze(1)


def decode_cells(work: Workload) -> list[Cell]:
    """Return a cell per B; all heads and ways are measured in the same rounds of it."""
    grid = work.settings.decode
    label = {"model": grid.model, "context": grid.context, "runs": grid.runs}
    return [({**label, "batch_size": batch}, partial(measure_cell, work, batch)) for batch in grid.batches]


def contenders(work: Workload) -> dict[str, LanguageModel]:
    """Return the runs' models by folder, or fresh ones of every competitor with its first option, on one body.

    Compiled and chunked variants are left out: without a loss they are the plain dense head.
    """
    grid = work.settings.decode
    torch.manual_seed(work.settings.seed)
    if grid.runs:
        folders = [RunFolder(Path(run)) for run in grid.runs]
        return {str(folder.path): folder.load_model(folder.read_config(), torch.device("cpu"))[0] for folder in folders}
    config = work.models[grid.model]
    body = build_body(config, work.vocab_size)
    wte = body.wte.weight
    found = {}
    for c in work.competitors:
        if not c.name.startswith("dense,") or c.name == "dense, untied":
            head = c.build(c.options[0], config.n_embd, work.vocab_size, work.counts, wte)  # type: ignore[arg-type]
            found[c.name] = LanguageModel(body, head).eval()
    return found


def measure_cell(work: Workload, batch_size: int) -> list[Row]:
    """Return a row per head and way."""
    grid = work.settings.decode
    ways: dict[str, Picker] = {
        "plain": pick_plain,
        "greedy": pick_greedy,
        "top-p": partial(pick_top_p, top_p=grid.top_p),
    }
    ids, _ = work.batches(batch_size, grid.context).batch(0)
    models = contenders(work)
    names = [(head, way) for way in ways for head in models]
    samplers = {f"{head}|{way}": token_sampler(models[head], ids, ways[way]) for head, way in names}
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
    """Return what times the body over the context, and the head on its last states: together a whole token."""

    @torch.no_grad()
    def sample() -> dict[str, float]:
        found: list[Tensor] = []
        body_ms = timed(lambda: found.append(model.hidden(ids)[:, -1]))
        head_ms = timed(lambda: pick(model.head, found[0]))
        return {"head_ms": head_ms, "ms": body_ms + head_ms}

    return sample
