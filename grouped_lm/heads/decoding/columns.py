"""The tokens of one softmax in blocks of columns, for ranks: no (N, V) tensor exists.

Letters: N states, D width, V vocabulary, C columns of the softmax.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from grouped_lm.heads.decoding.ranks import Blocks
from grouped_lm.heads.losses.functional import at_least_fp32

ROWS, COLUMNS = 1024, 1024
"""States and columns whose logits are computed at once. Their 4 MiB in fp32 stay in a cache: that halves the time."""


class ColumnBlocks(Blocks):
    """Blocks of `COLUMNS` columns of softmax(W h + b). The bounds are the largest log-probabilities, known exactly.

    Args:
        states: (N, D).
        weight: (C, D).
        bias: (C,), or None.
        token_to_class: (V,) columns of the tokens; None: token i has column i. The last column, which is then a block
            of its own, may be that of several tokens, of equal probability.
    """

    def __init__(
        self, states: Tensor, weight: Tensor, bias: Tensor | None, token_to_class: Tensor | None = None
    ) -> None:
        everything = torch.arange(len(weight), device=states.device)
        self.states, self.token_to_class = states, token_to_class
        ids = everything if token_to_class is None else token_to_class.argsort(stable=True)
        shared = len(ids) > len(weight)
        starts = [*range(0, len(weight) - shared, COLUMNS), *([len(weight) - 1] if shared else [])]
        columns = everything.tensor_split(starts[1:])
        self.starts = torch.tensor(starts, device=states.device)
        self.ids = ids.tensor_split(starts[1:])
        self.layers = [(weight[some], None if bias is None else bias[some]) for some in columns]
        self.bounds, self.log_sum = self._bounds()
        self.single, self.single_ids = self.bounds.new_empty(len(states), 0), ids[:0]

    def _bounds(self) -> tuple[Tensor, Tensor]:
        """Return `bounds`, and the (N,) logs of the sums of the exponentials of all logits."""
        tops, log_sums = [], []
        for block in range(len(self.layers)):
            logits = (self._logits(states, block) for states in self.states.split(ROWS))
            top, log_sum = zip(*map(_top_and_log_sum, logits), strict=True)
            tops.append(torch.cat(top) - self._log_tokens(block))
            log_sums.append(torch.cat(log_sum))
        total = torch.stack(log_sums).double().logsumexp(0).to(log_sums[0].dtype)
        return torch.stack(tops) - total, total

    def _logits(self, states: Tensor, block: int) -> Tensor:
        return at_least_fp32(F.linear(states, *self.layers[block]))

    def _log_tokens(self, block: int) -> float:
        """Return the log of the number of tokens per column."""
        return math.log(len(self.ids[block]) / len(self.layers[block][0]))

    def members(self, block: int) -> Tensor:
        """Return the ids of a block."""
        return self.ids[block]

    def places(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (N,) blocks and slots of (N,) ids."""
        columns = tokens if self.token_to_class is None else self.token_to_class[tokens]
        blocks = torch.bucketize(columns, self.starts, right=True) - 1
        return blocks, columns - self.starts[blocks]

    def log_prob(self, rows: Tensor, block: int) -> Tensor:
        """Return the log-probabilities of the tokens of a block for (n,) states."""
        logits = self._logits(self.states[rows], block) - self._log_tokens(block)
        return (logits - self.log_sum[rows].unsqueeze(1)).expand(-1, len(self.ids[block]))


def _top_and_log_sum(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (n,) largest of (n, C) logits, and the logs of the sums of exponentials; the logits are overwritten.

    `logits.logsumexp(1)` is the slow line.
    """
    top = logits.amax(1)
    return top, logits.sub_(top.unsqueeze(1)).exp_().sum(1).log_() + top
