"""Keys and values of the tokens read so far, so that a body reads each token once.

Letters: B batch, T sequence, H attention heads, E width of one head, P longest context (block_size).
"""

import torch
from torch import Tensor


class LayerCache:
    """One layer's keys and values, (B, H, P, E) each, of which `length` places are filled."""

    def __init__(self, block_size: int) -> None:
        self.block_size, self.length = block_size, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, H, T, E) new ones and return all, (B, H, length, E) each."""
        if self.keys is None or self.values is None:
            shape = (*keys.shape[:2], self.block_size, keys.shape[3])
            self.keys, self.values = keys.new_empty(shape), values.new_empty(shape)
        stop = self.length + keys.shape[2]
        self.keys[:, :, self.length : stop] = keys
        self.values[:, :, self.length : stop] = values
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows of the batch only."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


class KVCache:
    """The caches of all layers. A body that is given one reads its input as what follows."""

    def __init__(self, n_layer: int, block_size: int) -> None:
        self.block_size = block_size
        self.layers = [LayerCache(block_size) for _ in range(n_layer)]

    @property
    def length(self) -> int:
        """Tokens read so far, the same in every layer between two calls of a body."""
        return self.layers[-1].length

    def select(self, rows: Tensor) -> None:
        """Go on with the rows of the batch that (R,) `rows` names."""
        for layer in self.layers:
            layer.select(rows)


def visible(n_new: int, n_all: int, window: int | None, device: torch.device) -> Tensor:
    """Return the (n_new, n_all) bool mask of which keys the last n_new of n_all tokens see.

    Token i sees j with i - window < j <= i, or all j <= i where window is None.
    """
    distance = torch.arange(n_all - n_new, n_all, device=device)[:, None] - torch.arange(n_all, device=device)
    return (distance >= 0) & (distance < (n_all if window is None else window))
