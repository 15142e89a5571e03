"""`grouped_lm.compress`: a compressed head in the place of the output layer of anybody's causal language model.

Letters: B batch, T sequence, N states, D width, V vocabulary, G groups, S slots per group.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.config import GroupingConfig
from grouped_lm.errors import ConfigError
from grouped_lm.heads import (
    DEFAULT_HEAD,
    ClassFullHead,
    FilmHead,
    GroupedHead,
    Head,
    HeadLoss,
    ShortlistHead,
    TwoLevelHead,
    build_head,
)

RANDOM_TOKENS = 4096
"""Tokens drawn at random whose states the groups are fitted on where no text is given."""
RIDGE = 1e-4
"""Share of the states' mean variance that is added to it, so that directions nobody uses stay small."""
DISTILL_ROWS = 256
"""States per step of distillation: V-wide logits of teacher and student exist for these alone."""
SPREAD = 0.01
"""Standard deviation, over that of the fitted directions, by which several ones of a group start apart."""


class LogProbs(nn.Module):
    """What takes the place of the output layer: hidden states to (..., V) log-probabilities, which are logits too."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor) -> Tensor:
        """Return `head.log_prob(hidden)`."""
        return self.head.log_prob(hidden)


class CompressedLM(nn.Module):
    """A transformers model with a compressed head.

    `model` is the one that was given: it generates, and gives V-wide logits, as before. `forward` is for training: the
    exact loss without a V-wide tensor.
    """

    def __init__(self, model: Any, head: Head) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, input_ids: Tensor, labels: Tensor, **kwargs: Any) -> HeadLoss:
        """Return the loss of the tokens that follow, in nats.

        Args:
            input_ids: (B, T).
            labels: (B, T) ids, those to be predicted at the same place as in `input_ids`, or IGNORE_INDEX.
            kwargs: for the body, such as attention_mask.
        """
        hidden = self.model.base_model(input_ids=input_ids, **kwargs).last_hidden_state
        return self.head(hidden[:, :-1], labels[:, 1:])


def compress(
    model: Any,
    head: Any = None,
    *,
    input_ids: Tensor | None = None,
    distill_steps: int = 0,
    lr: float = 1e-3,
    grouping: GroupingConfig | None = None,
    counts: Tensor | None = None,
    seed: int = 0,
) -> CompressedLM:
    """Put a compressed head in the place of a model's output layer, fitted to it, and return both.

    Heads whose tokens have rows of their own keep the layer's rows; `film` and `grouped` get the nearest ones, least
    squares over all V x D weights. Group logits are the least-squares fit to the log-sum-exp of the group's logits.

    Args:
        model: a causal LM of transformers, whose last hidden state a linear layer maps to logits. It is changed.
        head: config of a `shortlist` (default), `class_full`, `film` or `grouped` head.
        input_ids: (B, T) text to fit groups on and to distil with; None draws random tokens.
        distill_steps: steps of AdamW on the head's own weights towards the model's distribution, >= 0.
        lr: their learning rate, > 0.
        grouping: how tokens are put into groups; None is by id.
        counts: (V,) training occurrences, which put frequent tokens in the shortlist; None takes the first ids.
        seed: of everything drawn.

    Raises:
        ConfigError: an output layer that is not linear, or a head of another kind.
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear) or getattr(model.config, "final_logit_softcapping", None):
        raise ConfigError(f"only a linear output layer can be compressed, {type(model).__name__} has {layer}")
    weight = layer.weight
    torch.manual_seed(seed)
    built = build_head(head or DEFAULT_HEAD, weight.shape[1], weight.shape[0], grouping, counts, weight)
    built = built.to(device=weight.device, dtype=weight.dtype)
    if input_ids is None:
        length = min(getattr(model.config, "max_position_embeddings", 256), 256)
        input_ids = torch.randint(weight.shape[0], (max(1, RANDOM_TOKENS // length), length), device=weight.device)
    with torch.no_grad():
        was_training = model.training
        model.eval()
        hidden = model.base_model(input_ids=input_ids).last_hidden_state.flatten(0, 1)
        model.train(was_training)
        fit_tokens(built, weight, layer.bias)
        fit_groups(built, hidden, layer)
    if distill_steps:
        distill(built, hidden, layer, distill_steps, lr)
    model.set_output_embeddings(LogProbs(built))
    return CompressedLM(model, built)


def fit_tokens(head: Head, weight: Tensor, bias: Tensor | None) -> None:
    """Give every token of `head` the nearest weights to its (D,) row of `weight` that the head can have.

    `film` has scale[g, d] w[s, d] for row (g, s), best by the first singular pair of the (G, S) numbers of each d;
    `grouped` has scale[g, s] w[s], best by that of the (G, D) numbers of each s.
    """
    if isinstance(head, ClassFullHead | ShortlistHead):
        head.weight.copy_(weight)
        if isinstance(head, ShortlistHead) and head.shortlist_weight is not None:
            head.shortlist_weight.copy_(weight[head.rows.outside])
        if bias is not None:
            head.bias.copy_(bias)
        return
    if not isinstance(head, FilmHead | GroupedHead):
        raise ConfigError(f"compress knows shortlist, class_full, film and grouped heads, got {type(head).__name__}")
    members = head.members
    table = weight[members.clamp_min(0)] * (members >= 0).unsqueeze(-1)  # (G, S, D), 0 at padding slots
    if isinstance(head, FilmHead):
        left, size, right = first_pair(table.permute(2, 0, 1))  # (D, G), (D,), (D, S)
        root = size.sqrt()
        head.scale.copy_((left * root[:, None]).T)
        head.slot.weight.copy_((right * root[:, None]).T)
    else:
        left, size, right = first_pair(table.permute(1, 0, 2))  # (S, G), (S,), (S, D)
        root = size.sqrt()
        head.scale.copy_((left * root[:, None]).T)
        head.slot.weight.copy_(right * root[:, None])
    if bias is not None:
        target = head.bias if isinstance(head, FilmHead) else head.shift
        target.copy_(bias[members.clamp_min(0)] * (members >= 0))


def first_pair(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first singular pair of (K, A, B) matrices: (K, A), (K,) and (K, B)."""
    left, sizes, right = torch.linalg.svd(matrices.float(), full_matrices=False)
    return tuple(part.to(matrices.dtype) for part in (left[:, :, 0], sizes[:, 0], right[:, 0]))


def fit_groups(head: Any, hidden: Tensor, layer: nn.Linear) -> None:
    """Fit group logits, linear in h, to the log-sum-exp of the group's token logits, over (N, D) states.

    Tokens of a shortlist keep their own logits, so the groups' must be right against those, not up to a constant.
    """
    table = head.group_members()
    if isinstance(head, ShortlistHead):
        table = table[: len(head.group_bias)]  # what is reserved is not fitted
    if not len(table):
        return
    targets = torch.cat([_group_logits(layer(rows), table) for rows in hidden.split(DISTILL_ROWS)]).double()
    if isinstance(head, TwoLevelHead):
        targets = targets - targets.mean(1, keepdim=True)  # a softmax over groups alone: a constant is free
    states = hidden.double()
    center = states.mean(0)
    spread = states - center
    gram = spread.T @ spread
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    directions = torch.linalg.solve(gram, spread.T @ (targets - targets.mean(0))).T  # (G, D)
    offsets = targets.mean(0) - directions @ center
    if isinstance(head, TwoLevelHead):
        head.group.weight.copy_(directions)
        head.group.bias.copy_(offsets)
        return
    if head.directions is None:  # the mean rows are the directions, so the best constant is the mean difference
        logits = hidden @ head.mean_rows(head.weight[head.sharing]).squeeze(1).T
        head.group_bias.copy_((targets - logits.double()).mean(0, keepdim=True).T)
        return
    directions = directions - head.mean_rows(head.weight[head.sharing]).squeeze(1)
    several = head.directions.shape[1]
    apart = torch.randn_like(head.directions) * (SPREAD * directions.std().to(head.directions.dtype))
    head.directions.copy_(directions.unsqueeze(1) + (apart if several > 1 else 0))
    head.group_bias.copy_((offsets.unsqueeze(1) - torch.tensor(float(several)).log()).expand(-1, several))


def _group_logits(logits: Tensor, table: Tensor) -> Tensor:
    inside = F.embedding(table.clamp_min(0).flatten(), logits.T).view(*table.shape, -1)  # (G, S, N)
    return inside.masked_fill((table < 0).unsqueeze(-1), -torch.inf).float().logsumexp(1).T


def distill(head: Head, hidden: Tensor, layer: nn.Linear, steps: int, lr: float) -> None:
    """Train the head's own weights, not rows it shares with `layer`, towards the layer's distribution.

    The loss is the cross entropy of the teacher's and the student's distributions, on random states of `hidden`.
    """
    shared = {id(parameter) for parameter in layer.parameters()}
    own = [parameter for parameter in head.parameters() if id(parameter) not in shared]
    optimizer = torch.optim.AdamW(own, lr=lr, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        rows = hidden[torch.randint(len(hidden), (DISTILL_ROWS,), device=hidden.device)]
        with torch.no_grad():
            teacher = layer(rows).float().softmax(-1)
        loss = -(teacher * head.log_prob(rows)).sum(-1).mean()
        gradients = torch.autograd.grad(loss, own)
        for parameter, gradient in zip(own, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for parameter in own:
        parameter.grad = None
