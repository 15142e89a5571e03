"""From the config of a run to its model."""

from collections.abc import Callable

import numpy as np
import torch

from grouped_lm.config import Config
from grouped_lm.data.tokenizer import vocab_size_of
from grouped_lm.heads import build_head, needs_counts
from grouped_lm.models import build_body
from grouped_lm.models.lm import LanguageModel


def build_lm(
    config: Config, count_tokens: Callable[[], np.ndarray] | None = None, vocab_size: int | None = None
) -> LanguageModel:
    """Build the model of a run, freshly initialised from torch's global generator.

    Args:
        config: the run.
        count_tokens: gives the (V,) occurrences in the training text; called only where head or grouping need them.
        vocab_size: V; None means the tokenizer's.
    """
    vocab_size = vocab_size or vocab_size_of(config.tokenizer)
    body = build_body(config.model, vocab_size)
    counts = None
    if count_tokens is not None and needs_counts(config.head, config.grouping):
        counts = torch.from_numpy(count_tokens())
    head = build_head(
        config.head,
        config.model.n_embd,
        vocab_size,
        grouping=config.grouping,
        counts=counts,
        wte=body.wte.weight,
    )
    return LanguageModel(body, head)


def count_params(model: LanguageModel) -> tuple[int, int]:
    """Return the parameters of the whole model and of the head alone; a tied table counts with the embedding."""
    body = {id(p) for p in model.body.parameters()}
    own = sum(p.numel() for p in model.head.parameters() if id(p) not in body)
    return sum(p.numel() for p in model.parameters()), own
