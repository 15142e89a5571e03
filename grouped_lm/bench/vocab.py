"""`gvc bench vocab`: steps with up to a million tokens, and losses on a language of known entropy.

Parts: `step` (memory and time), `excess` (loss above the entropy). Letters: B micro_batch_size, T block_size, V
vocabulary.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from grouped_lm.bench.implementations import Implementation, describe_tuning, plain_implementation
from grouped_lm.bench.memory import allocator_peak, config_of, predicted_peak, real_model, update
from grouped_lm.bench.results import Cell, Row
from grouped_lm.bench.steps import CAP, Batch, compare_steps
from grouped_lm.bench.synthetic import Language, build_language
from grouped_lm.bench.workload import Workload, draw_ids, zipf_counts
from grouped_lm.config import AdamWConfig
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
    ids = draw_ids(counts, 4 * grid.micro_batch_size * (grid.block_size + 1), work.settings.seed)
    batches = [as_batch(window) for window in ids.view(4, grid.micro_batch_size, grid.block_size + 1)]
    rows: dict[str, Row] = {}
    fitting = []
    for head in heads:
        config = config_of(work, work.models[grid.model], head, grid.micro_batch_size, grid.block_size, has_text=False)
        predicted, measured = predicted_peak(config, vocab_size), None
        least = STATE_BYTES * estimate_body_params(config.model, vocab_size)
        if (predicted or least) <= grid.limit_gib * GIB:  # without a prediction, the body's weights alone are compared
            measured = allocator_peak(config, *real_model(config, counts, vocab_size=vocab_size), lambda: batches[0])
            fitting.append(head)
        peaks = {"predicted_bytes": predicted, "measured_bytes": measured, "state_bytes": least}
        rows[head.name] = peaks | {"limit_gib": grid.limit_gib}
    if fitting:
        for row in compare_steps(work, work.models[grid.model], counts, None, batches, fitting):
            rows[row["head"]] = rows.get(row["head"], {}) | row
    cap = [rows.pop(CAP)] if CAP in rows else []
    return [{"head": name} | row for name, row in rows.items()] + cap


def measure_excess(work: Workload, head: Implementation, language_name: str, vocab_size: int) -> list[Row]:
    """Return one head's loss above the entropy, at the best of the learning rates."""
    grid = work.settings.vocab
    language = build_language(language_name, vocab_size, work.settings.seed)
    tried = {lr: train_on(work, head, language, lr) for lr in grid.excess_lr}
    lr, losses = min(tried.items(), key=lambda item: item[1]["excess_nats"])
    described = describe_tuning({f"lr={rate:g}": figures["excess_nats"] for rate, figures in tried.items()}, "nats")
    return [{"lr": lr, "tried": described, "steps": grid.excess_steps} | losses]


def train_on(work: Workload, head: Implementation, language: Language, lr: float) -> Row:
    """Train a new model and return its loss on held-out sequences.

    `excess_nats` is the mean of -log p(model) + log p(language) over the same tokens: its expectation is
    the loss minus the entropy, with less noise than their difference.
    """
    grid = work.settings.vocab
    torch.manual_seed(work.settings.seed)
    counts = torch.from_numpy((language.frequencies * 1e12).astype(np.int64))  # for heads that sort tokens
    model = head.model({}, counts, build_body(work.models[grid.excess_model], language.vocab_size))
    optim = AdamWConfig(lr=lr, warmup_steps=max(1, grid.excess_steps // 20))
    optimizer = build_optimizer(optim, model)
    for step in range(grid.excess_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(optim, step, grid.excess_steps)
        ids = language.sample(grid.excess_batch_size, grid.excess_block_size + 1, work.settings.seed + step)
        update(model, optimizer, partial(as_batch, torch.from_numpy(ids)), optim.grad_clip)
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


def as_batch(ids: Tensor) -> Batch:
    """Return (B, T) ids and targets of (B, T + 1) ids."""
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


@torch.no_grad()
def model_nll(model: LanguageModel, ids: np.ndarray) -> np.ndarray:
    """Return (B * T,) losses in nats, fp64, eight sequences at a time."""
    parts = [model(*as_batch(part), reduction="none").nll.flatten() for part in torch.from_numpy(ids).split(8)]
    return torch.cat(parts).double().numpy()
