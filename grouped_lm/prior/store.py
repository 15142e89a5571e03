"""N-gram models on disk: one safetensors file in the folder of the tokens, named by a hash of what it is made of."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from grouped_lm.config import PriorConfig
from grouped_lm.data.cache import CACHE_ADVICE, build_lock
from grouped_lm.data.token_file import TokenFile
from grouped_lm.data.tokenizers.base import Tokenizer
from grouped_lm.errors import DataError, disk_errors
from grouped_lm.prior.kneser_ney import KneserNey, build_kneser_ney
from grouped_lm.prior.tables import Level
from grouped_lm.system.files import write_bytes

FORMAT = "kneser_ney 1"
_HEADER = "kneser_ney"

log = logging.getLogger(__name__)


def counts_path(tokens: TokenFile, order: int, min_counts: Sequence[int] | None = None) -> Path:
    """Return the file of the counts of a token file, beside the tokens: rebuilding the tokens removes it.

    Its name has a hash of the tokens, the order and the pruning.
    """
    tokenizer = tokens.manifest["tokenizer"]
    parts = [FORMAT, tokens.manifest["sha256"], tokenizer["vocab_size"], tokenizer["eot_id"]]
    parts += [order, list(min_counts or [1] * order)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return tokens.folder / f"kneser_ney-{order}-{key[:16]}.safetensors"


def counted_text(train: TokenFile, config: PriorConfig, tokenizer: Tokenizer) -> TokenFile:
    """Return the training text without its end, which `PriorConfig.held_out_tokens` keeps aside."""
    return train.first(train.target_tokens - min(config.held_out_tokens, train.target_tokens // 10), tokenizer)


def load_or_build(tokens: TokenFile, order: int = 5, min_counts: Sequence[int] | None = None) -> KneserNey:
    """Return the counts of a token file: from disk where they are there, else counted and saved.

    Of several processes that ask at once, one counts and the others wait. Counts that are there are read without a
    lock, so that a cache which cannot be written is enough.

    Raises:
        ConfigError: `order` or `min_counts` is out of range.
        DiskError: counts are missing, and the folder of the tokens cannot be written.
    """
    path = counts_path(tokens, order, min_counts)
    with suppress(DataError):
        return load_counts(path, path.stem)
    with disk_errors(path.parent, CACHE_ADVICE), build_lock(path):
        if path.exists():  # damaged, or another process has been quicker
            try:
                return load_counts(path, path.stem)
            except DataError as error:
                log.warning("counting again: %s", error)
        tokenizer = tokens.manifest["tokenizer"]
        model = build_kneser_ney(
            tokens.tokens(), tokenizer["vocab_size"], tokenizer["eot_id"], order=order, min_counts=min_counts
        )
        save_counts(model, path, path.stem)
    return model


def save_counts(model: KneserNey, path: Path, key: str = "") -> None:
    """Write a model to one safetensors file; a reader sees the whole file or none. `key` is kept in its header."""
    arrays = {
        f"{length}.{field.name}": getattr(level, field.name)
        for length, level in enumerate(model.levels, start=1)
        for field in fields(Level)
    }
    header = {
        "format": FORMAT,
        "key": key,
        "vocab_size": model.vocab_size,
        "eot_id": model.eot_id,
        "min_counts": list(model.min_counts),
    }
    header["sha256"] = _sha256(header, arrays)
    # One entry of metadata: the library writes several in a random order.
    write_bytes(path, save(arrays, metadata={_HEADER: json.dumps(header, sort_keys=True)}))


def load_counts(path: Path, key: str = "") -> KneserNey:
    """Read a model that `save_counts` wrote with the same key.

    Raises:
        DataError: the file is missing or damaged, or has another key or format, or no hash of its content.
    """
    try:
        with safe_open(path, "np") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            if (header["format"], header["key"]) != (FORMAT, key):
                raise DataError(f"{path} was made from something else: remove it")
            arrays = {
                f"{length}.{field.name}": file.get_tensor(f"{length}.{field.name}")
                for length, _ in enumerate(header["min_counts"], start=1)
                for field in fields(Level)
            }
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read as counts: {error!r}") from error
    if header.pop("sha256", None) != _sha256(header, arrays):
        raise DataError(f"{path} is damaged, or of a version without a hash: remove it")
    levels = [
        Level(**{field.name: arrays[f"{length}.{field.name}"] for field in fields(Level)})
        for length, _ in enumerate(header["min_counts"], start=1)
    ]
    return KneserNey(header["vocab_size"], header["eot_id"], levels, tuple(header["min_counts"]))


def _sha256(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """Return a hash of the header and of all tables: 0.5 to 2 seconds a GB."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
