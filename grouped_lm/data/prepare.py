"""Prepare token files in the cache: built once, used again while nothing changed, complete or absent."""

import hashlib
import json
import logging
import re
from dataclasses import dataclass

from grouped_lm.config import DataConfig, TokenizerConfig
from grouped_lm.data.cache import CACHE_ADVICE, build_lock, cache_folder, remove_stale
from grouped_lm.data.sources import open_source
from grouped_lm.data.sources.readers import warn_once
from grouped_lm.data.sources.text_files import check_splits_apart
from grouped_lm.data.token_file import FORMAT_VERSION, TokenFile, read_token_file
from grouped_lm.data.token_writer import FolderWriter, OnProgress
from grouped_lm.data.tokenizers.base import Tokenizer
from grouped_lm.data.tokenizers.build import build_tokenizer
from grouped_lm.errors import DiskError, disk_errors
from grouped_lm.system.phases import phase

FEW_VALID_TOKENS = 200
"""A token's loss has a standard deviation of 2 to 3 nats: with fewer tokens the mean is uncertain by 0.15 or more."""
NAME_CHARS = 100
"""Characters of `data.name` in a folder's name. File systems allow 255, with the split, the hash and those of locks."""

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Corpus:
    """The token files of both splits."""

    train: TokenFile
    valid: TokenFile


def prepare_data(data: DataConfig, tokenizer: TokenizerConfig) -> Corpus:
    """Return the token files of both splits, prepared by `prepare_split`.

    Raises:
        ConfigError: both splits would read the same file of a folder or glob.
        DataError, DiskError: as `prepare_split`.
    """
    check_splits_apart(data)
    train, valid = (prepare_split(data, tokenizer, split) for split in ("train", "valid"))
    if valid.target_tokens < FEW_VALID_TOKENS:
        whole = valid.manifest.get("whole_target_tokens", valid.target_tokens)
        cause = f", cut by data.max_valid_tokens={data.max_valid_tokens}" if whole > valid.target_tokens else ""
        enough = (
            f"set it to {FEW_VALID_TOKENS} or more" if whole >= FEW_VALID_TOKENS else "give more text in data.valid"
        )
        warn_once(
            f"the validation text has {valid.target_tokens} tokens to predict{cause}: with fewer than "
            f"{FEW_VALID_TOKENS} its loss and perplexity are mostly chance; {enough}"
        )
    return Corpus(train=train, valid=valid)


def prepare_split(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    split: str,
    progress: OnProgress | None = None,
    workers: int | None = None,
) -> TokenFile:
    """Return a split's token file, which is built first if it is missing, outdated or damaged.

    Of the validation text it is the part that `data.max_valid_tokens` leaves.

    Several processes may call this at once: one builds, the others wait. A build that was killed continues after its
    last finished shard, and gives the same bytes as one that was never stopped.

    Args:
        data: The source, and `cache_dir` for the result.
        tokenizer: Which tokenizer.
        split: "train" or "valid".
        progress: Called after every batch while building; None shows a bar, if phases are shown.
        workers: As in `encode_fragments`; the result does not depend on it.

    Raises:
        DataError: the source is missing or unreadable, or has no document with text.
        DiskError: the cache cannot be written.
    """
    encoder = build_tokenizer(tokenizer, data)
    whole = _prepare_whole(data, encoder, split, progress, workers)
    return whole.first(data.max_valid_tokens, encoder) if split == "valid" else whole


def _prepare_whole(
    data: DataConfig, encoder: Tokenizer, split: str, progress: OnProgress | None, workers: int | None
) -> TokenFile:
    text = "training text" if split == "train" else "validation text"
    with phase(f"reading the {text}"):
        source = open_source(data, split)
        description = source.describe()
    parts = {"format": FORMAT_VERSION, "source": description, "tokenizer": encoder.fingerprint}
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", data.name)[:NAME_CHARS] or "data"
    folder = cache_folder(data) / f"{slug}-{split}-{key[:16]}"
    token_file, _ = read_token_file(folder, key)
    if token_file is not None:
        return token_file
    with disk_errors(folder, CACHE_ADVICE), phase(f"tokenizing the {text}") as shown, build_lock(folder):
        token_file, reason = read_token_file(folder, key)  # another process may have been quicker
        if token_file is None:
            if folder.exists():
                log.warning("rebuilding %s: %s", folder, reason)
            remove_stale(folder.parent, f"{slug}-{split}")
            FolderWriter(folder, encoder, {"key": key, "source": description}).run(
                source, workers, progress or shown.update
            )
            token_file, reason = read_token_file(folder, key)
    if token_file is None:
        raise DiskError(f"{folder} was written but cannot be read back: {reason}")
    return token_file
