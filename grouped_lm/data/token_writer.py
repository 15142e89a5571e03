"""Write a token file so that it is complete or absent, and so that a stopped build can continue.

Ids are written shard by shard. When a shard is on the disk, a journal records how far the build is. The next build of
the same token file compares the files with the journal, cuts off the bytes that came later, and continues.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from grouped_lm.data import encode
from grouped_lm.data.text import Source
from grouped_lm.data.token_file import DOCUMENTS, DTYPES, FORMAT_VERSION, MANIFEST, TOKENS
from grouped_lm.data.tokenizers.base import Tokenizer
from grouped_lm.errors import DataError

JOURNAL = "journal.json"
SHARD_BYTES = 64 << 20
"""Ids between two entries of the journal: a second's work of a fast machine, ten of a slow one."""
_READ_BYTES = 1 << 22

OnProgress = Callable[[int, int | None], None]
"""A function of the units done (documents or bytes, `Source.unit`) and of all units, or None if that is not known."""

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a build is. The journal keeps it."""

    batches: int = 0
    """Batches of `encode_fragments` that are written."""
    tokens: int = 0
    documents: int = 0
    empty: int = 0
    bytes: int = 0
    """UTF-8 bytes of text."""
    start: int = 1
    """Index of the first token of the current document."""


class FolderWriter:
    """Writes one folder: all files go to a folder beside it, which is renamed at the end. The caller holds its lock.

    Args:
        folder: The folder of the token file. An old one is replaced.
        tokenizer: Recorded in the manifest. Its vocabulary decides the width of an id.
        identity: More entries for the manifest: its key and its source.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, identity: dict[str, Any]) -> None:
        self.folder, self.tokenizer, self.identity = folder, tokenizer, identity
        self.temporary = folder.with_name(f".{folder.name}.tmp")  # one per folder: the lock's owner builds alone
        self.journal = self.temporary / JOURNAL
        self.dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
        self.done = Progress()

    def run(self, source: Source, workers: int | None, progress: OnProgress | None) -> None:
        """Write all documents of a source with so many threads, then rename the folder.

        Raises:
            DataError: no document had text.
        """
        try:
            hashes = self._write(source, workers, progress)
            if not self.done.documents:
                raise DataError(f"no document with text in {describe_briefly(self.identity['source'])}")
            self._write_manifest(*hashes)
            _sync_folder(self.temporary)
            _remove(self.folder)
            self.temporary.rename(self.folder)
            _sync_folder(self.folder.parent)
            (self.folder / JOURNAL).unlink(missing_ok=True)  # last: a killed build needs it to continue
        except DataError:
            _remove(self.temporary)
            raise
        except BaseException:
            if not self.journal.exists():  # nothing is worth keeping yet
                _remove(self.temporary)
            raise

    def _write(self, source: Source, workers: int | None, progress: OnProgress | None) -> tuple[str, str]:
        eot, total = self.tokenizer.eot_id, source.total
        tokens, starts = self._open()
        with tokens.file, starts.file:
            done, marked = self.done, tokens.size
            if not done.tokens:
                tokens.write(np.array([eot]))
                done.tokens = 1
            for batch in encode.encode_fragments(source.fragments(), self.tokenizer, workers, skip=done.batches):
                tokens.write(batch.ids)
                after = done.tokens + np.flatnonzero(batch.ids == eot) + 1  # ordinary text never gives eot's id
                starts.write(np.concatenate([[done.start], after])[:-1])
                done.start = int(after[-1]) if len(after) else done.start
                done.batches += 1
                done.tokens += len(batch.ids)
                done.documents += batch.documents
                done.empty += batch.empty_documents
                done.bytes += batch.text_bytes
                if tokens.size - marked >= SHARD_BYTES:
                    self._mark(tokens, starts)
                    marked = tokens.size
                if progress:
                    units = done.bytes if source.unit == "bytes" and total else done.documents + done.empty
                    progress(units if total is None else min(units, total), total)
            if progress and total is not None:
                progress(total, total)  # borders and whitespace are bytes of the file, but of no document
            return tokens.finish(), starts.finish()

    def _open(self) -> "tuple[_HashedFile, _HashedFile]":
        """Return both files, opened at the end of the journal; or empty, if there is no journal that fits them."""
        try:
            entry = json.loads(self.journal.read_bytes())
            if entry["key"] != self.identity["key"] or entry["batch_chars"] != encode.BATCH_CHARS:
                raise ValueError("it belongs to another build")
            files = self._files(entry["files"])
            self.done = Progress(**entry["done"])
            log.info("continuing %s after %s tokens", self.folder, f"{self.done.tokens:,}")
            return files
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("building %s from the start: files of a stopped build are unusable (%s)", self.folder, error)
        _remove(self.temporary)
        self.temporary.mkdir(parents=True)
        return self._files({TOKENS: (), DOCUMENTS: ()})

    def _files(self, kept: dict[str, Any]) -> "tuple[_HashedFile, _HashedFile]":
        return (
            _HashedFile(self.temporary / TOKENS, DTYPES[self.dtype], *kept[TOKENS]),
            _HashedFile(self.temporary / DOCUMENTS, "<i8", *kept[DOCUMENTS]),
        )

    def _mark(self, tokens: "_HashedFile", starts: "_HashedFile") -> None:
        """Record how far the build is, after the files are on the disk."""
        entry = {"key": self.identity["key"], "batch_chars": encode.BATCH_CHARS, "done": asdict(self.done)}
        entry["files"] = {TOKENS: [tokens.size, tokens.finish()], DOCUMENTS: [starts.size, starts.finish()]}
        written = self.journal.with_suffix(".new")
        _write_synced(written, json.dumps(entry))
        written.replace(self.journal)
        _sync_folder(self.temporary)

    def _write_manifest(self, tokens_sha256: str, documents_sha256: str) -> None:
        parts = ("name", "fingerprint", "vocab_size", "eot_id")
        manifest = {
            "format_version": FORMAT_VERSION,
            "dtype": self.dtype,
            "tokens": self.done.tokens,
            "target_tokens": self.done.tokens - 1,
            "documents": self.done.documents,
            "empty_documents": self.done.empty,
            "bytes": self.done.bytes,
            "sha256": tokens_sha256,
            "documents_sha256": documents_sha256,
            "tokenizer": {part: getattr(self.tokenizer, part) for part in parts},
            "created_by": f"grouped-lm {_version()}",
            **self.identity,
        }
        _write_synced(self.temporary / MANIFEST, json.dumps(manifest, indent=2) + "\n")


class _HashedFile:
    """A file of numbers that is hashed while it is written.

    The first `size` bytes are kept, and what follows is cut off. A ValueError says that `sha256` is not their hash.
    """

    def __init__(self, path: Path, dtype: str, size: int = 0, sha256: str | None = None) -> None:
        self.dtype, self.size, self.digest = dtype, size, hashlib.sha256()
        self.file: BinaryIO = path.open("r+b" if sha256 else "wb")
        if sha256 is None:
            return
        left = size
        while left and (piece := self.file.read(min(left, _READ_BYTES))):
            self.digest.update(piece)
            left -= len(piece)
        if left or self.digest.hexdigest() != sha256:
            self.file.close()
            raise ValueError(f"{path.name} is not what was written")
        self.file.truncate(size)

    def write(self, values: np.ndarray) -> None:
        """Append numbers."""
        content = values.astype(self.dtype).tobytes()
        self.digest.update(content)
        self.file.write(content)
        self.size += len(content)

    def finish(self) -> str:
        """Flush the file to the disk, and return the hash of its content."""
        _sync(self.file)
        return self.digest.hexdigest()


def describe_briefly(source: dict[str, Any]) -> str:
    """Return the files, or the name, of a described source, for an error message."""
    paths = [file["path"] for file in source.get("files", [])]
    if not paths:
        return " ".join(str(source[key]) for key in ("source", "id", "part", "split") if key in source)
    others = f" and {len(paths) - 3} other files" if len(paths) > 3 else ""
    return f"{', '.join(paths[:3])}{others}: give a text with more than blank lines"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_synced(path: Path, text: str) -> None:
    with path.open("wb") as file:
        file.write(text.encode())
        _sync(file)


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
