"""Sampling, top-k and argmax over all V log-probabilities: the slow lines that faster heads equal.

Letters: N states, D width, V vocabulary, M kept tokens.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from grouped_lm.heads.decoding.truncation import KeptTokens, Truncation, draw_from, draw_kept, truncate


class JointDecoding:
    """Decoding from the joint distribution of a head that has `log_prob`."""

    @abstractmethod
    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return (..., V) log-probabilities of every token."""

    def truncate(self, hidden: Tensor, truncation: Truncation) -> KeptTokens:
        """Return the tokens that `truncation` keeps for (N, D) states, likeliest first, equals by id."""
        return truncate(self.log_prob(hidden), None, truncation)

    def topk(self, hidden: Tensor, k: int) -> KeptTokens:
        """Return the min(k, V) likeliest tokens of (N, D) states."""
        return self.truncate(hidden, Truncation(top_k=k))

    def argmax(self, hidden: Tensor) -> Tensor:
        """Return the (N,) ids of the likeliest token of (N, D) states."""
        return self.truncate(hidden, Truncation(top_k=1)).ids.squeeze(1)

    def sample(
        self,
        hidden: Tensor,
        generator: torch.Generator | None = None,
        *,
        temperature: float = 1.0,
        truncation: Truncation | None = None,
        num_samples: int = 1,
    ) -> Tensor:
        """Return (N, num_samples) token ids drawn from the joint distribution.

        Args:
            hidden: (N, D).
            generator: on the device of the states; None is torch's global one.
            temperature: T >= 0. Tokens that the truncation keeps get weight p^(1/T); 0 takes the likeliest.
            truncation: which tokens may be drawn; None means all.
            num_samples: draws per state, >= 1.
        """
        if temperature == 0:
            return self.argmax(hidden).unsqueeze(1).expand(-1, num_samples)
        truncation = truncation or Truncation()
        if not truncation.keeps_all:
            return draw_kept(self.truncate(hidden, truncation), temperature, num_samples, generator)
        return draw_from(self.log_prob(hidden), truncation, temperature, num_samples, generator)
