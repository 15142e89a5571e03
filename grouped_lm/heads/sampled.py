"""Sampled softmax: trained against a few drawn tokens, validated with the full softmax.

Source: importance sampling of the partition function (Bengio and Senecal 2008; Jean et al. 2015, arXiv 1412.2007),
in the form of Blanc and Rendle 2018 (arXiv 1712.00527).
Letters: N tokens, D width, V vocabulary, K drawn tokens.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.config import setting
from grouped_lm.heads.base import Head
from grouped_lm.heads.context import HeadContext, HeadOptions, check_options
from grouped_lm.heads.decoding.columns import ColumnBlocks
from grouped_lm.heads.losses.chunked import DEFAULT_CHUNK_ROWS, Linear, chunks, default_chunk_rows, linear_nll
from grouped_lm.heads.losses.functional import (
    HeadLoss,
    as_types,
    at_least_fp32,
    classify,
    empty_gradients,
    exact_dtype,
    pick,
    reduce_nll,
    scaled,
    working_dtype,
)


@dataclass(kw_only=True, slots=True)
class SampledConfig(HeadOptions):
    """Config of `head=sampled`."""

    name: str = "sampled"
    samples: int = setting(1024, 1, 10**6, unit="tokens")
    """Tokens K drawn for every batch, with replacement, >= 1."""
    proposal: str = setting("log_uniform", choices=("log_uniform", "frequency"))
    """`log_uniform` over ranks by training frequency, or `frequency`: in proportion to count + 1."""
    tied: bool = True
    """Share the V x D matrix with the input embedding."""
    bias: bool = False
    """A bias per token."""
    chunk_rows: int = setting(DEFAULT_CHUNK_ROWS, 1, 10**9, unit="rows of logits")
    """Rows of logits that exist at once in evaluation, >= 1."""

    def __post_init__(self) -> None:
        check_options(self)


def log_proposal(config: SampledConfig, context: HeadContext) -> Tensor:
    """Return (V,) log q: log((r + 2) / (r + 1)) / log(V + 1) at rank r of 0 to V - 1, or log of count + 1's share."""
    if config.proposal == "frequency" and context.counts is not None:
        weight = (context.counts + 1).double()
        return torch.log(weight / weight.sum())
    rank = torch.argsort(context.by_frequency()).double()
    return torch.log(torch.log1p(1 / (rank + 1)) / math.log(context.vocab_size + 1))


class SampledHead(Head):
    """-log p(t) with the partition function estimated: exp(s_t) + sum over drawn j other than t of exp(s_j) / (K q_j).

    The estimate is unbiased. So its logarithm is too low on average, and exact as K grows. Under `train()` tokens are
    drawn from torch's global generator, whose state a checkpoint keeps. Under `eval()` the loss is the full softmax.
    """

    needs_counts = True

    log_q: Tensor
    cumulative: Tensor

    def __init__(self, config: SampledConfig, weight: nn.Parameter, log_q: Tensor) -> None:
        super().__init__(n_embd=weight.shape[1], vocab_size=weight.shape[0])
        self.samples, self.chunk_rows = config.samples, config.chunk_rows
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(self.vocab_size)) if config.bias else None
        self.register_buffer("log_q", log_q.float())
        self.register_buffer("cumulative", torch.empty(0), persistent=False)
        self.after_load()

    @classmethod
    def build(cls, config: SampledConfig, context: HeadContext) -> "SampledHead":
        """Return a freshly initialised head; without counts, ids are taken as ranks."""
        return cls(config, context.token_weight(config.tied), log_proposal(config, context))

    def _apply(self, fn: Any, recurse: bool = True) -> "SampledHead":
        """Keep the proposal in fp32 or fp64, whatever the weights are cast to: few tokens were drawn otherwise."""
        log_q = self.log_q
        super()._apply(fn, recurse)
        if not log_q.is_meta:
            self.log_q = log_q.to(self.log_q.device, torch.promote_types(self.log_q.dtype, torch.float32))
            self.after_load()
        return self

    def after_load(self) -> None:
        """Update the cumulative proposal from `log_q`."""
        self.cumulative = self.log_q.double().exp().cumsum(0)

    def draw(self) -> Tensor:
        """Return (K,) token ids from q, independent and with replacement."""
        cumulative = self.cumulative
        points = torch.rand(self.samples, dtype=cumulative.dtype, device=cumulative.device) * cumulative[-1]
        return torch.searchsorted(cumulative, points, right=True).clamp_max(self.vocab_size - 1)

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """Return the negative log-likelihood of the targets, exact under `eval()`, estimated under `train()`."""
        states, flat = self.flatten(hidden, targets)
        if not self.training:
            nll = linear_nll(Linear(states, self.weight, self.bias, self.chunk_rows), flat, reduction)
        elif reduction == "none" or torch.compiler.is_compiling():
            nll = self.sampled_nll(states, flat, self.draw())
        else:
            nll = self.sampled_sum(states, flat, self.draw())
        return HeadLoss(nll=reduce_nll(nll.view(targets.shape) if nll.ndim else nll, targets, reduction))

    def sampled_nll(self, states: Tensor, targets: Tensor, drawn: Tensor) -> Tensor:
        """Return (N,) estimated losses, zero at ignored targets; K + 1 logits per token."""
        counted, token = targets >= 0, targets.clamp_min(0)
        ids = torch.cat([token, drawn])
        rows = pick(self.weight, ids)  # one gather, so that backward makes one V x D gradient
        n_token = token.numel()
        own = at_least_fp32((states * rows[:n_token]).sum(-1, dtype=rows.dtype))
        others = at_least_fp32(F.linear(states, rows[n_token:]))
        if self.bias is not None:
            own, others = own + pick(self.bias, token), others + pick(self.bias, drawn)
        others = others - self.log_expected(drawn)
        others = others.masked_fill(token[:, None] == drawn, -torch.inf)
        logits = torch.cat([own[:, None], others], dim=1)
        return classify(logits, torch.zeros_like(token), counted, accuracy=False)[0]

    def sampled_sum(self, states: Tensor, targets: Tensor, drawn: Tensor) -> Tensor:
        """Return the sum of `sampled_nll`, a chunk of rows at a time."""
        given = states, self.weight, self.bias, targets, drawn, self.log_expected(drawn), torch.is_grad_enabled()
        total: Tensor = _SampledSum.apply(*given)
        return total

    def log_expected(self, drawn: Tensor) -> Tensor:
        """Return the (K,) log(K q) of drawn tokens: K q is how often a token is drawn on average."""
        return self.log_q[drawn] + math.log(self.samples)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the (..., V) log-probabilities of every token."""
        return F.log_softmax(at_least_fp32(F.linear(hidden, self.weight, self.bias)), dim=-1)

    def blocks(self, hidden: Tensor) -> ColumnBlocks:
        """Return the tokens in blocks for (N, D) states."""
        return ColumnBlocks(hidden, self.weight, self.bias)

    def flops_per_token(self) -> float:
        """Return 2 D (K + 1), as in training."""
        return 2.0 * self.n_embd * (self.samples + 1)


class _SampledSum(torch.autograd.Function):
    """The operator of `SampledHead.sampled_sum`. Its gradients are computed with the loss; no (N, K) tensor is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        drawn: Tensor,
        log_expected: Tensor,
        keep: bool,
    ) -> Tensor:
        dtype = working_dtype(states)
        table = weight.index_select(0, drawn)
        offset = -log_expected if bias is None else bias[drawn] - log_expected
        own_bias = None if bias is None else bias[targets.clamp_min(0)]
        total = states.new_zeros((), dtype=exact_dtype(dtype))
        d_own = states.new_zeros(len(states) if keep else 0, dtype=total.dtype)
        d_states, d_table = (gradient.zero_() for gradient in empty_gradients(keep, states, table))
        d_offset = offset.new_zeros(len(offset) if keep else 0)
        for some in chunks(states, default_chunk_rows(states.device)):
            part, token, counted = states[some], targets[some].clamp_min(0), (targets[some] >= 0)[:, None]
            row = weight.index_select(0, token)
            own = (part * row).sum(1, keepdim=True, dtype=total.dtype)
            own = own if own_bias is None else own + own_bias[some, None]
            others = F.linear(part.to(dtype), table.to(dtype)).to(total.dtype).add_(offset)
            others.masked_fill_(token[:, None] == drawn, -torch.inf)
            norm = torch.logaddexp(others.logsumexp(1, keepdim=True), own)
            total += (norm - own).masked_fill(~counted, 0).sum()
            if not keep:
                continue
            share = (own - norm).expm1().mul_(counted)  # p - 1 of the target
            error = others.sub_(norm).exp_().mul_(counted)
            d_own[some] = share.squeeze(1)
            d_offset += error.sum(0)
            error = error.to(dtype)
            to_states = (error @ table.to(dtype)).to(states.dtype)
            d_states[some] = to_states.addcmul_(share.to(states.dtype), row.to(states.dtype))
            d_table += error.T @ part.to(dtype)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(states, targets, drawn, d_states, d_table, d_own, d_offset)
        ctx.shape, ctx.dtypes = weight.shape, (states.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, d_total: Tensor | None) -> tuple[Tensor | None, ...]:
        if d_total is None:
            return (None,) * 7
        states, targets, drawn, *saved = ctx.saved_tensors
        d_states, d_table, d_own, d_offset = scaled(saved, d_total)
        token = targets.clamp_min(0)
        d_weight = d_table.new_zeros(ctx.shape).index_add_(0, drawn, d_table)
        for some in chunks(states, default_chunk_rows(states.device)):
            d_weight.index_add_(0, token[some], (states[some] * d_own[some, None]).to(d_weight.dtype))
        d_bias = None
        if ctx.dtypes[2] is not None:
            d_bias = d_offset.new_zeros(ctx.shape[0]).index_add_(0, drawn, d_offset)
            d_bias.index_add_(0, token, d_own.to(d_bias.dtype))
        return *as_types((d_states, d_weight, d_bias), ctx.dtypes), *[None] * 4
