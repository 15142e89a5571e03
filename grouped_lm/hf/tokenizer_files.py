"""Tokenizers as the files that transformers reads, made from what is already here."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

from grouped_lm.data.tokenizers.base import EOT_TEXT, GPT2_URL, Tokenizer, gpt2_folder
from grouped_lm.data.tokenizers.bpe import BPETokenizer
from grouped_lm.errors import DataError
from grouped_lm.system.files import write_json

GPT2_NAMES = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}
"""GPT-2's two files, and what transformers calls them."""


def write_tokenizer(tokenizer: Tokenizer, block_size: int, folder: Path) -> None:
    """Write a tokenizer whose ids are those of ours.

    Raises:
        DataError: GPT-2's files are nowhere on this machine.
    """
    values: dict[str, Any] = {
        "bos_token": EOT_TEXT,
        "eos_token": EOT_TEXT,
        "unk_token": EOT_TEXT,
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.name == "gpt2":
        cache = gpt2_folder()
        for name, target in GPT2_NAMES.items():
            source = cache / hashlib.sha1((GPT2_URL + name).encode()).hexdigest() if cache else None
            if source is None or not source.exists():
                raise DataError(f"GPT-2's {name} is not in tiktoken's cache {cache}: unset TIKTOKEN_CACHE_DIR")
            shutil.copy(source, folder / target)
        write_json(folder / "tokenizer_config.json", values | {"tokenizer_class": "GPT2Tokenizer"})
        return
    if isinstance(tokenizer, BPETokenizer):
        tokenizer.save(folder / "tokenizer.json")
    else:
        write_json(folder / "tokenizer.json", byte_tokenizer(tokenizer))
    write_json(folder / "tokenizer_config.json", values | {"tokenizer_class": "PreTrainedTokenizerFast"})


def byte_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return tokenizer.json of a byte-level BPE without merges: id = byte, then end-of-text."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    special = {"id": tokenizer.eot_id, "content": EOT_TEXT, "special": True, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special | {"single_word": False, "lstrip": False, "rstrip": False}],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "vocab": {char: byte for byte, char in enumerate(byte_characters())} | {EOT_TEXT: tokenizer.eot_id},
            "merges": [],
        },
    }


def byte_characters() -> list[str]:
    """Return the printable character that byte-level BPE writes for each byte (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]
