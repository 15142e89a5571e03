"""`gvc bench memory`: peak memory of whole steps, measured by allocator events and predicted from fake tensors.

The suite has four parts: `truth` (measured and predicted bytes by kind), `claim` (predicted ratios, and the batch that
reaches the paper's), `fit` (the measured ratio at the largest dense batch in a given memory), and `grid` (B x T,
training and inference). Letters: B micro_batch_size, T block_size.
"""

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from grouped_lm.bench.implementations import BASELINE, Implementation, Tokens, plain_implementation
from grouped_lm.bench.results import Cell, Row
from grouped_lm.bench.steps import Batch
from grouped_lm.bench.workload import Workload, say
from grouped_lm.config import Config, ModelConfig, TrainConfig
from grouped_lm.distributed.parallel import clip_gradients
from grouped_lm.errors import ConfigError
from grouped_lm.heads import HEADS
from grouped_lm.measure.live_bytes import KINDS, Moments
from grouped_lm.measure.memory import GIB, PeakTensorMemory, live_state, tensor_bytes
from grouped_lm.models.lm import LanguageModel, build_lm, estimate_body_flops_per_token
from grouped_lm.optim import build_optimizer
from grouped_lm.plan.fake_step import fake_model, fake_passes, fake_steps, faking, make_state, watch_step, with_shape
from grouped_lm.plan.heads import MAX_BATCH, largest, least_batch, peak_function

PAIR = plain_implementation("memory", BASELINE), plain_implementation("memory", "grouped")
"""The claim is the paper's head against the full softmax."""


def memory_cells(work: Workload) -> list[Cell]:
    """Return the cells of all four parts."""
    grid = work.settings.memory
    claimed = [plain_implementation("memory.claim_heads", name) for name in grid.claim_heads]
    refuse_unpredictable(work, claimed)
    watched = [c for c in work.implementations if c.is_plain and c.variant.name in HEADS]
    watched += [head for head in claimed if head not in watched]  # predictions are compared with real steps
    cells: list[Cell] = []
    for name, batch in itertools.product(grid.truth_models, grid.truth_batches):
        shape = {"model": name, "micro_batch_size": batch, "block_size": grid.truth_block_size}
        for head in watched:
            config = config_of(work, work.models[name], head, batch, grid.truth_block_size)
            cells.append(({"part": "truth", **shape, "head": head.name}, partial(measure_truth, work, config)))
    for head, name, attention in itertools.product(claimed, grid.claim_models, ("fused", "unfused")):
        cell = {"part": "claim", "model": name, "attention": attention, "block_size": grid.claim_block_size}
        cell |= ({} if head == PAIR[1] else {"head": head.name}) | {"batches": grid.claim_batches}
        cells.append((cell, partial(predict_claim, work, head, name, attention)))
    for name in grid.fit_models:
        cell = {"part": "fit", "model": name, "block_size": grid.claim_block_size}
        cells.append((cell, partial(measure_fit, work, name)))
    for context, head in itertools.product(grid.grid_block_sizes, PAIR):
        cell = {"part": "grid", "model": grid.grid_model, "block_size": context, "head": head.name}
        cells.append((cell | {"batches": grid.grid_batches}, partial(measure_grid, work, head, context)))
    return cells


def refuse_unpredictable(work: Workload, claimed: list[Implementation]) -> None:
    """Raise `ConfigError` for a head whose memory depends on tokens, before anything is measured."""
    grid = work.settings.memory
    for head in claimed if grid.claim_models else []:
        config = config_of(work, work.models[grid.claim_models[0]], head, 1, grid.claim_block_size)
        if HEADS[config.head.name].head.sizes_follow_text or predicted_peak(config) is None:
            raise ConfigError(
                "memory.claim_heads must be of heads whose sizes do not depend on the tokens of a batch or of the "
                f"text, got {head.name!r}"
            )


def config_of(
    work: Workload, model: ModelConfig, head: Implementation, batch: int, context: int, has_text: bool = True
) -> Config:
    """Return the config of a run with the head at B and T. `has_text` is whether groups can be made from the text."""
    return Config(
        seed=work.settings.seed,
        model=dataclasses.replace(model, block_size=context),
        head=head.config(),
        grouping=head.grouping_config(has_text),
        tokenizer=work.settings.tokenizer,
        train=TrainConfig(micro_batch_size=batch),
    )


def real_model(
    config: Config, counts: Tensor, tokens: Tokens = None, vocab_size: int | None = None
) -> tuple[LanguageModel, torch.optim.Optimizer]:
    """Return the model of a run, and its optimizer with the state of a first step; V is by default the tokenizer's."""
    torch.manual_seed(config.seed)
    model = build_lm(config, counts.numpy, tokens, vocab_size=vocab_size).train()
    optimizer = build_optimizer(config.optim, model)
    make_state(model, optimizer)
    return model, optimizer


def update(
    model: LanguageModel, optimizer: torch.optim.Optimizer, make_batch: Callable[[], Batch], grad_clip: float
) -> None:
    """Do a training step."""
    model(*make_batch()).nll.backward()
    clip_gradients(model, grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def allocator_peak(
    config: Config, model: LanguageModel, optimizer: torch.optim.Optimizer, make_batch: Callable[[], Batch]
) -> int:
    """Return the peak bytes of a real training step, from the events of the allocator."""
    with PeakTensorMemory(tensor_bytes(live_state(model, optimizer))) as peak:
        update(model, optimizer, make_batch, config.optim.grad_clip)
    return round(peak.gib() * GIB)


def predicted_peak(config: Config, vocab_size: int | None = None) -> int | None:
    """Return the peak bytes of a fake step; None for a head whose sizes depend on the tokens."""
    try:
        moments = fake_steps(config, [config.train.micro_batch_size], vocab_size)[0]
    except (DataDependentOutputException, DynamicOutputShapeException):
        return None
    return int(moments.live.sum(1).max())


def compared(predicted: int | None, measured: int | None) -> Row:
    """Return the columns of a predicted and a measured peak."""
    error = predicted / measured - 1 if predicted and measured else None
    return {"measured_bytes": measured, "predicted_bytes": predicted, "prediction_error": error}


def batch_maker(work: Workload, config: Config) -> Callable[[], Batch]:
    """Return a function that makes the first batch of a run."""
    batches = work.batches(config.train.micro_batch_size, config.model.block_size)
    return lambda: batches.batch(0)


def measure_truth(work: Workload, config: Config) -> list[Row]:
    """Return one head's row: the measured peak, the predicted one, the bytes of the real step by kind, and its module.

    `embedding_bytes` (the input table and its two Adam averages) is a share of weights and optimizer state.
    """
    model, optimizer = real_model(config, work.counts, work.train_file.tokens)
    make_batch = batch_maker(work, config)
    measured = allocator_peak(config, model, optimizer, make_batch)
    watched = watch_step(config, model, optimizer, make_batch)
    at_peak = int(watched.live.sum(1).argmax())
    row = compared(predicted_peak(config), measured)
    row |= {f"{kind}_bytes": int(size) for kind, size in zip(KINDS, watched.live[at_peak], strict=True)}
    row["peak_module"] = watched.modules[at_peak] or "optimizer"
    row["embedding_bytes"] = 3 * tensor_bytes(model.body.wte.parameters())  # type: ignore[union-attr]
    return [row]


def predicted_by_batch(config: Config, steps: Callable[[Config, list[int]], list[Moments]]) -> Callable[[int], float]:
    """Return a function B -> predicted peak bytes, from two fake steps."""
    batches = [n * least_batch(config) for n in (1, 2)]
    found = dict(zip(batches, steps(config, batches), strict=True))
    return peak_function(found, batches[0], lambda batch: steps(config, [batch])[0])


def predict_claim(work: Workload, head: Implementation, name: str, attention: str) -> list[Row]:
    """Return the ratio dense over `head` at every B, the smallest B with the paper's ratio, and the limit for large B.

    The rows also have the ratio of FLOPs, with this head and with a head that costs nothing.
    """
    grid = work.settings.memory
    model = dataclasses.replace(work.models[name], attention=attention)
    configs = [config_of(work, model, head, 2, grid.claim_block_size) for head in (PAIR[0], head)]
    dense, own = (predicted_by_batch(config, fake_steps) for config in configs)
    body_flops = estimate_body_flops_per_token(configs[0].model, grid.claim_block_size)
    with faking():
        dense_flops, own_flops = (body_flops + fake_model(config).head.flops_per_token() for config in configs)

    def ratio(batch: int) -> float:
        return dense(batch) / own(batch)

    below = largest(lambda batch: batch == 0 or ratio(batch) < grid.claim_ratio, MAX_BATCH)
    shared = {
        "claim_ratio": grid.claim_ratio,
        "batch_at_claim": None if below == MAX_BATCH else below + 1,
        "ratio_limit": ratio(MAX_BATCH),
        "flops_ratio": dense_flops / own_flops,
        "flops_cap": dense_flops / body_flops,
    }
    rows: list[Row] = []
    for batch in grid.claim_batches:
        grouped = {"grouped_bytes": round(own(batch))} if head == PAIR[1] else {}
        row = {"micro_batch_size": batch, "dense_bytes": round(dense(batch)), **grouped, "memory_ratio": ratio(batch)}
        rows.append(row | shared)
    return rows


def measure_fit(work: Workload, name: str) -> list[Row]:
    """Return the measured ratio dense over grouped at the largest B whose dense step should fit the limit."""
    grid = work.settings.memory
    dense = config_of(work, work.models[name], PAIR[0], 2, grid.claim_block_size)
    peak = predicted_by_batch(dense, fake_steps)
    batch = largest(lambda b: b == 0 or peak(b) <= grid.limit_gib * GIB, MAX_BATCH)
    if batch == 0:
        say(f"{name}: not one window of the dense model fits {grid.limit_gib} GiB")
        return []
    rows: list[Row] = []
    for head in PAIR:
        config = config_of(work, work.models[name], head, batch, grid.claim_block_size)
        row = {"head": head.name, "micro_batch_size": batch, "limit_gib": grid.limit_gib}
        rows.append(row | compared(predicted_peak(config), real_peak(work, config, "training")))
    for row in rows:
        row["memory_ratio"] = rows[0]["measured_bytes"] / row["measured_bytes"]
    return rows


def measure_grid(work: Workload, head: Implementation, context: int) -> list[Row]:
    """Return a row per B for a training step and a forward pass. Those that should fit the grid's limit are run."""
    grid = work.settings.memory
    config = config_of(work, work.models[grid.grid_model], head, 2, context)
    rows: list[Row] = []
    for mode, steps in (("training", fake_steps), ("inference", fake_passes)):
        peak: Any = predicted_by_batch(config, steps)
        for batch in grid.grid_batches:
            predicted = round(peak(batch))
            fits = predicted <= grid.grid_limit_gib * GIB
            measured = real_peak(work, with_shape(config, batch=batch), mode) if fits else None
            rows.append({"micro_batch_size": batch, "mode": mode, **compared(predicted, measured)})
    return rows


def real_peak(work: Workload, config: Config, mode: str) -> int:
    """Return the allocator's peak bytes of a real step, or of a real forward pass without gradients."""
    make_batch = batch_maker(work, config)
    if mode == "training":
        return allocator_peak(config, *real_model(config, work.counts), make_batch)
    model = build_lm(config, work.counts.numpy).eval()
    with torch.no_grad(), PeakTensorMemory(tensor_bytes([*model.parameters(), *model.buffers()])) as peak:
        model(*make_batch())
    return round(peak.gib() * GIB)
