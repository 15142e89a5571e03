"""`gvc bench vocab`: steps with up to a million tokens, and losses on a language of known entropy.

Parts: `step` (memory and time), `excess` (loss above the entropy). Letters: B micro_batch_size, T block_size, V
vocabulary.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grouped_lm.bench.heads import Cell
from grouped_lm.bench.implementations import Implementation, describe_tuning, plain_implementation
from grouped_lm.bench.memory import allocator_peak, config_of, predicted_peak, real_model
from grouped_lm.bench.results import Row
from grouped_lm.bench.steps import CAP, Batch, compare_steps
from grouped_lm.bench.synthetic import Language, build_language
from grouped_lm.bench.workload import Workload, draw_ids, zipf_counts
from grouped_lm.config import AdamWConfig, Config
from grouped_lm.distributed.parallel import clip_gradients
from grouped_lm.measure.memory import GIB
from grouped_lm.models import build_body, estimate_body_params
from grouped_lm.models.lm import LanguageModel
from grouped_lm.optim import build_optimizer, learning_rate

STATE_BYTES = 16
"""The bytes of a trained weight: fp32 weight, gradient and Adam's two averages."""
EVAL_SEQUENCES = 64
EVAL_SEED = 2**31


def vocab_cells(work: Workload) -> list[Cell]:
    """Return a cell per V for steps, and one per language, V and head for losses."""
    grid = work.settings.vocab
    shape = {"model": grid.model, "micro_batch_size": grid.micro_batch_size, "block_size": grid.block_size}
    heads = [plain_implementation("vocab.heads", name) for name in grid.heads]
    cells: list[Cell] = [
        ({"part": "step", **shape, "vocab_size": v, "heads": grid.heads}, partial(measure_steps, work, heads, v))
        for v in grid.vocab_sizes
    ]
    for language in grid.excess_languages:
        for v in grid.excess_vocab_sizes:
            label = {"part": "excess", "model": grid.excess_model, "language": language, "vocab_size": v}
            cells += [({**label, "head": h.name}, partial(measure_excess, work, h, language, v)) for h in heads]
    return cells


def measure_steps(work: Workload, heads: list[Implementation], vocab_size: int) -> list[Row]:
    """Return a row per head: predicted and measured peak, and the time of a step if it fits the limit."""
    grid = work.settings.vocab
    counts = zipf_counts(vocab_size)
    ids = draw_ids(counts, 4 * grid.micro_batch_size * (grid.block_size + 1), work.generator())
    windows = ids.view(4, grid.micro_batch_size, grid.block_size + 1)
    batches = [(w[:, :-1].contiguous(), w[:, 1:].contiguous()) for w in windows]
    rows: dict[str, Row] = {}
    fitting = []
    for head in heads:
        config = config_of(work, work.models[grid.model], head, grid.micro_batch_size, grid.block_size, has_text=False)
        rows[head.name] = memory_row(config, counts, vocab_size, grid.limit_gib * GIB, batches[0])
        if rows[head.name]["measured_bytes"] is not None:
            fitting.append(head)
    timed = (
        compare_steps(work, work.models[grid.model], vocab_size, (counts, None), batches, fitting) if fitting else []
    )
    for row in timed:
        rows[row["head"]] = rows.get(row["head"], {}) | row
    return [{"head": name} | row for name, row in rows.items() if name != CAP] + [
        row for row in timed if row["head"] == CAP
    ]


def memory_row(config: Config, counts: Tensor, vocab_size: int, limit: float, batch: Batch) -> Row:
    """Return the predicted peak of a step, and the measured one unless the prediction is above `limit` bytes.

    For heads that cannot be predicted, the body's weights alone are compared with the limit.
    """
    predicted = predicted_peak(config, vocab_size)
    least = STATE_BYTES * estimate_body_params(config.model, vocab_size)
    measured = None
    if (predicted or least) <= limit:
        model, optimizer = real_model(config, counts, vocab_size=vocab_size)
        measured = allocator_peak(config, model, optimizer, lambda: batch)
    return {"predicted_bytes": predicted, "measured_bytes": measured, "state_bytes": least, "limit_gib": limit / GIB}


def measure_excess(work: Workload, head: Implementation, language_name: str, vocab_size: int) -> list[Row]:
    """Return one head's loss above the entropy, at the best of the learning rates."""
    grid = work.settings.vocab
    language = build_language(language_name, vocab_size, work.settings.seed)
    tried = {lr: train_on(work, head, language, lr) for lr in grid.excess_lr}
    lr, losses = min(tried.items(), key=lambda item: item[1]["excess_nats"])
    described = describe_tuning({f"lr={rate:g}": figures["excess_nats"] for rate, figures in tried.items()})
    return [{"lr": lr, "tried": described.replace(" ms", " nats"), "steps": grid.excess_steps} | losses]


def train_on(work: Workload, head: Implementation, language: Language, lr: float) -> Row:
    """Train a new model and return its loss on held-out sequences.

    `excess_nats` is the mean of -log p(model) + log p(language) over the same tokens: its expectation is
    the loss minus the entropy, with less noise than their difference.
    """
    grid = work.settings.vocab
    torch.manual_seed(work.settings.seed)
    model = language_model(work, head, language)
    optim = AdamWConfig(lr=lr, warmup_steps=max(1, grid.excess_steps // 20))
    optimizer = build_optimizer(optim, model)
    for step in range(grid.excess_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(optim, step, grid.excess_steps)
        ids = language.sample(grid.excess_batch_size, grid.excess_block_size + 1, work.settings.seed + step)
        model(*as_batch(ids)).nll.backward()
        clip_gradients(model, optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    ids = language.sample(EVAL_SEQUENCES, grid.excess_block_size + 1, EVAL_SEED)
    own = model_nll(model.eval(), ids)
    excess = own + language.log_prob(ids).ravel()
    return {
        "entropy_nats": language.entropy,
        "loss_nats": float(own.mean()),
        "excess_nats": float(excess.mean()),
        "excess_stderr": float(excess.std() / len(excess) ** 0.5),
        "train_tokens": grid.excess_steps * grid.excess_batch_size * grid.excess_block_size,
    }


def language_model(work: Workload, head: Implementation, language: Language) -> LanguageModel:
    """Return a new model. Heads that sort tokens get the frequencies of the language."""
    model = work.models[work.settings.vocab.excess_model]
    body = build_body(model, language.vocab_size)
    counts = torch.from_numpy((language.frequencies * 1e12).astype(np.int64))
    wte: Any = body.wte.weight
    return LanguageModel(body, head.build({}, model.n_embd, language.vocab_size, counts, wte))


def as_batch(ids: np.ndarray) -> Batch:
    """Return (B, T) ids and targets of (B, T + 1) ids."""
    both = torch.from_numpy(ids)
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


@torch.no_grad()
def model_nll(model: LanguageModel, ids: np.ndarray) -> np.ndarray:
    """Return (B * T,) losses in nats, fp64, eight sequences at a time."""
    parts = [model(*as_batch(part), reduction="none").nll.flatten() for part in np.array_split(ids, len(ids) // 8)]
    return torch.cat(parts).double().numpy()
