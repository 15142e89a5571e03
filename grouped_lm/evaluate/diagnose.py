"""What the figures of a run say in words, after the failure signs that the paper gives, and what to try.

The signs are those of arXiv 2411.06371: group predictions under 90 %, groups that are too large for their memory. The
first says nothing by itself: two heads with 37 % both stood 0.6 nats apart (`runs/LOG.md`), so losses are weighed.

Letters: V vocabulary, G groups, S slots per group.
"""

import math
from typing import Any

HEALTHY_GROUP_ACCURACY = 0.9
"""The paper's line."""
LARGE_GROUPS = 1.5
"""(G + S) over its least, 2 sqrt V, from which on memory is called wasted."""


def diagnose(figures: dict[str, Any], vocab_size: int, n_group: int | None, group_size: int | None) -> list[str]:
    """Return a sentence or two per sign that is there; none for heads without groups.

    Args:
        figures: by the keys of the record: losses and accuracies of both steps.
        vocab_size: V.
        n_group: G, None for heads without groups.
        group_size: S.
    """
    if figures.get("val/group_accuracy") is None:
        return []
    signs = [_groups(figures), _tokens(figures)]
    if n_group is not None and group_size is not None:
        signs.append(_sizes(vocab_size, n_group, group_size))
    return [sign for sign in signs if sign]


def _groups(figures: dict[str, Any]) -> str | None:
    accuracy, group, total = figures["val/group_accuracy"], figures["val/loss_group"], figures["val/loss"]
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
        "head=dense before calling it bad. Of heads with groups the default, head=shortlist, has the least loss."
    )


def _tokens(figures: dict[str, Any]) -> str | None:
    group, token = figures["val/loss_group"], figures["val/loss_token"]
    if token <= group:
        return None
    accuracy = figures["val/token_in_group_accuracy"]
    return (
        f"Tokens inside their group cost more ({token:.3f} nats, right in {accuracy:.1%}) than the groups "
        f"({group:.3f} nats): tokens of one group share too much, or groups are too large. Try a head whose tokens "
        "have rows of their own (head=class_full, head=shortlist), or a smaller head.group_size."
    )


def _sizes(vocab_size: int, n_group: int, group_size: int) -> str | None:
    least = 2 * math.sqrt(vocab_size)
    ratio = (n_group + group_size) / least
    if ratio < LARGE_GROUPS:
        return None
    return (
        f"Both steps make {n_group + group_size:,} logits per token, {ratio:.1f} times the least of {least:,.0f} "
        f"({vocab_size / (n_group + group_size):.0f} times fewer than {vocab_size:,}): "
        f"head.group_size={round(math.sqrt(vocab_size))} saves most memory."
    )
