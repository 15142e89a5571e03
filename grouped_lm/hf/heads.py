"""Output layers as `modeling_gvc.py` builds them: a name with sizes, and weights by name.

Letters: D width, V vocabulary, G groups, H of them reserved, R directions per group.
"""

from typing import Any

import torch
from torch import Tensor, nn

from grouped_lm.errors import ConfigError
from grouped_lm.heads import HEADS, AdaptiveHead, DenseHead, Head, LowRankHead, SampledHead, ShortlistHead, TrimHead
from grouped_lm.heads.two_level import TwoLevelHead
from grouped_lm.runs.train_state import named_state

NAMES = {head: name for name, (_, head) in HEADS.items()}
TRAINING_ONLY = ("log_q", "sharing", "parts")
"""Buffers that decide how a head is trained; its probabilities do not need them."""


def is_plain(sizes: dict[str, Any]) -> bool:
    """Return whether GPT-2 and GPT-Neo of transformers have this output layer themselves."""
    return sizes["name"] == "dense" and not sizes["bias"]


@torch.no_grad()
def head_to_hf(head: Head, table: Tensor | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the sizes and the tensors that `modeling_gvc.py` needs to build the head.

    Args:
        head: on any device, in any dtype.
        table: (V, D) weight of the input embedding; a head that shares it gets `tied` and no weight of its own.

    Raises:
        ConfigError: a kind of head that the file does not have.
    """
    tied = table is not None and getattr(head, "weight", None) is table
    sizes = {"name": NAMES.get(type(head)), "tied": tied} | _sizes(head)
    state = {name: tensor for name, tensor in named_state(head).items() if name not in TRAINING_ONLY}
    if tied:
        del state["weight"]
    if isinstance(head, ShortlistHead):
        state |= _folded_directions(head)
    if isinstance(head, TrimHead):
        state["seen"] = head.seen
        if not head.n_rest:
            del state["rest"]
    return sizes, state


def _sizes(head: Any) -> dict[str, Any]:
    if isinstance(head, DenseHead | SampledHead):
        return {"name": "dense", "bias": head.bias is not None}
    if isinstance(head, LowRankHead):
        return {"rank": head.rank, "bias": head.bias is not None}
    if isinstance(head, TrimHead):
        return {"n_seen": head.seen.numel(), "bias": head.bias is not None}
    if isinstance(head, AdaptiveHead):
        return {"cutoffs": head.adaptive.cutoffs[:-1], "div_value": head.adaptive.div_value}
    if isinstance(head, ShortlistHead):
        return {
            "n_group": head.n_group,
            "directions": head.group_bias.shape[1],
            "shortlist_size": head.shortlist_size,
            "own_shortlist": head.shortlist_weight is not None,
            "n_reserved": head.reserved.numel(),
        }
    if isinstance(head, TwoLevelHead):
        return {"n_group": head.n_group, "group_size": head.group_size}
    raise ConfigError(f"head {type(head).__name__} cannot be exported; there are {', '.join(HEADS)}")


def _folded_directions(head: ShortlistHead) -> dict[str, Tensor]:
    """Return the (G - H, R, D) directions with the mean rows of their groups added."""
    rows, _ = head.class_layer(head.weight[head.class_row_ids()])
    directions = rows[head.shortlist_size :].view(*head.group_bias.shape, head.n_embd)
    return {"directions": directions, "group_bias": head.group_bias}


def shared_table(body: Any) -> Tensor | None:
    """Return the (V, D) weight of a body's input embedding `wte`, None where that is no table."""
    return body.wte.weight if isinstance(body.wte, nn.Embedding) else None
