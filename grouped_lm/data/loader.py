"""Batches from a flat array of ids. Letters: B batch, T block_size, N tokens, W windows per epoch.

The order of training is a pure function of (seed, epoch, index): sample k of the whole run is window
`k % W` of epoch `k // W`, and micro-batch i holds the samples i*B to i*B + B - 1. To resume, i is enough. Of P
processes, process r takes rows r*B/P to (r + 1)*B/P - 1 of every micro-batch: all together read the same rows as one.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from grouped_lm.config import IGNORE_INDEX
from grouped_lm.errors import DataError

Batch = tuple[Tensor, Tensor]
"""input_ids and targets, (B, T) each, int64."""


class TrainBatches:
    """Random windows to train on.

    An epoch starts at a random offset of its own, cuts the text into windows of T that do not overlap, and uses each
    of them once, in a random order. The rest at both ends (under 2T targets) differs from epoch to epoch.

    Args:
        tokens: (N,) ids, usually a memory map.
        block_size: T, >= 1.
        batch_size: B, >= 1.
        seed: Seeds offsets and orders, >= 0.
        rank: This process, 0 <= rank < P.
        processes: P, which divides B.

    Raises:
        DataError: fewer than T + 1 tokens.
    """

    def __init__(
        self, tokens: np.ndarray, block_size: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1
    ) -> None:
        if len(tokens) < block_size + 1:
            raise DataError(
                f"training text has {len(tokens)} tokens, model.block_size={block_size} needs at least "
                f"{block_size + 1}; give more text or set model.block_size={max(1, len(tokens) - 1)}"
            )
        self.tokens, self.block_size, self.batch_size, self.seed = tokens, block_size, batch_size, seed
        self.rows = range(rank * batch_size // processes, (rank + 1) * batch_size // processes)
        self.windows_per_epoch = max(1, (len(tokens) - block_size) // block_size)
        self._starts: dict[int, np.ndarray] = {}

    def batch(self, index: int) -> Batch:
        """Return this process's part of micro-batch `index`, counted from the start of the run.

        Returns:
            input_ids (B/P, T) and targets (B/P, T), int64 on the CPU; targets are the ids one place later.
        """
        first = index * self.batch_size
        rows = [self._window(first + row) for row in self.rows]
        both = torch.from_numpy(np.stack(rows).astype(np.int64))
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def _window(self, sample: int) -> np.ndarray:
        epoch, place = divmod(sample, self.windows_per_epoch)
        start = int(self.epoch_starts(epoch)[place])
        return self.tokens[start : start + self.block_size + 1]

    def epoch_starts(self, epoch: int) -> np.ndarray:
        """Return the first index of every window of an epoch, in the order of use, shape (W,) int64.

        Ranks of raw 64-bit draws give the permutation: NumPy promises the stream of a bit generator, but not
        that of `Generator.permutation`, and a resumed run may see another NumPy.
        """
        if epoch not in self._starts:
            draws = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
            slack = len(self.tokens) - 1 - self.windows_per_epoch * self.block_size
            offset = int(draws.random_raw()) % (min(slack, self.block_size - 1) + 1)
            order = np.argsort(draws.random_raw(self.windows_per_epoch), kind="stable")
            previous = {e: s for e, s in self._starts.items() if e == epoch - 1}  # a batch may lie in two epochs
            self._starts = {**previous, epoch: offset + order * self.block_size}
        return self._starts[epoch]


class ValidWindows:
    """All of a text in order, in batches of one shape: every token but the first is a target exactly once.

    Windows of T do not overlap. The last window and the last batch are padded: inputs with `pad_id`, any id of the
    vocabulary, and targets with IGNORE_INDEX.

    `tokens` (N,) are ids, usually a memory map.

    Raises:
        DataError: fewer than 2 tokens.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, batch_size: int, pad_id: int = 0) -> None:
        if len(tokens) < 2:
            raise DataError(f"validation text has {len(tokens)} tokens, at least 2 are needed; give more text")
        self.tokens, self.block_size, self.batch_size, self.pad_id = tokens, block_size, batch_size, pad_id

    @property
    def target_tokens(self) -> int:
        """Number of targets in all batches."""
        return len(self.tokens) - 1

    def __len__(self) -> int:
        return -(-self.target_tokens // (self.block_size * self.batch_size))

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(index) for index in range(len(self)))

    def batch(self, index: int) -> Batch:
        """Return input_ids (B, T) and targets (B, T), int64 on the CPU, of batch 0 <= index < len(self)."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch must be in [0, {len(self) - 1}], got {index}")
        return self._batch(index)

    def part(self, rank: int, processes: int) -> Iterator[Batch]:
        """Yield every `processes`-th batch from `rank` on. Each rank gets equally many; the last may be padding."""
        return (self._batch(turn * processes + rank) for turn in range(-(-len(self) // processes)))

    def _batch(self, index: int) -> Batch:
        places = self.block_size * self.batch_size
        piece = self.tokens[index * places : (index + 1) * places + 1].astype(np.int64)
        input_ids = np.full(places, self.pad_id, np.int64)
        targets = np.full(places, IGNORE_INDEX, np.int64)
        known = max(0, len(piece) - 1)
        input_ids[:known], targets[:known] = piece[:known], piece[1:]
        shape = (self.batch_size, self.block_size)
        return torch.from_numpy(input_ids).view(shape), torch.from_numpy(targets).view(shape)


class Prefetcher:
    """Gives micro-batches on the device; the next one is read and copied there while the device computes.

    Copies go from pinned memory, so that the host does not wait for them. `load` returns a micro-batch on the CPU.
    `ahead` says whether `prefetch` does anything; None means only where the device works beside the host.
    """

    def __init__(self, load: Callable[[int], Batch], device: torch.device, ahead: bool | None = None) -> None:
        self._load, self._device = load, device
        self._ahead = device.type == "cuda" if ahead is None else ahead
        self._prefetched: tuple[int, Batch] | None = None

    def batch(self, index: int) -> Batch:
        """Return micro-batch `index`, the prefetched one where it is that."""
        prefetched, self._prefetched = self._prefetched, None
        return prefetched[1] if prefetched is not None and prefetched[0] == index else self._send(index)

    def prefetch(self, index: int) -> None:
        """Send micro-batch `index` ahead: to be called once the work of the one before has been given to the device."""
        if self._ahead:
            self._prefetched = index, self._send(index)

    def _send(self, index: int) -> Batch:
        input_ids, targets = self._load(index)
        if self._device.type == "cuda":
            input_ids, targets = input_ids.pin_memory(), targets.pin_memory()
        return input_ids.to(self._device, non_blocking=True), targets.to(self._device, non_blocking=True)
