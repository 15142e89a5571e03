"""`gvc bench steps`: whole optimizer steps, and the step without a head, which is the limit.

Letters: B micro_batch_size, T block_size, V vocabulary.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from grouped_lm.bench.implementations import BASELINE, Implementation, Option, Tokens, forget_compiled, tune
from grouped_lm.bench.results import Cell, Row
from grouped_lm.bench.timing import Place, Sampler
from grouped_lm.bench.workload import Workload
from grouped_lm.config import AdamWConfig, ModelConfig
from grouped_lm.models import build_body, estimate_body_flops_per_token
from grouped_lm.models.lm import LanguageModel
from grouped_lm.optim import build_optimizer

CAP = "no head"
"""The step with the loss `hidden.pow(2).mean()`, which costs nothing, and the same body, embedding and optimizer."""
Batch = tuple[Tensor, Tensor]
State = dict[Any, Any]
Running = Callable[[], AbstractContextManager[None]]


def steps_cells(work: Workload) -> list[Cell]:
    """Return a cell per body. All implementations take turns in it."""
    grid = work.settings.steps
    shape = {"micro_batch_size": grid.micro_batch_size, "block_size": grid.block_size, "vocab_size": work.vocab_size}
    return [({"model": name, **shape}, partial(measure_body, work, name)) for name in grid.models]


def measure_body(work: Workload, name: str) -> list[Row]:
    """Return a row per implementation, and one for the step without a head."""
    grid = work.settings.steps
    loader = work.batches(grid.micro_batch_size, grid.block_size)
    batches = [loader.batch(index) for index in range(4)]
    return compare_steps(work, work.models[name], work.counts, work.train_file.tokens, batches, work.implementations)


def compare_steps(
    work: Workload,
    model: ModelConfig,
    counts: Tensor,
    tokens: Tokens,
    batches: Sequence[Batch],
    implementations: Sequence[Implementation],
) -> list[Row]:
    """Return rows of whole steps. All heads share one body, so that it needs memory once.

    Args:
        work: The settings.
        model: The body.
        counts: (V,) occurrences of the tokens.
        tokens: Returns the text, (T,) ids; None if there is no text.
        batches: (B, T) ids and targets, used in turn.
        implementations: The heads.
    """
    torch.manual_seed(work.settings.seed)
    forget_compiled(implementations)
    place = work.place
    batches = [(ids.to(place.device), targets.to(place.device)) for ids, targets in batches]
    body = build_body(model, counts.numel()).to(place.device)
    state: State = defaultdict(dict)

    def loss_without_head(input_ids: Tensor, targets: Tensor) -> Tensor:
        return body(input_ids).pow(2).mean()

    def sampler_of(module: nn.Module, forward: Any, running: Running) -> Sampler:
        return step_sampler(module, forward, running, batches, state, place)

    def runner_of(implementation: Implementation) -> tuple[nn.Module, Sampler, Row]:
        def plain_sampler(option: Option) -> Sampler:
            module = implementation.model(option, counts, body, tokens)
            return sampler_of(module, module, implementation.running)

        before = set(state)
        option, tried = tune(implementation.options_on(place.device.type), plain_sampler, 1)
        for parameter in set(state) - before - set(body.parameters()):
            del state[parameter]  # frees the optimizer state of the tried heads
        module = implementation.model(option, counts, body, tokens)
        step = sampler_of(module, implementation.forward(module), implementation.running)
        return module, step, {"head": implementation.name, **tried}

    cap = sampler_of(body, loss_without_head, nullcontext)
    runners: dict[str, tuple[nn.Module, Sampler, Row]] = {CAP: (body, cap, {"head": CAP, "option": "", "tried": ""})}
    runners |= {implementation.name: runner_of(implementation) for implementation in implementations}
    session = work.interleave({name: step for name, (_, step, _) in runners.items()})
    n_tokens = batches[0][0].numel()
    body_flops = estimate_body_flops_per_token(model, batches[0][0].shape[1])
    rows: list[Row] = []
    for name, timing in session.timings.items():
        module, _, row = runners[name]
        row |= timing.columns("ms")
        row |= step_rates(module, row["ms"], n_tokens, body_flops, session.gemm_flops_per_sec())
        rows.append(row | session.columns(name))
    return with_shares(rows)


def step_rates(module: nn.Module, ms: float, n_tokens: int, body_flops: float, gemm_flops_per_sec: float) -> Row:
    """Return the rates of a step. `mfu` is its FLOP rate over that of a matrix product."""
    head_flops = module.head.flops_per_token() if isinstance(module, LanguageModel) else 0.0
    flops, rate = 3 * (body_flops + head_flops), n_tokens / (ms / 1000)
    return {
        "tokens_per_sec": rate,
        "flops_per_token": flops,
        "head_flops_share": head_flops / (body_flops + head_flops),
        "mfu": rate * flops / gemm_flops_per_sec,
    }


def step_sampler(
    model: nn.Module, forward: Any, running: Running, batches: Sequence[Batch], state: State, place: Place
) -> Sampler:
    """Return a sampler that times a training step: loss, gradients, their norm, AdamW.

    Args:
        model: The model that is updated. The first step makes the optimizer's state.
        forward: The model, or its compiled form.
        running: Returns the context of a step.
        batches: (B, T) ids and targets, used in turn.
        state: The state of all optimizers of the cell, so that the body's averages exist once.
        place: The device and dtype.
    """
    optimizer = build_optimizer(AdamWConfig(lr=1e-4), model)
    optimizer.state = state  # type: ignore[assignment]
    turn = itertools.cycle(batches)

    def step() -> None:
        with place.autocast():
            loss = forward(*next(turn))
        getattr(loss, "nll", loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def sample() -> dict[str, float]:
        with running():
            return {"ms": place.timed(step)}

    return sample


def with_shares(rows: list[Row]) -> list[Row]:
    """Add the share of the limit's speed, and the speedup over dense and over the best chunked and adaptive heads."""
    by_name = {row["head"]: row for row in rows}
    baselines = {
        "over_dense": [BASELINE],
        "over_best_chunked": [name for name in by_name if name.startswith("dense, chunked")],
        "over_best_adaptive": [name for name in by_name if name.startswith("adaptive")],
    }
    for row in rows:
        row["share_of_cap"] = by_name[CAP]["ms"] / row["ms"]
        for column, names in baselines.items():
            times = [by_name[name]["ms"] for name in names if name in by_name]
            row[column] = min(times) / row["ms"] if times else None
        if BASELINE in by_name:
            row["flops_fewer_than_dense"] = by_name[BASELINE]["flops_per_token"] / row["flops_per_token"]
    return rows
