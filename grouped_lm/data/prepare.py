"""From a source to token files in the cache: built once, reused while nothing changed, never half there."""

import contextlib
import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from grouped_lm.config import DataConfig, TokenizerConfig
from grouped_lm.data.encode import Encoded, encode_fragments
from grouped_lm.data.sources import Source, open_source
from grouped_lm.data.sources.text_files import check_splits_apart
from grouped_lm.data.token_file import FORMAT_VERSION, TokenFile, read_token_file
from grouped_lm.data.token_writer import FolderWriter
from grouped_lm.data.tokenizers.base import Tokenizer, build_tokenizer
from grouped_lm.errors import DiskError, disk_errors

Progress = Callable[[int, int | None], None]
"""Called with what is done and what there is in all (documents or bytes, see `Source.unit`), or None."""

STALE_S = 7 * 24 * 3600
"""A build that goes on writes into its folder every few seconds; a stopped one is somebody's to go on with."""

CACHE_ADVICE = "data.cache_dir names another place"

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Corpus:
    """Both splits, prepared."""

    train: TokenFile
    valid: TokenFile


def prepare_data(
    data: DataConfig, tokenizer: TokenizerConfig, progress: Progress | None = None, workers: int | None = None
) -> Corpus:
    """Prepare both splits; see `prepare_split`, and `check_splits_apart` for what is refused before."""
    check_splits_apart(data)
    train, valid = (prepare_split(data, tokenizer, split, progress, workers) for split in ("train", "valid"))
    return Corpus(train=train, valid=valid)


def prepare_split(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    split: str,
    progress: Progress | None = None,
    workers: int | None = None,
) -> TokenFile:
    """Open a split's token file, and build it first where it is missing, outdated or damaged.

    Several processes may ask at once: one builds, the others wait for it. A build that was killed or stopped goes on
    after the last shard that it had finished, and ends as one that was never stopped.

    Args:
        data: The source, and `cache_dir` for the result.
        tokenizer: Which tokenizer.
        split: "train" or "valid".
        progress: Called after every batch while building; not called when nothing is to be built.
        workers: Threads, default one per usable CPU; the result does not depend on it.

    Raises:
        DataError: the source is missing or unreadable, or has no document with text.
        DiskError: the cache cannot be written.
    """
    source, encoder = open_source(data, split), build_tokenizer(tokenizer, data)
    description = source.describe()
    key = _key(description, encoder)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", data.name) or "data"
    folder = Path(data.cache_dir).expanduser() / f"{slug}-{split}-{key[:16]}"
    found, reason = read_token_file(folder, key)
    if found is not None:
        return found
    with disk_errors(folder, CACHE_ADVICE), build_lock(folder):
        found, reason = read_token_file(folder, key)  # another process may have been quicker
        if found is None:
            if folder.exists():
                log.warning("rebuilding %s: %s", folder, reason)
            remove_stale(folder.parent, f"{slug}-{split}")
            writer = FolderWriter(folder, encoder, {"key": key, "source": description})

            def batches(skip: int, done: int) -> Iterator[Encoded]:
                return _watched(encode_fragments(source.fragments(), encoder, workers, skip), source, progress, done)

            writer.run(batches, unit=source.unit if source.total else "documents")
            found, reason = read_token_file(folder, key)
    if found is None:
        raise DiskError(f"{folder} was written but cannot be read back: {reason}")
    return found


def _key(description: dict[str, Any], tokenizer: Tokenizer) -> str:
    parts = {"format": FORMAT_VERSION, "source": description, "tokenizer": tokenizer.fingerprint}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _watched(batches: Iterable[Encoded], source: Source, progress: Progress | None, done: int) -> Iterator[Encoded]:
    total = source.total if progress else None
    for batch in batches:
        yield batch
        if progress:
            done += batch.text_bytes if source.unit == "bytes" and total else batch.documents + batch.empty_documents
            progress(done if total is None else min(done, total), total)
    if progress and total is not None:
        progress(total, total)  # borders and whitespace are bytes of the file that no document has


def remove_stale(cache: Path, name: str) -> None:
    """Remove what stopped builds of that name have left and nobody has gone on with for `STALE_S`: of other text."""
    for temporary in cache.glob(f".{name}-*.tmp"):
        lock = FileLock(cache / f"{temporary.stem}.lock")
        with contextlib.suppress(Timeout, FileNotFoundError), lock.acquire(timeout=0):
            if time.time() - temporary.stat().st_mtime > STALE_S:
                shutil.rmtree(temporary)


@contextlib.contextmanager
def build_lock(folder: Path) -> Iterator[None]:
    """Hold the lock beside what is to be built; waits for another process that builds it, and says so."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that prepares %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
