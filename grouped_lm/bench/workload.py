"""The input of a bench: targets with the token frequencies of a real text. Letters: N tokens, D width."""

import sys
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from grouped_lm.bench.implementations import Implementation, choose
from grouped_lm.bench.settings import BenchConfig
from grouped_lm.bench.timing import Place, Sampler, Session, interleave
from grouped_lm.config import ModelConfig
from grouped_lm.data import TokenFile, prepare_split, vocab_size_of
from grouped_lm.data.loader import TrainBatches
from grouped_lm.system.runtime import resolve_device


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Workload:
    """The settings of a bench, the bodies by preset of conf/model, and the text."""

    settings: BenchConfig
    models: dict[str, ModelConfig]

    @cached_property
    def train_file(self) -> TokenFile:
        """The training text, prepared when it is first needed."""
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
        return choose(self.settings.competitors, say, self.settings.device, self.settings.dtype)

    def batches(self, batch_size: int, block_size: int) -> TrainBatches:
        """Return windows of the training text."""
        return TrainBatches(self.train_file.tokens(), block_size, batch_size, self.settings.seed)

    def interleave(self, samplers: dict[str, Sampler]) -> Session:
        """Time the samplers in turn, and print which are left out and why. Those of a GPU alone may fail."""
        may_fail = {i.name for i in self.implementations if i.gpu_only}
        session = interleave(samplers, self.settings.meter, self.place.calibrate, may_fail=may_fail)
        for name, reason in session.left_out.items():
            say(f"{name} is left out: {reason}")
        return session


def draw_ids(counts: Tensor, n_tokens: int, seed: int) -> Tensor:
    """Return (N,) int64 ids drawn in proportion to (V,) counts. `torch.multinomial` allows only 2^24 classes."""
    generator = torch.Generator().manual_seed(seed)
    cumulative = counts.double().cumsum(0)
    draws = torch.rand(n_tokens, generator=generator, dtype=torch.float64) * cumulative[-1]
    return torch.searchsorted(cumulative, draws, right=True).clamp_max(counts.numel() - 1)


def zipf_counts(vocab_size: int) -> Tensor:
    """Return (V,) counts proportional to 1 / rank, at least 1 each, for a V without a tokenizer."""
    return torch.from_numpy(np.ceil(vocab_size * 10 / np.arange(1, vocab_size + 1)).astype(np.int64))
