"""The tokenizer interface, and the bytes tokenizer."""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from grouped_lm.config import TokenizerConfig
from grouped_lm.data.text import EOT_TEXT, Fragment, valid_unicode

VOCAB_SIZES = {"gpt2": 50_257, "bytes": 257}


class Tokenizer(Protocol):
    """Text to token ids and back. A tokenizer inherits `decode` and `encode_document`."""

    name: str
    vocab_size: int
    eot_id: int

    @property
    def fingerprint(self) -> str:
        """Return a sha256 of name and vocabulary: equal fingerprints give equal ids."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. A special token written in the text is ordinary text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids. Bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(int(i)) for i in ids).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one id."""

    def encode_document(self, text: str) -> np.ndarray:
        """Return the ids of a document and its end-of-text, shape (n,), uint16 or uint32."""
        return self.encode_fragments([(text, True)])

    def encode_fragments(self, fragments: Sequence[Fragment]) -> np.ndarray:
        """Return the ids of fragments in order, shape (n,), with end-of-text after each that ends a document.

        Several threads call this at once: it should free the GIL.
        """


class BytesTokenizer(Tokenizer):
    """UTF-8 bytes as ids 0 to 255, end-of-text as 256."""

    name = "bytes"
    vocab_size = VOCAB_SIZES["bytes"]
    eot_id = 256
    fingerprint = hashlib.sha256(b"bytes: id = byte, 256 = end of text").hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return list(valid_unicode(text).encode())

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one id."""
        return EOT_TEXT.encode() if token_id == self.eot_id else bytes([token_id])

    def encode_fragments(self, fragments: Sequence[Fragment]) -> np.ndarray:
        """Return the ids of fragments in order, shape (n,)."""
        parts: list[np.ndarray] = []
        for text, last in fragments:
            parts.append(np.frombuffer(valid_unicode(text).encode(), np.uint8).astype(np.uint16))
            if last:
                parts.append(np.array([self.eot_id], np.uint16))
        return np.concatenate(parts) if parts else np.empty(0, np.uint16)


def vocab_size_of(config: TokenizerConfig) -> int:
    """Return the size V of the vocabulary, without loading a file."""
    return config.vocab_size or VOCAB_SIZES[config.name]
