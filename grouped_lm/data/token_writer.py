"""Writes a token file (see `token_file`) so that it is either whole or not there."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from grouped_lm.data.encode import Encoded
from grouped_lm.data.token_file import DOCUMENTS, DTYPES, FORMAT_VERSION, MANIFEST, TOKENS
from grouped_lm.data.tokenizer import Tokenizer
from grouped_lm.errors import DataError


class FolderWriter:
    """Writes one folder: everything goes to a neighbour, which takes the folder's name at the end.

    To be used by one process at a time, under the folder's lock.

    Args:
        folder: Where the token file is to stand; what stands there is replaced.
        tokenizer: Recorded in the manifest; its vocabulary decides the width of an id.
        identity: More entries for the manifest: its key and its source.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, identity: dict[str, Any]) -> None:
        self.folder, self.tokenizer, self.identity = folder, tokenizer, identity
        self.temporary = folder.with_name(f".{folder.name}.tmp")  # one per folder: the lock's owner builds alone
        self.dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
        self.tokens = self.documents = self.empty = self.bytes = 0

    def run(self, batches: Iterable[Encoded]) -> None:
        """Write all batches, then let the folder appear.

        Raises:
            DataError: not one document had text.
        """
        _remove(self.temporary)  # what a killed build left behind
        self.temporary.mkdir(parents=True)
        try:
            hashes = self._write(batches)
            if not self.documents:
                raise DataError(f"no document with text in {json.dumps(self.identity['source'])[:300]}")
            self._write_manifest(*hashes)
            _sync_folder(self.temporary)
            _remove(self.folder)
            self.temporary.rename(self.folder)
            _sync_folder(self.folder.parent)
        finally:
            _remove(self.temporary)

    def _write(self, batches: Iterable[Encoded]) -> tuple[str, str]:
        eot = self.tokenizer.eot_id
        tokens = _HashedFile(self.temporary / TOKENS, DTYPES[self.dtype])
        starts = _HashedFile(self.temporary / DOCUMENTS, "<i8")
        with tokens.file, starts.file:
            tokens.write(np.array([eot]))
            self.tokens = start = 1
            for batch in batches:
                tokens.write(batch.ids)
                after = self.tokens + np.flatnonzero(batch.ids == eot) + 1  # ordinary text never gives eot's id
                starts.write(np.concatenate([[start], after])[:-1])
                start = int(after[-1]) if len(after) else start
                self.tokens += len(batch.ids)
                self.documents += batch.documents
                self.empty += batch.empty_documents
                self.bytes += batch.text_bytes
            return tokens.finish(), starts.finish()

    def _write_manifest(self, tokens_sha256: str, documents_sha256: str) -> None:
        tokenizer = self.tokenizer
        manifest = {
            "format_version": FORMAT_VERSION,
            "dtype": self.dtype,
            "tokens": self.tokens,
            "target_tokens": self.tokens - 1,
            "documents": self.documents,
            "empty_documents": self.empty,
            "bytes": self.bytes,
            "sha256": tokens_sha256,
            "documents_sha256": documents_sha256,
            "tokenizer": {
                "name": tokenizer.name,
                "fingerprint": tokenizer.fingerprint,
                "vocab_size": tokenizer.vocab_size,
                "eot_id": tokenizer.eot_id,
            },
            "created_by": f"grouped-lm {_version()}",
            **self.identity,
        }
        with (self.temporary / MANIFEST).open("wb") as file:
            file.write(json.dumps(manifest, indent=2).encode() + b"\n")
            _sync(file)


class _HashedFile:
    """A file of numbers that is hashed on its way to the disk."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.file, self.dtype, self.digest = path.open("wb"), dtype, hashlib.sha256()

    def write(self, values: np.ndarray) -> None:
        content = values.astype(self.dtype).tobytes()
        self.digest.update(content)
        self.file.write(content)

    def finish(self) -> str:
        _sync(self.file)
        return self.digest.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _version() -> str:
    try:
        return metadata.version("grouped-lm")
    except metadata.PackageNotFoundError:
        return "0+unknown"
