"""A byte-level BPE that is trained on the training text: a small vocabulary to compare large ones with.

Source: Sennrich et al. 2016 (arXiv 1508.07909), on bytes and with GPT-2's splitting, by the `tokenizers` library.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grouped_lm.data.text import EOT_TEXT, Fragment, valid_unicode
from grouped_lm.data.tokenizers.base import Tokenizer
from grouped_lm.errors import DataError
from grouped_lm.system.files import write_bytes

if TYPE_CHECKING:
    import tokenizers


PROBE = "A Wörd,  two\tspaces\nand Ünïcode: \u4e2d \U0001f600 it's 12 <|x|>"
"""A text that a tokenizer with a normalizer, or without some characters, changes."""
KEEPING = ("ByteLevel", "Split", "Digits", "Punctuation")
"""Steps before the merges that may keep every character: Split and Punctuation can also remove what they find."""


def byte_characters() -> dict[str, int]:
    """Return the byte of each character in the library's files, as in GPT-2's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class BPETokenizer(Tokenizer):
    """Ids 0-255 single bytes, then merges by rank, then one end-of-text; any text comes back byte for byte."""

    name = "bpe"

    def __init__(self, model: "tokenizers.Tokenizer") -> None:
        self._model = model
        self.eot_id = model.get_vocab_size()
        self.vocab_size = self.eot_id + 1

    @cached_property
    def _bytes(self) -> list[bytes]:
        known = byte_characters()
        tokens = [str(self._model.id_to_token(i)) for i in range(self.eot_id)]
        return [bytes(known[c] for c in token) for token in tokens] + [EOT_TEXT.encode()]

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 of the library's whole description, with the merges and their order."""
        return hashlib.sha256(b"bpe\0" + self._model.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return self._model.encode(valid_unicode(text), add_special_tokens=False).ids

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one id."""
        return self._bytes[token_id]

    def encode_fragments(self, fragments: Sequence[Fragment]) -> np.ndarray:
        """Return the ids of fragments in order, shape (n,). One call into Rust, which uses threads of its own."""
        texts = [valid_unicode(text) for text, _ in fragments]
        ids: list[int] = []
        encoded = self._model.encode_batch_fast(texts, add_special_tokens=False)
        for (_, last), one in zip(fragments, encoded, strict=True):
            ids += one.ids
            if last:
                ids.append(self.eot_id)
        return np.array(ids, np.uint16)

    def save(self, path: Path) -> None:
        """Write the tokenizer as the library's JSON, which `tokenizer.file` can name."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, self._model.to_str(pretty=True).encode())


def train_bpe(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """Return a tokenizer of `vocab_size` ids (with end-of-text). The same texts give the same merges.

    Documents and their fragments give the same merges too: the trainer counts words, and no fragment cuts one. The
    trainer's memory is some 90 times the size of the longest text, per core.

    Raises:
        DataError: the text has too few different words for so many merges.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator((valid_unicode(text) for text in texts), trainer)
    tokenizer = BPETokenizer(model)
    if tokenizer.vocab_size != vocab_size:
        raise DataError(
            f"the training text gives {tokenizer.vocab_size} tokens at most, "
            f"tokenizer.vocab_size asks for {vocab_size}: set it to that or less, or take more text"
        )
    return tokenizer


def check_model(values: dict[str, Any]) -> None:
    """Raise a ValueError that names the first part of a tokenizer.json which drops or changes text, or draws."""
    model = values["model"]
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {model['type']}, not BPE")
    if values.get("normalizer"):
        raise ValueError("it changes the text before it splits it (a normalizer)")
    level = values.get("pre_tokenizer") or {}
    steps = level.get("pretokenizers") or [level]
    kept = all(step.get("type") in KEEPING and step.get("behavior") != "Removed" for step in steps)
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    if not kept or not levels or any(step.get("add_prefix_space", True) for step in levels):
        raise ValueError("it does not split text into bytes as GPT-2 does (ByteLevel without add_prefix_space)")
    odd = [key for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if model.get(key)]
    if odd:
        raise ValueError(f"its model has {', '.join(odd)}")


def check_vocabulary(vocab: Mapping[str, int], added: Mapping[str, int] | None = None) -> None:
    """Raise a ValueError if ids have gaps, or a byte has no token. `added` are the ids of tokens beside the model's."""
    tokens = dict(vocab) | dict(added or {})
    if sorted(tokens.values()) != list(range(len(tokens))):
        raise ValueError("its ids are not 0, 1, 2, ... without gaps")
    if missing := byte_characters().keys() - vocab.keys():
        raise ValueError(f"it has no token for {len(missing)} of the 256 bytes")


def check_lossless(tokenizer: BPETokenizer) -> None:
    """Raise a ValueError that names the first property by which a text would not come back as it was."""
    values = json.loads(tokenizer._model.to_str())
    check_model(values)
    added = values.get("added_tokens") or []
    check_vocabulary(values["model"]["vocab"], {token["content"]: token["id"] for token in added})
    for token in added:
        if token.get("lstrip") or token.get("rstrip"):
            raise ValueError(f"its added token {token['content']!r} drops the blanks around it (lstrip or rstrip)")
        if not re.fullmatch(r"[!-~]+", token["content"]):  # others stand for other bytes than their own
            raise ValueError(f"its added token {token['content']!r} has other characters than ASCII's visible ones")
    try:
        same = b"".join(map(tokenizer.token_bytes, tokenizer.encode(PROBE))) == PROBE.encode()
    except KeyError:
        raise ValueError("it has tokens with characters that stand for no byte") from None
    if not same:
        raise ValueError("it changes text")


@lru_cache(maxsize=4)
def read_bpe(path: Path, vocab_size: int) -> BPETokenizer:
    """Return the tokenizer in a tokenizer.json that `BPETokenizer.save` wrote, or another one that keeps every text.

    Its truncation and padding are switched off.

    Raises:
        DataError: the file is missing or broken, would change a text, or its vocabulary has another size.
    """
    import tokenizers

    try:
        model = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises plain Exception for what it cannot parse
        raise DataError(f"cannot read the tokenizer {path}: {str(error).splitlines()[0]}") from error
    model.no_truncation()
    model.no_padding()
    tokenizer = BPETokenizer(model)
    try:
        check_lossless(tokenizer)
    except ValueError as error:
        raise DataError(
            f"{path} is no byte-level BPE that keeps every text as it is: {error}; give tokenizer.file such as "
            "`gvc train` writes"
        ) from error
    if tokenizer.vocab_size != vocab_size:
        raise DataError(f"{path} has {tokenizer.vocab_size} tokens, tokenizer.vocab_size is {vocab_size}")
    return tokenizer
