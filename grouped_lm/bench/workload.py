"""What heads are fed: states, and targets as frequent as the tokens of a real text. Letters: N tokens, D width."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from grouped_lm.bench.implementations import Implementation, choose
from grouped_lm.bench.place import Place
from grouped_lm.bench.settings import BenchConfig
from grouped_lm.bench.timing import Session
from grouped_lm.config import ModelConfig
from grouped_lm.data import TokenFile, prepare_split, vocab_size_of
from grouped_lm.data.loader import TrainBatches
from grouped_lm.system.runtime import resolve_device


def say(text: str) -> None:
    """Print a line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def say_too_large(session: Session) -> None:
    """Say who did not fit into the device's memory."""
    for name in session.too_large:
        say(f"{name} is left out: it does not fit into the memory of the device")


@dataclass
class Workload:
    """Settings, the bodies that presets name, and the text.

    prepare: gives the training tokens; called when first needed.
    """

    settings: BenchConfig
    models: dict[str, ModelConfig]
    prepare: Callable[[], TokenFile] | None = field(default=None, repr=False)

    @cached_property
    def train_file(self) -> TokenFile:
        """The prepared training text."""
        if self.prepare is not None:
            return self.prepare()
        return prepare_split(self.settings.data, self.settings.tokenizer, "train")

    @cached_property
    def place(self) -> Place:
        """Where it is measured."""
        settings = self.settings
        return Place(resolve_device(settings.device, "device"), settings.dtype, settings.repeats)

    @property
    def vocab_size(self) -> int:
        """V of the tokenizer."""
        return vocab_size_of(self.settings.tokenizer)

    @cached_property
    def counts(self) -> Tensor:
        """(V,) occurrences in the training text."""
        return torch.from_numpy(self.train_file.counts())

    @cached_property
    def implementations(self) -> list[Implementation]:
        """What is measured."""
        return choose(self.settings.competitors, say, self.settings.device)

    def generator(self) -> torch.Generator:
        """Return a generator at the start of the seed's stream."""
        return torch.Generator().manual_seed(self.settings.seed)

    def targets(self, n_tokens: int) -> Tensor:
        """Return (N,) ids drawn by the frequencies of the text."""
        return draw_ids(self.counts, n_tokens, self.generator())

    def batches(self, batch_size: int, block_size: int) -> TrainBatches:
        """Return windows of the training text."""
        return TrainBatches(self.train_file.tokens(), block_size, batch_size, self.settings.seed)


def draw_ids(counts: Tensor, n_tokens: int, generator: torch.Generator) -> Tensor:
    """Return (N,) int64 ids with probabilities as their (V,) counts: by inversion, since `multinomial` ends at 2^24."""
    cumulative = counts.double().cumsum(0)
    draws = torch.rand(n_tokens, generator=generator, dtype=torch.float64) * cumulative[-1]
    return torch.searchsorted(cumulative, draws, right=True).clamp_max(counts.numel() - 1)


def zipf_counts(vocab_size: int) -> Tensor:
    """Return (V,) counts proportional to 1 / rank, where no tokenizer of that V is at hand; all are at least 1."""
    return torch.from_numpy(np.ceil(vocab_size * 10 / np.arange(1, vocab_size + 1)).astype(np.int64))
