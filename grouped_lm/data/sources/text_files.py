"""The reader's own text: .txt, .jsonl and .parquet files, folders, globs and lists of them, read as streams."""

import codecs
import contextlib
import glob
import hashlib
import json
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from grouped_lm.config import DataConfig
from grouped_lm.data.tokenizers.base import EOT_TEXT, Fragment, valid_unicode
from grouped_lm.errors import ConfigError, DataError

SUFFIXES = (".txt", ".jsonl", ".parquet")
BLOCK_BYTES = 1 << 20
REMEMBERED_BYTES = 64 << 20
"""Files from here on are hashed once, as long as nobody touches them; smaller ones every time."""
FRAGMENT_CHARS = 1 << 20
"""A document without end is passed on in pieces of about this size."""

# GPT-2's pattern looks at no character before a piece, and no piece runs from a non-space into a space: tokens
# of the two sides of such a border are those of the whole. \S is Python's, narrower than Rust's.
_CUT = re.compile(r"\S(?=[ \n\r\t])")
_CUT_SEARCH_CHARS = 1 << 16

log = logging.getLogger(__name__)


class TextSource:
    """Files, read one after another.

    Args:
        paths: Of the files.
        text_field: Column of tables that holds the document.
        cache_dir: Where the hashes of large files are remembered; None hashes them each time.
    """

    unit = "bytes"

    def __init__(self, paths: list[Path], text_field: str, cache_dir: Path | None = None) -> None:
        self.paths, self.text_field, self.cache_dir = paths, text_field, cache_dir

    @classmethod
    def of_split(cls, config: DataConfig, split: str) -> "TextSource":
        """Find the files that the config names for a split."""
        patterns = config.train if split == "train" else config.valid
        return cls(find_files(patterns, f"data.{split}"), config.text_field, Path(config.cache_dir).expanduser())

    @property
    def total(self) -> int | None:
        """Bytes of all files, where text is all that they hold."""
        if any(path.suffix.lower() != ".txt" for path in self.paths):
            return None
        return sum(path.stat().st_size for path in self.paths)

    @cached_property
    def _stats(self) -> list[tuple[int, int]]:
        return [_stat(path) for path in self.paths]

    def describe(self) -> dict[str, Any]:
        """Paths, sizes and hashes of the files, and the column that is read from them."""
        sizes = [size for size, _ in self._stats]
        files = [
            {"path": str(path), "bytes": size, "sha256": remembered_sha256(path, self.cache_dir)}
            for path, size in zip(self.paths, sizes, strict=True)
        ]
        tables = any(path.suffix.lower() != ".txt" for path in self.paths)
        return {"source": "text", "files": files, "text_field": self.text_field if tables else None}

    def fragments(self) -> Iterator[Fragment]:
        for path, before in zip(self.paths, self._stats, strict=True):
            yield from read_file(path, self.text_field)
            if _stat(path) != before:  # else the manifest would describe a text that was never read
                raise DataError(f"{path} changed while it was read; run again when it is complete")


def find_files(patterns: str | Iterable[str], key: str = "data.train") -> list[Path]:
    """List the files that paths, folders and globs stand for, absolute, each pattern's files sorted, no file twice.

    Raises:
        DataError: nothing there, or a file whose suffix is not .txt, .jsonl or .parquet.
    """
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            kind = f"is a folder without {', '.join(SUFFIXES)} files"
        elif path.exists():
            files, kind = [path], ""
        else:
            files = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())  # noqa: PTH207
            kind = "matches no file" if glob.has_magic(pattern) else "does not exist"
        if not files:
            raise DataError(f"{key}: {pattern} {kind}; give a file, folder, glob or a list of them")
        found += [p.absolute() for p in files]
    for path in found:
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{key}: {path} must end in one of {', '.join(SUFFIXES)}")
    once: dict[Path, Path] = {}
    for path in found:
        once.setdefault(path.resolve(), path)
    return list(once.values())


def check_splits_apart(config: DataConfig) -> None:
    """Refuse files of folders or globs that both splits would read; warn of those that both name one by one.

    Raises:
        ConfigError: there is one.
        DataError: see `find_files`.
    """
    if config.source != "text":
        return
    found = [{path.resolve() for path in find_files(getattr(config, key), f"data.{key}")} for key in ("train", "valid")]
    named = [_named(patterns) for patterns in (config.train, config.valid)]
    for path in sorted(found[0] & found[1]):
        if path not in named[0] & named[1]:
            raise ConfigError(
                f"{path} is in data.train={config.train} and in data.valid={config.valid}: move it out of the folder, "
                "or name the files of each"
            )
        _warn_once(f"{path} is both data.train and data.valid: the validation loss is that of text trained on")


def _named(patterns: str | Iterable[str]) -> set[Path]:
    """Return the files that are named one by one, not by a folder or glob."""
    paths = [Path(pattern).expanduser() for pattern in ([patterns] if isinstance(patterns, str) else patterns)]
    return {path.resolve() for path in paths if path.is_file()}


@lru_cache
def _warn_once(text: str) -> None:
    log.warning(text)


def file_sha256(path: Path) -> str:
    """Hash a file's content in blocks."""
    with _reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path, cache_dir: Path | None) -> str:
    """Return `file_sha256`, for a large file from memory while its size and its times are those of then.

    Every process of every run asks for it, and 40 GB take minutes to read.
    """
    with _reading(path):
        stat = path.stat()
    if cache_dir is None or stat.st_size < REMEMBERED_BYTES:
        return file_sha256(path)
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    memory = cache_dir / "hashes" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memory.read_bytes())
        if known["stamp"] == stamp and known["path"] == str(path):
            return known["sha256"]
    found = file_sha256(path)
    with contextlib.suppress(OSError):  # it is asked for again, then
        memory.parent.mkdir(parents=True, exist_ok=True)
        written = memory.with_suffix(f".{secrets.token_hex(8)}")  # machines share caches
        written.write_text(json.dumps({"path": str(path), "stamp": stamp, "sha256": found}), encoding="utf-8")
        written.replace(memory)
    return found


def read_file(path: Path, text_field: str) -> Iterator[Fragment]:
    """Yield the fragments of one file, by its suffix.

    Raises:
        DataError: empty, unreadable, not UTF-8, not what its suffix says, or without the text column.
    """
    readers: dict[str, Callable[[], Iterator[Fragment]]] = {
        ".txt": lambda: split_documents(decode_blocks(path)),
        ".jsonl": lambda: _jsonl_documents(path, text_field),
        ".parquet": lambda: _parquet_documents(path, text_field),
    }
    with _reading(path):
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty")
        yield from readers[path.suffix.lower()]()


def decode_blocks(path: Path) -> Iterator[str]:
    """Yield a UTF-8 file's text block by block, without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, begun = 0, False  # offset: bytes handed to the decoder before this block
    with path.open("rb") as file:
        while True:
            block = file.read(BLOCK_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise DataError(_not_utf8(path, offset - pending + error.start)) from error
            if text:
                yield text if begun else text.removeprefix("\ufeff")
                begun = True
            if not block:
                return
            offset += len(block)


def split_documents(chunks: Iterable[str], border: str | None = EOT_TEXT) -> Iterator[Fragment]:
    """Split a stream of text at its borders, alone on a line or inline; None joins all to one document.

    What follows the last border is a document only if it is more than whitespace.
    """
    rest, begun = "", False  # begun: part of the current document has been passed on
    for chunk in chunks:
        parts = (rest + chunk).split(border) if border else [rest + chunk]
        for part in parts[:-1]:
            yield (part.rstrip() if begun else part.strip()), True
            begun = False
        rest = parts[-1]
        if len(rest) > FRAGMENT_CHARS:
            rest = rest if begun else rest.lstrip()
            cut = max((m.end() for m in _CUT.finditer(rest, max(0, len(rest) - _CUT_SEARCH_CHARS))), default=0)
            if cut:
                yield rest[:cut], False
                rest, begun = rest[cut:], True
    if begun or rest.strip():
        yield (rest.rstrip() if begun else rest.strip()), True


def _jsonl_documents(path: Path, text_field: str) -> Iterator[Fragment]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(_not_utf8(path, offset + error.start)) from error
            offset += len(line)
            if text.strip():
                yield _json_text(text, text_field, f"{path}, line {number}"), True


def _json_text(line: str, text_field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f'{where} must be an object such as {{"{text_field}": "..."}}, got {type(row).__name__}')
    if text_field not in row:
        raise DataError(missing_column(where, text_field, list(row)))
    return document_text(row[text_field], f"{where}, column {text_field}")


def _parquet_documents(path: Path, text_field: str) -> Iterator[Fragment]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if text_field not in file.schema_arrow.names:
                raise DataError(missing_column(str(path), text_field, file.schema_arrow.names))
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    yield document_text(value, f"{path}, row {row}, column {text_field}"), True
                    row += 1
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error


def document_text(value: Any, where: str, strip: bool = True) -> str:
    """Give a row's text, stripped if asked for; a null counts as an empty document.

    Raises:
        DataError: the value is neither text nor null.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where} must hold text, got {type(value).__name__}; data.text_field names the column")
    text = valid_unicode(value)
    return text.strip() if strip else text


def missing_column(where: str, text_field: str, columns: list[str]) -> str:
    """Say that a column is not there, and which are."""
    return f"{where} has no column {text_field!r}, it has {', '.join(columns) or 'none'}; set data.text_field"


def _not_utf8(path: Path, offset: int) -> str:
    return f"{path} is not UTF-8 at byte {offset}; convert it, for instance with iconv"


def _stat(path: Path) -> tuple[int, int]:
    with _reading(path):
        stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


class _reading:
    """Turn an OSError about a file into one line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if isinstance(error, OSError):
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}") from error
