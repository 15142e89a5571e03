"""Validation during training: the whole validation set, every token once, summed in fp64."""

from collections.abc import Iterable

import torch
from torch import Tensor

from grouped_lm.config import IGNORE_INDEX
from grouped_lm.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from grouped_lm.evaluate.metrics import loss_metrics
from grouped_lm.evaluate.scoring import PARTS
from grouped_lm.models.lm import LanguageModel
from grouped_lm.system.runtime import autocast


@torch.no_grad()
def validate(
    model: LanguageModel,
    windows: Iterable[tuple[Tensor, Tensor]],
    text_bytes: int,
    device: torch.device,
    dtype: str = "float32",
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, float]:
    """Return the validation metrics of a model, such as `val/loss` in nats per token; its training mode stays the same.

    Each process has its own part of the windows, (B, T) ids and targets, usually without overlap. Every process has the
    same number of batches. `text_bytes` are the UTF-8 bytes of the whole text.
    """
    was_training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    for input_ids, targets in windows:
        with autocast(device, dtype):
            loss = model(input_ids.to(device), targets.to(device), reduction="none", accuracy=True)
        for key in PARTS:
            value = getattr(loss, key, None)
            if value is not None:  # summed on its device, so that the CPU does not wait for a GPU
                sums[key] = sums.get(key, 0) + value.double().sum()
        sums["tokens"] = sums.get("tokens", 0) + (targets != IGNORE_INDEX).sum()
    model.train(was_training)
    totals = {key: process_group.sum(value).item() for key, value in sums.items()}
    n_targets = int(totals.pop("tokens"))
    return loss_metrics(totals, n_targets, text_bytes)
