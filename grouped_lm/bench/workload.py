"""The input of a bench: targets with the token frequencies of a real text. Letters: N tokens, D width."""

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
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def say_too_large(session: Session) -> None:
    """Print the implementations that did not fit into the memory of the device."""
    for name in session.too_large:
        say(f"{name} is left out: it does not fit into the memory of the device")


@dataclass
class Workload:
    """The settings, the bodies by preset, and the text.

    Attributes:
        settings: The bench's config.
        models: Preset of conf/model -> body.
        prepare: Returns the training tokens; called when they are first needed.
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
        """The device and dtype."""
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
        """The implementations to measure."""
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
    """Return (N,) int64 ids drawn in proportion to (V,) counts. `torch.multinomial` allows only 2^24 classes."""
    cumulative = counts.double().cumsum(0)
    draws = torch.rand(n_tokens, generator=generator, dtype=torch.float64) * cumulative[-1]
    return torch.searchsorted(cumulative, draws, right=True).clamp_max(counts.numel() - 1)


def zipf_counts(vocab_size: int) -> Tensor:
    """Return (V,) counts proportional to 1 / rank, at least 1 each, for a V without a tokenizer."""
    return torch.from_numpy(np.ceil(vocab_size * 10 / np.arange(1, vocab_size + 1)).astype(np.int64))
