"""A network and an n-gram model that predict together: a head that reads states and the last ids.

p(token) = (1 - share) p_head(token) + share p_counts(token). The share is one weight, or a gate that reads the state
and what is known of the context. The head and the body under it are not trained through the mixture: the counts would
take the gradient away from them.

Letters: B windows, T tokens of a window, N tokens, D width, V vocabulary, C tokens of the longest context.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.config import IGNORE_INDEX, Config, PriorConfig
from grouped_lm.data.token_file import TokenFile
from grouped_lm.errors import ConfigError
from grouped_lm.heads.base import Head
from grouped_lm.heads.context import HeadContext
from grouped_lm.heads.decoding.truncation import Truncation
from grouped_lm.heads.losses.functional import HeadLoss, at_least_fp32, reduce_nll
from grouped_lm.models.gpt2 import KVCache
from grouped_lm.models.lm import LanguageModel
from grouped_lm.prior.kneser_ney import NO_TOKEN, Contexts, KneserNey
from grouped_lm.prior.store import load_or_build

UNITS = 16
"""Hidden units of the gate."""
START = -1.0
"""Logit of the gate's share before training: 0.27."""


@dataclass(slots=True)
class MixedLoss(HeadLoss):
    """The loss of the mixture, and those of what it is made of."""

    head_nll: Tensor | None = None
    prior_nll: Tensor | None = None
    weight_nll: Tensor | None = None
    """Of the mixture with one weight; None where none was fitted."""
    prior_share: Tensor | None = None
    """Share of the counts."""


class Gate(nn.Module):
    """The logit of the counts' share, (N,), from (N, D) states and the (N, F) `context_features`."""

    def __init__(self, n_embd: int, n_features: int) -> None:
        super().__init__()
        self.states, self.features = nn.Linear(n_embd, UNITS), nn.Linear(n_features, UNITS)
        self.out = nn.Linear(UNITS, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, START)

    def forward(self, states: Tensor, features: Tensor) -> Tensor:
        """Return the logits."""
        return self.out(torch.tanh(self.states(states) + self.features(features))).squeeze(-1)  # type: ignore[no-any-return]


def context_features(counts: KneserNey, contexts: Contexts) -> np.ndarray:
    """Return what a gate sees of contexts, (N, 3 C + 1) float32.

    These are log(1 + total) of the contexts of 1 to C tokens, the length of the longest one that was seen as one of
    C + 1 flags, and the shares that go on from each to the next shorter one.
    """
    totals = counts.context_counts(contexts)
    flags = np.eye(counts.order)[np.count_nonzero(totals, axis=1)]
    backoffs = [counts.interpolation(k, contexts)[1] for k in range(1, counts.order)]
    return np.concatenate([np.log1p(totals), flags, np.stack(backoffs, axis=1)], axis=1).astype(np.float32)


class PriorHead(Head):
    """The mixture of a head and an n-gram model, as a head.

    Its input has D + C numbers: the state, and the last C ids, `NO_TOKEN` where there are fewer. `MixedModel` puts both
    together. Everything that works on a head works on it: losses, ranks, truncation, draws.
    """

    weight: Tensor  # () fp64, the one share; NaN before it is fitted

    def __init__(self, head: Head, counts: KneserNey, config: PriorConfig, seed: int) -> None:
        super().__init__(head.n_embd + counts.order - 1, head.vocab_size)
        self.head, self.counts = head, counts
        self.register_buffer("weight", torch.tensor(float("nan"), dtype=torch.float64))
        self.gate = None
        if config.mix == "gate":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.gate = Gate(head.n_embd, 3 * counts.order - 2)

    @classmethod
    def build(cls, config: Any, context: HeadContext) -> "PriorHead":
        """Raise a ConfigError: it is made of another head and of counts."""
        raise ConfigError("a prior is no head of its own: choose prior=kneser_ney beside head=NAME")

    def split(self, hidden: Tensor) -> tuple[Tensor, np.ndarray]:
        """Return (..., D) states, and the (N, C) ids as integers."""
        longest = self.counts.order - 1
        width = self.n_embd - longest
        states, ids = hidden[..., :width], hidden[..., width:]
        return states, ids.reshape(-1, longest).detach().cpu().numpy().astype(np.int64)

    def log_shares(self, states: Tensor, contexts: Contexts) -> tuple[Tensor, Tensor]:
        """Return the logs of the head's share and of the counts' share of (N, D) states, (N,) each."""
        if self.gate is None:
            weight = self.weight.to(states.device).expand(len(states))
            return torch.log1p(-weight), torch.log(weight)
        features = torch.from_numpy(context_features(self.counts, contexts)).to(states.device)
        with torch.autocast(states.device.type, enabled=False):
            logit = self.gate(states.float(), features)
        return F.logsigmoid(-logit), F.logsigmoid(logit)

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """Return the negative log-likelihood of the targets; the parts of the head are left out."""
        flat, classes = self.flatten(hidden, targets)
        counted = classes != IGNORE_INDEX
        states, ids = self.split(flat)
        own = at_least_fp32(self.head.loss(states, classes, "none").nll)[counted]
        contexts = self.counts.contexts_after(ids[counted.cpu().numpy()])
        prior = self.counts_log_prob(contexts, classes[counted]).to(own.dtype)
        kept, share = self.log_shares(states[counted], contexts)

        def finish(values: Tensor) -> Tensor:
            spread = values.new_zeros(targets.numel()).masked_scatter(counted, values)
            return reduce_nll(spread.view(targets.shape), targets, reduction)

        weight = None
        if not self.weight.isnan():
            both = torch.log1p(-self.weight).to(own.dtype) - own, torch.log(self.weight).to(own.dtype) + prior
            weight = finish(-torch.logaddexp(*both))
        mixed = -torch.logaddexp(kept.to(own.dtype) - own, share.to(own.dtype) + prior)
        return MixedLoss(
            nll=finish(mixed),
            head_nll=finish(own),
            prior_nll=finish(-prior),
            weight_nll=weight,
            prior_share=finish(share.to(own.dtype).exp()),
        )

    def gate_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of the mixture with a gradient for the gate alone, in nats, for training text.

        `hidden` is (N, D + C), `targets` (N,). The counts leave out each target itself. Targets whose context goes back
        beyond their window are left out, since it is not known which counts they have. So are those whose loss under
        the head is not finite.
        """
        states, ids = self.split(hidden)
        whole = (ids != NO_TOKEN).all(axis=1) | (ids == self.counts.eot_id).any(axis=1)
        with torch.no_grad():
            own = self.head.loss(states, targets, "none").nll.float()
        rows = torch.from_numpy(whole).to(hidden.device) & (targets != IGNORE_INDEX) & own.isfinite()
        own, states, targets = own[rows], states[rows].nan_to_num(), targets[rows]
        contexts = self.counts.contexts_after(ids[rows.cpu().numpy()], targets.cpu().numpy())
        prior = self.counts_log_prob(contexts, targets).float()
        kept, share = self.log_shares(states, contexts)
        return -torch.logaddexp(kept - own, share + prior).sum() / rows.sum().clamp_min(1)

    def counts_log_prob(self, contexts: Contexts, targets: Tensor) -> Tensor:
        """Return (N,) log p_counts(target) in fp64, on the targets' device."""
        tokens = targets.cpu().numpy()
        log_prob = self.counts.log_prob(contexts, self.counts.ngrams(contexts.nodes, tokens))
        return torch.from_numpy(log_prob).to(targets.device)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the (..., V) log-probabilities of every token, in fp64."""
        states, ids = self.split(hidden.reshape(-1, self.n_embd))
        contexts = self.counts.contexts_after(ids)
        kept, share = (part.double().unsqueeze(1) for part in self.log_shares(states, contexts))
        prior = torch.from_numpy(self.counts.probabilities(contexts)).to(states.device).log_()
        mixed = torch.logaddexp(kept + self.head.log_prob(states).double(), share + prior)
        return mixed.view(*hidden.shape[:-1], self.vocab_size)

    def draw_tokens(
        self, hidden: Tensor, generator: torch.Generator | None, temperature: float, truncation: Truncation, count: int
    ) -> Tensor:
        """Return `sample` of `count` draws for temperatures above 0.

        Without truncation at temperature 1 each draw is one of the head's own or one of the counts', by their shares.
        """
        if temperature != 1 or not truncation.keeps_all:
            return super().draw_tokens(hidden, generator, temperature, truncation, count)
        states, ids = self.split(hidden)
        draws = self.head.draw_tokens(states, generator, temperature, truncation, count).clone()
        share = self.log_shares(states, self.counts.contexts_after(ids))[1].exp()
        device = hidden.device
        from_counts = torch.rand(draws.shape, generator=generator, device=device) < share.unsqueeze(1)
        seeds = torch.randint(2**62, (len(draws),), generator=generator, device=device).tolist()
        for row in from_counts.any(1).nonzero().squeeze(1).tolist():
            history = ids[row][ids[row] != NO_TOKEN]
            drawn = self.counts.sample(history, np.random.default_rng(seeds[row]), count)
            draws[row] = torch.where(from_counts[row], torch.from_numpy(drawn).to(device), draws[row])
        return draws

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Promise that no weight changes inside the block."""
        with self.head.frozen():
            yield

    def flops_per_token(self) -> float:
        """Return those of the head and of the gate; look-ups are none."""
        own = 0 if self.gate is None else sum(p.numel() for p in self.gate.parameters())
        return self.head.flops_per_token() + 2.0 * own


class MixedModel(LanguageModel):
    """A language model and an n-gram model. Body and head are those of `model`, shared with it."""

    head: PriorHead

    def __init__(self, model: LanguageModel, head: PriorHead) -> None:
        super().__init__(model.body, head)

    def hidden(self, input_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return (B, T, D + C): the states of the body, and the last C ids at each place."""
        states = at_least_fp32(super().hidden(input_ids, cache))
        longest, known = self.head.counts.order - 1, input_ids
        if cache is not None:
            known = input_ids if cache.recent is None else torch.cat([cache.recent, input_ids], dim=1)
            cache.recent = known[:, -longest:]
        padded = F.pad(known, (longest - 1, 0), value=NO_TOKEN)
        last = padded.unfold(1, longest, 1)[:, -input_ids.shape[1] :]
        return torch.cat([states, last.to(states.dtype)], dim=-1)


def build_mixed(model: LanguageModel, config: Config, train: TokenFile) -> MixedModel:
    """Return the mixture of a model and the n-grams of its training text, cut by `counted_text`; the gate is new."""
    prior = config.prior
    counts = load_or_build(
        train, prior.order, [min(length, prior.min_count) for length in (1, 1, 2, 2, 2)][: prior.order]
    )
    return MixedModel(model, PriorHead(model.head, counts, prior, config.seed))
