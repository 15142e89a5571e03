"""The judge during training: the whole validation set, every token once, sums in fp64."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grouped_lm.config import IGNORE_INDEX
from grouped_lm.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from grouped_lm.models.lm import LanguageModel
from grouped_lm.system.precision import autocast


@dataclass(frozen=True)
class Evaluation:
    """Sums over the validation set. Windows of block_size that do not overlap, each read without what came before."""

    nll: float
    """Nats, summed over `tokens`."""
    tokens: int
    text_bytes: int
    """UTF-8 bytes of the documents; end-of-text tokens are predicted but add none."""
    group_nll: float | None = None
    token_nll: float | None = None
    group_correct: int | None = None
    token_correct: int | None = None

    def metrics(self) -> dict[str, float]:
        """Return the figures by the keys of the record: nats and perplexity per token, bits per byte, accuracies."""
        loss = self.nll / self.tokens
        figures = {
            "val/loss": loss,
            "val/perplexity": math.exp(min(loss, 700.0)),
            "val/bits_per_byte": self.nll / math.log(2) / self.text_bytes,
        }
        parts = {
            "val/loss_group": self.group_nll,
            "val/loss_token": self.token_nll,
            "val/group_accuracy": self.group_correct,
            "val/token_in_group_accuracy": self.token_correct,
        }
        return figures | {key: total / self.tokens for key, total in parts.items() if total is not None}


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    windows: Iterable[tuple[Tensor, Tensor]],
    text_bytes: int,
    device: torch.device,
    dtype: str = "float32",
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> Evaluation:
    """Return the sums of `model` over all windows; the model's training mode is left as it was.

    Args:
        model: to be judged.
        windows: (B, T) ids and targets, of several processes the part of this one; each has as many batches.
        text_bytes: of the whole text.
        device: the model's.
        dtype: of the matrix products.
        process_group: the processes that share the work.
    """
    was_training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    for input_ids, targets in windows:
        with autocast(device, dtype):
            loss = model(input_ids.to(device), targets.to(device), reduction="none", accuracy=True)
        for key in ("nll", "group_nll", "token_nll", "group_correct", "token_correct"):
            value = getattr(loss, key)
            if value is not None:  # summed where it is, so that a GPU is not waited for
                sums[key] = sums.get(key, 0) + value.double().sum()
        sums["tokens"] = sums.get("tokens", 0) + (targets != IGNORE_INDEX).sum()
    model.train(was_training)
    counts = {"tokens", "group_correct", "token_correct"}
    totals = {key: process_group.sum(value).item() for key, value in sums.items()}
    figures: dict[str, Any] = {key: int(value) if key in counts else value for key, value in totals.items()}
    return Evaluation(text_bytes=text_bytes, **figures)
