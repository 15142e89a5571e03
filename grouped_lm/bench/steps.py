"""`gvc bench steps`: whole optimizer steps, and the step without a head, which is the limit.

Letters: B micro_batch_size, T block_size, V vocabulary.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from grouped_lm.bench.implementations import (
    BASELINE,
    Implementation,
    Option,
    Tokens,
    describe_option,
    describe_tuning,
    forget_compiled,
    plain_implementation,
)
from grouped_lm.bench.place import Place
from grouped_lm.bench.results import Row
from grouped_lm.bench.timing import Sampler, Session, interleave, quickest
from grouped_lm.bench.workload import Workload, say_too_large
from grouped_lm.config import AdamWConfig, ModelConfig
from grouped_lm.models import build_body, estimate_body_flops_per_token
from grouped_lm.models.lm import LanguageModel
from grouped_lm.optim import build_optimizer

CAP = "no head"
"""The step with the loss `hidden.pow(2).mean()`, and the same body, embedding and optimizer."""
CAP_RUNNER = plain_implementation("steps", BASELINE)
"""How that step is run."""
Cell = tuple[Row, Callable[[], list[Row]]]
Batch = tuple[Tensor, Tensor]
State = dict[Any, Any]


def steps_cells(work: Workload) -> list[Cell]:
    """Return a cell per body. All implementations take turns in it."""
    grid = work.settings.steps
    shape = {"micro_batch_size": grid.micro_batch_size, "block_size": grid.block_size, "vocab_size": work.vocab_size}
    return [({"model": name, **shape}, partial(measure_body, work, name)) for name in grid.models]


class NoHead(nn.Module):
    """A body and a loss that costs nothing."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Return the mean square of the states, a loss that costs nothing."""
        return self.body(input_ids).pow(2).mean()


@dataclass
class StepRunner:
    """The model of an implementation, its timed step, and the options that were tried."""

    model: nn.Module
    step: Sampler
    option: Option
    tried: dict[str, float]


def measure_body(work: Workload, name: str) -> list[Row]:
    """Return a row per implementation, and one for the step without a head."""
    grid = work.settings.steps
    loader = work.batches(grid.micro_batch_size, grid.block_size)
    batches = [loader.batch(index) for index in range(4)]
    text = work.counts, work.train_file.tokens
    return compare_steps(work, work.models[name], work.vocab_size, text, batches, work.implementations)


def compare_steps(
    work: Workload,
    model: ModelConfig,
    vocab_size: int,
    text: tuple[Tensor, Tokens],
    batches: Sequence[Batch],
    implementations: Sequence[Implementation],
) -> list[Row]:
    """Return rows of whole steps. All heads share one body, so that it needs memory once.

    Args:
        work: The settings.
        model: The body.
        vocab_size: V.
        text: (V,) counts of the tokens, and a function that returns the tokens, or None.
        batches: (B, T) ids and targets, used in turn.
        implementations: The heads.
    """
    torch.manual_seed(work.settings.seed)
    forget_compiled(implementations)
    place = work.place
    batches = [(ids.to(place.device), targets.to(place.device)) for ids, targets in batches]
    body = build_body(model, vocab_size).to(place.device)
    cap, state = NoHead(body), defaultdict(dict)  # type: ignore[var-annotated]
    runners = {CAP: StepRunner(cap, step_sampler(CAP_RUNNER, cap, cap, batches, state, place), {}, {})}
    for implementation in implementations:
        shape = model.n_embd, vocab_size, text
        runners[implementation.name] = _step_runner(implementation, *shape, body, batches, state, place)
    session = interleave({name: c.step for name, c in runners.items()}, work.settings.meter, place.calibrate)
    say_too_large(session)
    n_tokens = batches[0][0].numel()
    body_flops = estimate_body_flops_per_token(model, batches[0][0].shape[1])
    rows = [step_row(name, c, session, n_tokens, body_flops) for name, c in runners.items() if name in session.timings]
    return with_shares(rows)


def _step_runner(
    implementation: Implementation,
    n_embd: int,
    vocab_size: int,
    text: tuple[Tensor, Tokens],
    body: nn.Module,
    batches: Sequence[Batch],
    state: State,
    place: Place,
) -> StepRunner:
    wte: Any = body.wte.weight  # type: ignore[union-attr]

    def model_with(option: Option) -> LanguageModel:
        counts, tokens = text
        return LanguageModel(body, implementation.build(option, n_embd, vocab_size, counts, wte, tokens))

    def sampler_of(model: LanguageModel, forward: Any) -> Sampler:
        return step_sampler(implementation, model, forward, batches, state, place)

    options = {describe_option(option): option for option in implementation.options_on(place.device.type)}
    best, tried = "", dict[str, float]()
    if len(options) > 1:
        before = set(state)
        models = {name: model_with(o) for name, o in options.items()}
        best, tried = quickest({name: sampler_of(model, model) for name, model in models.items()}, "ms", 1)
        del models
        for parameter in set(state) - before - set(body.parameters()):
            del state[parameter]  # frees the optimizer state of the tried heads
    option = options[best] if best else next(iter(options.values()))
    model = model_with(option)
    return StepRunner(model, sampler_of(model, implementation.forward(model)), option, tried)


def step_sampler(
    implementation: Implementation, model: nn.Module, forward: Any, batches: Sequence[Batch], state: State, place: Place
) -> Sampler:
    """Return a sampler that times a training step: loss, gradients, their norm, AdamW.

    Args:
        implementation: How the head is run.
        model: The model that is updated. The first step makes the optimizer's state.
        forward: The model, or its compiled form.
        batches: (B, T) ids and targets, used in turn.
        state: The state of all optimizers of the cell, so that the body's averages exist once.
        place: The device and dtype.
    """
    optimizer = build_optimizer(AdamWConfig(lr=1e-4), model)
    optimizer.state = state  # type: ignore[assignment]
    count = 0

    def step() -> None:
        nonlocal count
        with place.autocast():
            loss = forward(*batches[count % len(batches)])
        getattr(loss, "nll", loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        count += 1

    def sample() -> dict[str, float]:
        with implementation.running():
            return {"ms": place.timed(step)}

    return sample


def step_row(name: str, runner: StepRunner, session: Session, n_tokens: int, body_flops: float) -> Row:
    """Return the row of one implementation. `mfu` is its FLOP rate over that of a matrix product."""
    head = getattr(runner.model, "head", None)
    head_flops = head.flops_per_token() if head is not None else 0.0
    times = session.timings[name].columns("ms")
    rate = n_tokens / (times["ms"] / 1000)
    return {
        "head": name,
        "option": describe_option(runner.option),
        "tried": describe_tuning(runner.tried),
        **times,
        "tokens_per_sec": rate,
        "flops_per_token": 3 * (body_flops + head_flops),
        "head_flops_share": head_flops / (body_flops + head_flops),
        "mfu": rate * 3 * (body_flops + head_flops) / session.gemm_flops_per_sec(),
        **session.columns(name),
    }


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
