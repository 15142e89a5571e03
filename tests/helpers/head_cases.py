"""Heads of every kind at small odd sizes, and batches for them."""

import dataclasses

import torch
from torch import Tensor

from grouped_lm.heads import HEADS, IGNORE_INDEX, Head, ShortlistConfig, build_head

D = 6
PLAIN = {"shortlist_size": 1024, "directions": 1, "shared_rows": 0, "reserve": False, "start": "zero"}
"""A shortlist without mean rows and reserved groups; `ShortlistConfig()` has both."""
SMALL = PLAIN | {"shortlist_size": 4, "directions": 2, "cutoffs": [3, 20], "div_value": 2.0, "rank": 3, "samples": 50}
"""Options under whose defaults a head would be another one at these sizes."""


def plain_shortlist(**own) -> ShortlistConfig:
    return ShortlistConfig(**(PLAIN | own))


def head_of(name: str, vocab_size: int = 103, group_size: int | None = 7, dtype=torch.float64, width=D, **own) -> Head:
    """Build a head with random weights, in evaluation mode; tokens 0, 11, 22, ... were not seen in training."""
    schema = HEADS[name].schema
    fields = {field.name for field in dataclasses.fields(schema)}
    values = {key: value for key, value in (SMALL | {"group_size": group_size} | own).items() if key in fields}
    torch.manual_seed(0)
    wte = torch.nn.Parameter(0.1 * torch.randn(vocab_size, width, dtype=dtype))
    head = build_head(schema(**values), width, vocab_size, "merge_rank", torch.arange(vocab_size) % 11, wte)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head.to(dtype).eval()


def batch_of(vocab_size: int, *shape: int, dtype=torch.float64, width=D) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(*shape, width, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, vocab_size, shape, generator=generator)
    targets.view(-1)[::4] = IGNORE_INDEX
    return hidden.to(dtype).requires_grad_(), targets
