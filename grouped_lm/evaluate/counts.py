"""Evaluate a run of `head=kneser_ney`: n-grams are counted again, which takes seconds, and no checkpoint is kept.

Letters: N targets.
"""

import numpy as np

from grouped_lm.config import Config
from grouped_lm.data.token_file import TokenFile
from grouped_lm.evaluate.metrics import loss_metrics
from grouped_lm.prior import KneserNey, build_kneser_ney
from grouped_lm.prior.config import KneserNeyConfig


def counts_tokens(config: Config) -> bool:
    """Return whether a run counts n-grams, and has no network."""
    return isinstance(config.head, KneserNeyConfig)


def count_text(config: Config, train: TokenFile, step: int) -> tuple[KneserNey, int]:
    """Return the model of the first tokens of the training text, as many as `step` steps of training see, and those.

    A text that is shorter is counted once.
    """
    batch = config.train.micro_batch_size * config.train.grad_accum_steps
    tokens = np.asarray(train.tokens()[: step * batch * config.model.block_size + 1])
    tokenizer = train.manifest["tokenizer"]
    model = build_kneser_ney(tokens, tokenizer["vocab_size"], tokenizer["eot_id"], order=config.head.order)
    return model, len(tokens) - 1


def validate_counts(model: KneserNey, valid: TokenFile) -> dict[str, float]:
    """Return the validation metrics of `grouped_lm.evaluate.validation.validate`."""
    nll = -model.target_log_prob(np.asarray(valid.tokens()))
    return loss_metrics({"nll": float(nll.sum())}, len(nll), valid.text_bytes)
