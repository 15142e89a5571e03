"""`gvc bench steps`: whole optimizer steps beside the step without any head, which no head can beat.

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
"""The step with `hidden.pow(2).mean()` for a loss: same body, embedding and optimizer."""
CAP_RUNNER = plain_implementation("steps", BASELINE)
"""How that step is run: plainly."""
Cell = tuple[Row, Callable[[], list[Row]]]
Batch = tuple[Tensor, Tensor]
State = dict[Any, Any]


def steps_cells(work: Workload) -> list[Cell]:
    """Return a cell per body, in which all implementations take turns; see `interleave`."""
    grid = work.settings.steps
    shape = {"micro_batch_size": grid.micro_batch_size, "block_size": grid.block_size, "vocab_size": work.vocab_size}
    return [({"model": name, **shape}, partial(measure_body, work, name)) for name in grid.models]


class NoHead(nn.Module):
    """A body and a loss that costs nothing."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Return the mean square of the states."""
        return self.body(input_ids).pow(2).mean()


@dataclass
class Contender:
    """A implementation's model, and what a step of it does."""

    model: nn.Module
    step: Sampler
    option: Option
    tried: dict[str, float]


def measure_body(work: Workload, name: str) -> list[Row]:
    """Return a row per implementation and one for the cap, which takes turns with them."""
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
    """Return rows of whole steps on one body that all share: weights of its own for every head, one body's memory.

    Args:
        work: settings.
        model: the body.
        vocab_size: V.
        text: (V,) occurrences of the tokens, and what gives the tokens themselves where there are any.
        batches: (B, T) ids and targets, used in turn.
        implementations: the heads.
    """
    torch.manual_seed(work.settings.seed)
    forget_compiled(implementations)
    place = work.place
    batches = [(ids.to(place.device), targets.to(place.device)) for ids, targets in batches]
    body = build_body(model, vocab_size).to(place.device)
    cap, state = NoHead(body), defaultdict(dict)  # type: ignore[var-annotated]
    contenders = {CAP: Contender(cap, step_sampler(CAP_RUNNER, cap, cap, batches, state, place), {}, {})}
    for implementation in implementations:
        shape = model.n_embd, vocab_size, text
        contenders[implementation.name] = _contend(implementation, *shape, body, batches, state, place)
    session = interleave({name: c.step for name, c in contenders.items()}, work.settings.meter, place.calibrate)
    say_too_large(session)
    n_tokens = batches[0][0].numel()
    body_flops = estimate_body_flops_per_token(model, batches[0][0].shape[1])
    rows = [
        step_row(name, c, session, n_tokens, body_flops) for name, c in contenders.items() if name in session.timings
    ]
    return with_shares(rows)


def _contend(
    implementation: Implementation,
    n_embd: int,
    vocab_size: int,
    text: tuple[Tensor, Tokens],
    body: nn.Module,
    batches: Sequence[Batch],
    state: State,
    place: Place,
) -> Contender:
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
            del state[parameter]  # the tried heads go, and with them what they weigh
    option = options[best] if best else next(iter(options.values()))
    model = model_with(option)
    return Contender(model, sampler_of(model, implementation.forward(model)), option, tried)


def step_sampler(
    implementation: Implementation, model: nn.Module, forward: Any, batches: Sequence[Batch], state: State, place: Place
) -> Sampler:
    """Return what times a step of the loop in `train`: loss, gradients, their norm, AdamW.

    Args:
        implementation: how the head is run.
        model: whose parameters are updated. The optimizer's state is made at the first step.
        forward: the model, or its compiled form.
        batches: used in turn.
        state: of all optimizers of the cell: the body's two averages exist once, not once per implementation.
        place: where.
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


def step_row(name: str, contender: Contender, session: Session, n_tokens: int, body_flops: float) -> Row:
    """Return what one implementation's steps took and computed; `mfu` is the share of the matrix product's speed."""
    head = getattr(contender.model, "head", None)
    head_flops = head.flops_per_token() if head is not None else 0.0
    times = session.timings[name].columns("ms")
    rate = n_tokens / (times["ms"] / 1000)
    return {
        "head": name,
        "option": describe_option(contender.option),
        "tried": describe_tuning(contender.tried),
        **times,
        "tokens_per_sec": rate,
        "flops_per_token": 3 * (body_flops + head_flops),
        "head_flops_share": head_flops / (body_flops + head_flops),
        "mfu": rate * 3 * (body_flops + head_flops) / session.gemm_flops_per_sec(),
        **session.columns(name),
    }


def with_shares(rows: list[Row]) -> list[Row]:
    """Add the share of the cap's speed, and how many times faster than each kind of implementation a row is."""
    by_name = {row["head"]: row for row in rows}
    rivals = {
        "over_dense": [BASELINE],
        "over_best_chunked": [name for name in by_name if name.startswith("dense, chunked")],
        "over_best_adaptive": [name for name in by_name if name.startswith("adaptive")],
    }
    for row in rows:
        row["share_of_cap"] = by_name[CAP]["ms"] / row["ms"]
        for column, names in rivals.items():
            times = [by_name[name]["ms"] for name in names if name in by_name]
            row[column] = min(times) / row["ms"] if times else None
        if BASELINE in by_name:
            row["flops_fewer_than_dense"] = by_name[BASELINE]["flops_per_token"] / row["flops_per_token"]
    return rows
