"""Explain the metrics of a run in sentences, with the failure signs of the paper, and suggest remedies.

The signs are those of arXiv 2411.06371: group accuracy under 90 %, and groups that are too large for their memory.
The first alone proves nothing: two heads with 37 % differed by 0.6 nats (`runs/log`). So the losses are compared.

Letters: V vocabulary, G groups, S slots per group.
"""

import math
from typing import Any

from grouped_lm.heads.base import Head

HEALTHY_GROUP_ACCURACY = 0.9
"""The paper's limit."""
LARGE_GROUPS = 1.5
"""(G + S) over its minimum 2 sqrt(V) from which the groups waste memory."""


def diagnose(metrics: dict[str, Any], head: Head) -> list[str]:
    """Return one or two sentences per failure sign that is present; none for heads without groups.

    `metrics` has losses and accuracies by name, of both softmaxes.
    """
    if metrics.get("val/group_accuracy") is None:
        return []
    signs = [_group_sign(metrics), _token_sign(metrics), _size_sign(head)]
    return [sign for sign in signs if sign]


def _group_sign(metrics: dict[str, Any]) -> str | None:
    accuracy, group, total = metrics["val/group_accuracy"], metrics["val/loss_group"], metrics["val/loss"]
    if accuracy >= HEALTHY_GROUP_ACCURACY:
        return None
    share = group / total
    begin = (
        f"The group is right in {accuracy:.1%} of all cases, under the paper's {HEALTHY_GROUP_ACCURACY:.0%}; "
        f"choosing it costs {group:.3f} of {total:.3f} nats ({share:.0%})."
    )
    if share < 0.5:
        return f"{begin} That is the smaller part of the loss, so it is not what is bad here."
    return (
        f"{begin} That is most of the loss, but text is uncertain, and a dense model pays it too: compare nats with "
        "head=dense before calling it bad."
    )


def _token_sign(metrics: dict[str, Any]) -> str | None:
    group, token = metrics["val/loss_group"], metrics["val/loss_token"]
    if token <= group:
        return None
    accuracy = metrics["val/token_in_group_accuracy"]
    return (
        f"Tokens inside their group cost more ({token:.3f} nats, right in {accuracy:.1%}) than the groups "
        f"({group:.3f} nats): tokens of one group share too much, or groups are too large. Try a head whose tokens "
        "have rows of their own (head=class_full, head=shortlist), or a smaller head.group_size."
    )


def _size_sign(head: Head) -> str | None:
    n_group, group_size = getattr(head, "n_group", None), getattr(head, "group_size", None)
    if n_group is None or group_size is None:
        return None
    n_logits, least = n_group + group_size, 2 * math.sqrt(head.vocab_size)
    if n_logits / least < LARGE_GROUPS:
        return None
    return (
        f"Both steps make {n_logits:,} logits per token, {n_logits / least:.1f} times the least of {least:,.0f} "
        f"({head.vocab_size / n_logits:.0f} times fewer than {head.vocab_size:,}): "
        f"head.group_size={round(math.sqrt(head.vocab_size))} saves most memory."
    )
