"""The loss of a run on each document of a text. Leaderboards rank and resample these.

Letters: S documents, N targets.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from grouped_lm.config import IGNORE_INDEX, Config
from grouped_lm.data import iter_documents, prepare_split
from grouped_lm.data.loader import ValidWindows
from grouped_lm.data.sources.text_files import TextConfig, file_sha256
from grouped_lm.data.token_file import TokenFile
from grouped_lm.errors import DataError
from grouped_lm.evaluate.counts import count_text, counts_tokens
from grouped_lm.evaluate.metrics import sum_by_story
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.load import load_config, load_model, own_tokenizer
from grouped_lm.system.files import read_json_dict, write_json
from grouped_lm.system.runtime import autocast, resolve_device, set_threads


@dataclass(frozen=True, slots=True)
class DocumentLosses:
    """The loss of a run on the documents of a text, each with the end-of-text after it."""

    nats: np.ndarray  # (S,)
    tokens: np.ndarray  # (S,) targets
    text_bytes: np.ndarray  # (S,) UTF-8 bytes of each document

    @property
    def loss(self) -> float:
        """Nats per token of the whole text."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the whole text."""
        return float(self.nats.sum() / math.log(2) / self.text_bytes.sum())


def document_losses(run: Path, text: Path, step: int) -> DocumentLosses:
    """Return the losses of the run's checkpoint at `step`, and cache them in the run folder.

    The text is read in one piece, in windows without overlap, as validation during training does.

    Raises:
        DataError: there is no such text, or the run has lost its tokenizer.
        DriftError: the run counts n-grams, and its training text has changed.
    """
    if not text.is_file():
        raise DataError(f"there is no text {text}")
    cache = run / f"documents-{file_sha256(text)[:16]}-{step}.json"
    if (losses := _read(cache)) is not None:
        return losses
    config = load_config(run)
    data = TextConfig(train=str(text), valid=str(text), cache_dir=config.data.cache_dir)
    data.text_field = getattr(config.data, "text_field", data.text_field)
    config = replace(config, data=data, tokenizer=own_tokenizer(run, config.tokenizer))
    if config.tokenizer.name == "bpe" and config.tokenizer.file is None:
        raise DataError(f"{run} has no tokenizer.json, so {text} cannot be encoded as its training text was")
    split = prepare_split(config.data, config.tokenizer, "valid")
    nll = _count_losses(run, split, step) if counts_tokens(config) else _network_losses(run, config, split)
    nats, tokens = sum_by_story(nll, np.asarray(split.document_offsets()))
    sizes = [len(document.encode()) for document in iter_documents(config.data, "valid") if document]
    losses = DocumentLosses(nats, tokens, np.array(sizes))
    with contextlib.suppress(OSError):  # a run folder that is read-only
        write_json(cache, {name: getattr(losses, name).tolist() for name in DocumentLosses.__slots__})
    return losses


def _read(cache: Path) -> DocumentLosses | None:
    values = read_json_dict(cache) or {}
    columns: Sequence[object] = [values.get(name) for name in DocumentLosses.__slots__]
    if not all(isinstance(column, list) and column for column in columns):
        return None
    return DocumentLosses(*(np.array(column) for column in columns))


def _count_losses(run: Path, split: TokenFile, step: int) -> np.ndarray:
    """Return the (N,) nats of n-grams counted in the run's own training text."""
    config = load_config(run)
    RunFolder(run).check_same_inputs(config)
    train = prepare_split(config.data, own_tokenizer(run, config.tokenizer), "train")
    model, _ = count_text(config, train, step)
    return -model.target_log_prob(np.asarray(split.tokens()))


@torch.no_grad()
def _network_losses(run: Path, config: Config, split: TokenFile) -> np.ndarray:
    """Return the (N,) nats of the newest checkpoint, in the order of the text."""
    device = resolve_device(config.train.device)
    set_threads(config.train.threads)
    model, _ = load_model(run, config, device)
    batch_size = config.train.eval_batch_size or config.train.micro_batch_size
    parts = []
    for input_ids, targets in ValidWindows(split.tokens(), config.model.block_size, batch_size):
        with autocast(device, config.train.dtype):
            nll = model(input_ids.to(device), targets.to(device), reduction="none").nll
        parts.append(nll.double().cpu()[targets != IGNORE_INDEX].numpy())
    return np.concatenate(parts)
