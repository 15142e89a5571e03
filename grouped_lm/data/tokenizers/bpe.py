"""A byte-level BPE that is trained on the training text: a small vocabulary to compare large ones with.

Source: Sennrich et al. 2016 (arXiv 1508.07909), on bytes and with GPT-2's splitting, by the `tokenizers` library.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grouped_lm.data.text import EOT_TEXT, Fragment, valid_unicode
from grouped_lm.data.tokenizers.base import Tokenizer
from grouped_lm.errors import DataError
from grouped_lm.system.files import write_bytes

if TYPE_CHECKING:
    import tokenizers


PROBE = "A Wörd,  two\tspaces\nand Ünïcode: \u4e2d \U0001f600 it's 12 <|x|>"
"""A text that a tokenizer with a normalizer, or without some characters, changes."""


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


def train_bpe(documents: Iterator[str], vocab_size: int) -> BPETokenizer:
    """Return a tokenizer of `vocab_size` ids (with end-of-text). The same documents give the same merges.

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
    model.train_from_iterator((valid_unicode(text) for text in documents), trainer)
    tokenizer = BPETokenizer(model)
    if tokenizer.vocab_size != vocab_size:
        raise DataError(
            f"the training text gives {tokenizer.vocab_size} tokens at most, "
            f"tokenizer.vocab_size asks for {vocab_size}: set it to that or less, or take more text"
        )
    return tokenizer


def is_byte_level(tokenizer: BPETokenizer) -> bool:
    """Return whether every token stands for bytes, and a text comes back as it was."""
    try:
        return b"".join(map(tokenizer.token_bytes, tokenizer.encode(PROBE))) == PROBE.encode()
    except KeyError:  # a character that stands for no byte
        return False


@lru_cache(maxsize=4)
def read_bpe(path: Path, vocab_size: int) -> BPETokenizer:
    """Return the tokenizer in a tokenizer.json that `BPETokenizer.save` wrote.

    Raises:
        DataError: the file is missing or broken, or its vocabulary has another size.
    """
    import tokenizers

    try:
        tokenizer = BPETokenizer(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")))
    except Exception as error:  # the library raises plain Exception for what it cannot parse
        raise DataError(f"cannot read the tokenizer {path}: {str(error).splitlines()[0]}") from error
    if not is_byte_level(tokenizer):
        raise DataError(f"{path} is no byte-level BPE without changes to the text, such as `gvc train` makes")
    if tokenizer.vocab_size != vocab_size:
        raise DataError(f"{path} has {tokenizer.vocab_size} tokens, tokenizer.vocab_size is {vocab_size}")
    return tokenizer
