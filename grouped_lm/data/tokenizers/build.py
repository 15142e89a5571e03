"""Build the tokenizer that a config names, and train one where the config asks for it."""

import hashlib
import json
from pathlib import Path

from grouped_lm.config import DataConfig, TokenizerConfig
from grouped_lm.data.cache import CACHE_ADVICE, build_lock, cache_folder
from grouped_lm.data.sources import open_source
from grouped_lm.data.sources.readers import warn_once
from grouped_lm.data.tokenizers.base import BytesTokenizer, Tokenizer
from grouped_lm.data.tokenizers.bpe import BPETokenizer, read_bpe, train_bpe
from grouped_lm.data.tokenizers.gpt2 import load_gpt2
from grouped_lm.errors import DataError, disk_errors
from grouped_lm.system.phases import phase

RECIPE = "byte-level, GPT-2's splitting, end-of-text last, 2"
"""Changes when the same text would give another vocabulary."""


def build_tokenizer(config: TokenizerConfig, data: DataConfig | None = None) -> Tokenizer:
    """Return the tokenizer that the config names; the same object for the same file in one process.

    Args:
        config: its name, and for `bpe` its size and perhaps its file.
        data: the source on whose training text `bpe` is trained, once per text and size, if it has no file.

    Raises:
        DataError: GPT-2's files are neither installed, cached nor reachable; the file of `bpe` is missing, broken or of
            another size; or there is no text to train on.
        DiskError: the cache cannot be written.
    """
    if config.name != "bpe":
        return load_gpt2() if config.name == "gpt2" else BytesTokenizer()
    assert config.vocab_size is not None  # the schema checks it
    if config.file is not None:
        return read_bpe(Path(config.file), config.vocab_size)
    if data is None:
        raise DataError("tokenizer=bpe is trained on data.train, or read from tokenizer.file: give one of them")
    source = open_source(data, "train")
    parts = {"recipe": RECIPE, "source": source.describe(), "vocab_size": config.vocab_size}
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    path = cache_folder(data) / f"bpe-{config.vocab_size}-{key[:16]}.json"
    with disk_errors(path, CACHE_ADVICE):
        tokenizer = _read_cached(path, config.vocab_size)
        if tokenizer is None:
            with phase("training the tokenizer"), build_lock(path):
                tokenizer = _read_cached(path, config.vocab_size)  # another process may have been quicker
                if tokenizer is None:
                    train_bpe((text for text, _ in source.fragments()), config.vocab_size).save(path)
    return tokenizer or read_bpe(path, config.vocab_size)


def _read_cached(path: Path, vocab_size: int) -> BPETokenizer | None:
    """Return the tokenizer that was trained before; None, with a warning, if its file cannot be used."""
    if not path.exists():
        return None
    try:
        return read_bpe(path, vocab_size)
    except DataError as error:
        warn_once(f"training the tokenizer again: {error}")
        return None
