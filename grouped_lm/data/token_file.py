"""The prepared form of a split: one flat file of ids, one of document starts, and a manifest.

    tokens.bin      eot doc eot doc eot ...   uint16 or uint32, little-endian
    documents.bin   index of every document's first token in tokens.bin, int64, little-endian
    manifest.json   what it was made from, and hashes of both files; written last

The first end-of-text gives every token of a document and every closing end-of-text a predecessor, so that each of
them can be predicted: `target_tokens = tokens - 1`.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from grouped_lm.data.tokenizers.base import Tokenizer

FORMAT_VERSION = 2
TOKENS, DOCUMENTS, MANIFEST = "tokens.bin", "documents.bin", "manifest.json"
DTYPES = {"uint16": "<u2", "uint32": "<u4"}
VERIFY_MAX_BYTES = 256 << 20
"""Files up to this size are hashed when they are opened (0.2 s). Of larger ones only the size is checked."""
_COUNT_CHUNK = 1 << 22


@dataclass(kw_only=True, slots=True)
class TokenFile:
    """A prepared split on disk."""

    folder: Path
    manifest: dict[str, Any]
    _counts: np.ndarray | None = field(default=None, repr=False)

    @property
    def num_tokens(self) -> int:
        """All tokens in the file, with the first end-of-text."""
        return int(self.manifest["tokens"])

    @property
    def target_tokens(self) -> int:
        """Tokens that have a predecessor."""
        return int(self.manifest["target_tokens"])

    @property
    def part(self) -> str | None:
        """Return "the first 1,000 of 5,000 tokens" of a file that `first` has cut, None of a whole one."""
        whole = self.manifest.get("whole_target_tokens")
        return None if whole is None else f"the first {self.target_tokens:,} of {whole:,} tokens"

    @property
    def num_documents(self) -> int:
        """Documents in the file; empty ones are not in it."""
        return int(self.manifest["documents"])

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the documents, for bits per byte."""
        return int(self.manifest["bytes"])

    def tokens(self) -> np.ndarray:
        """Return the ids as a read-only memory map, shape (tokens,)."""
        return np.memmap(self.folder / TOKENS, DTYPES[self.manifest["dtype"]], "r", shape=(self.num_tokens,))

    def document_offsets(self) -> np.ndarray:
        """Return the index of each document's first token as a memory map, shape (documents,)."""
        return np.memmap(self.folder / DOCUMENTS, "<i8", "r", shape=(self.num_documents,))

    def first(self, targets: int | None, tokenizer: Tokenizer) -> "TokenFile":
        """Return the file cut to its first targets; the same one if it has no more, or if `targets` is None.

        The last document may be cut inside. Its bytes are those of its tokens.
        """
        if targets is None or targets >= self.target_tokens:
            return self
        ids, counts = np.unique(self.tokens()[1 : targets + 1], return_counts=True)
        sizes = [0 if i == tokenizer.eot_id else len(tokenizer.token_bytes(int(i))) for i in ids]
        cut = {
            "tokens": targets + 1,
            "target_tokens": targets,
            "documents": int(np.searchsorted(self.document_offsets(), targets, side="right")),
            "bytes": int(np.dot(sizes, counts)),
            "sha256": f"{self.manifest['sha256']}:{targets}",
            "whole_target_tokens": self.manifest.get("whole_target_tokens", self.target_tokens),
        }
        return TokenFile(folder=self.folder, manifest=self.manifest | cut)

    def rest(self) -> np.ndarray:
        """Return the ids that `first` has cut off, after the last one that it left, shape (cut + 1,)."""
        whole = self.manifest.get("whole_target_tokens", self.target_tokens) + 1
        tokens = np.memmap(self.folder / TOKENS, DTYPES[self.manifest["dtype"]], "r", shape=(whole,))
        return tokens[self.target_tokens :]

    def counts(self) -> np.ndarray:
        """Return the occurrences of every id, shape (V,) int64. The result of the first call is kept."""
        if self._counts is None:
            ids, counts = self.tokens(), np.zeros(self.manifest["tokenizer"]["vocab_size"], np.int64)
            for start in range(0, len(ids), _COUNT_CHUNK):  # bincount copies to int64: bound the copy
                counts += np.bincount(ids[start : start + _COUNT_CHUNK], minlength=len(counts))
            self._counts = counts
        return self._counts


def read_token_file(folder: Path, key: str) -> tuple[TokenFile | None, str]:
    """Return the token file in a folder, or None and the reason if it is not complete or was not made for `key`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["key"] != key:
            return None, "it was made from something else"
        width = np.dtype(DTYPES[manifest["dtype"]]).itemsize
        for name, size, sha256 in (
            (TOKENS, manifest["tokens"] * width, manifest["sha256"]),
            (DOCUMENTS, manifest["documents"] * 8, manifest["documents_sha256"]),
        ):
            if (folder / name).stat().st_size != size:
                return None, f"{name} has {(folder / name).stat().st_size} bytes, its manifest says {size}"
            if size <= VERIFY_MAX_BYTES and _sha256(folder / name) != sha256:
                return None, f"{name} does not match the hash in its manifest"
    except FileNotFoundError as error:
        return None, f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"its manifest cannot be read: {error!r}"
    return TokenFile(folder=folder, manifest=manifest), ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
