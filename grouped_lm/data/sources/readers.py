"""Read documents from .txt, .jsonl and .parquet files as streams.

All readers strip the whitespace around a document, and turn the line ends CR LF and CR into LF.
"""

import codecs
import io
import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from grouped_lm.data.text import EOT_TEXT, Fragment, unix_line_ends, valid_unicode
from grouped_lm.errors import DataError

BLOCK_BYTES = 1 << 20
NUL_SHARE = 0.2
"""A .txt file with a larger share of NUL bytes at its start is refused. UTF-16 has half of them, in English text."""
FRAGMENT_CHARS = 1 << 20
"""A document longer than this is yielded in fragments of about this size."""

# GPT-2's pattern looks at no character before a piece, and no piece runs from a non-space into a space: tokens
# of the two sides of such a border are those of the whole. \S is Python's, narrower than Rust's.
_CUT = re.compile(r"\S(?=[ \n\r\t])")
_CUT_SEARCH_CHARS = 1 << 16
TEXT_FIELD = "data.text_field"
"""What a user sets to name the text column; some commands have an option of their own."""
_MAGIC = {
    b"\x1f\x8b": "a gzip file: unpack it with gunzip",
    b"PK\x03\x04": "a zip file: unpack it",
    b"BZh": "a bzip2 file: unpack it with bunzip2",
    b"\xfd7zXZ": "an xz file: unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "a zstd file: unpack it with unzstd",
    b"%PDF": "a PDF file: extract its text, for instance with pdftotext",
    codecs.BOM_UTF16_LE: "UTF-16 text: iconv -f UTF-16 -t UTF-8 converts it",
    codecs.BOM_UTF16_BE: "UTF-16 text: iconv -f UTF-16 -t UTF-8 converts it",
    b"PAR1": "a parquet file: rename it to .parquet",
}
"""First bytes of files that are often given as text, and what to do with them."""

log = logging.getLogger(__name__)


def read_file(path: Path, text_field: str, option: str = TEXT_FIELD) -> Iterator[Fragment]:
    """Yield the fragments of a .txt, .jsonl or .parquet file.

    Args:
        path: of the file.
        text_field: the column that holds the document.
        option: what the user sets to name another column.

    Raises:
        DataError: the file is empty, unreadable, not UTF-8, of another kind than its suffix says, or it lacks the text
            column.
    """
    suffix = path.suffix.lower()
    with reading(path):
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty: give a file with text")
        with path.open("rb") as file:
            start = file.read(8)
        for magic, kind in _MAGIC.items():
            if start.startswith(magic) and not (magic == b"PAR1" and suffix == ".parquet"):
                raise DataError(f"{path} is {kind}")
        if suffix == ".txt":
            yield from split_documents(decode_blocks(path))
        else:
            read = _parquet_documents if suffix == ".parquet" else _jsonl_documents
            yield from read(path, text_field, option)


def decode_blocks(path: Path) -> Iterator[str]:
    """Yield a UTF-8 file's text block by block, without a byte order mark and with LF as the only line end."""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    offset, begun = 0, False  # offset: bytes handed to the decoder before this block
    with path.open("rb") as file:
        while True:
            block = file.read(BLOCK_BYTES)
            pending = len(utf8.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise DataError(_not_utf8(path, offset - pending + error.start)) from error
            if not begun and text.count("\0") > NUL_SHARE * len(text):
                raise DataError(
                    f"{path} is mostly NUL bytes: is it UTF-16 or binary? iconv -f UTF-16LE -t UTF-8 converts the first"
                )
            if "\0" in text:
                warn_once(f"{path} has NUL bytes; they are read as characters of the text")
            if text:
                yield text if begun else text.removeprefix("\ufeff")
                begun = True
            if not block:
                break
            offset += len(block)
    if decoder.newlines not in (None, "\n"):
        warn_once(f"{path} has Windows line ends (CR LF or CR); they are read as LF")


def split_documents(chunks: Iterable[str], border: str | None = EOT_TEXT) -> Iterator[Fragment]:
    """Split a stream of text into fragments of documents.

    The text behind the last border is a document only if it is more than whitespace.

    Args:
        chunks: the text in pieces of any size.
        border: the text between two documents, on a line of its own or inside a line. None: all is one document.
    """
    pieces: list[str] = []  # the document so far, without a border; joined once, or a long one would take n * n steps
    size, begun = 0, False  # begun: part of the current document has been yielded
    for chunk in chunks:
        text = _take_end(pieces, len(border) - 1 if border else 0) + chunk  # a border may begin in the last chunk
        *ended, rest = text.split(border) if border else [text]
        for part in ended:
            document = "".join([*pieces, part])
            yield (document.rstrip() if begun else document.strip()), True
            pieces, begun = [], False
        pieces.append(rest)
        size = len(rest) if ended else size + len(chunk)
        if size > FRAGMENT_CHARS:
            size -= 0 if begun else _strip_start(pieces)
            end = _take_end(pieces, _CUT_SEARCH_CHARS)
            cut = max((m.end() for m in _CUT.finditer(end)), default=0)
            if cut:
                yield "".join([*pieces, end[:cut]]), False
                pieces, size, begun = [], len(end) - cut, True
            pieces.append(end[cut:])
    document = "".join(pieces)
    if begun or document.strip():
        yield (document.rstrip() if begun else document.strip()), True


def _take_end(pieces: list[str], count: int) -> str:
    """Remove the last `count` characters from the pieces of a text, and return them."""
    taken, size = [], 0
    while pieces and size < count:
        taken.append(pieces.pop())
        size += len(taken[-1])
    end = "".join(reversed(taken))
    border = max(0, size - count)
    if border:
        pieces.append(end[:border])
    return end[border:]


def _strip_start(pieces: list[str]) -> int:
    """Remove the whitespace at the start of the pieces of a text, and return how much that was."""
    removed = 0
    while pieces:
        rest = pieces[0].lstrip()
        removed += len(pieces[0]) - len(rest)
        if rest:
            pieces[0] = rest
            break
        del pieces[0]
    return removed


def _jsonl_documents(path: Path, text_field: str, option: str) -> Iterator[Fragment]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(_not_utf8(path, offset + error.start)) from error
            offset += len(line)
            if number == 1 and text.lstrip().startswith("["):
                raise DataError(
                    f"{path} is a JSON array; a .jsonl file has one object per line: "
                    f"jq -c '.[]' {path.name} > lines.jsonl converts it"
                )
            if text.strip():
                yield _json_text(text, text_field, f"{path}, line {number}", option), True


def _json_text(line: str, text_field: str, where: str, option: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}); a .jsonl file has one object per line") from error
    if not isinstance(row, dict):
        raise DataError(f'{where} must be an object such as {{"{text_field}": "..."}}, got {type(row).__name__}')
    if text_field not in row:
        raise DataError(missing_column(where, text_field, list(row), option))
    return document_text(row[text_field], f"{where}, column {text_field}", option=option)


def _parquet_documents(path: Path, text_field: str, option: str) -> Iterator[Fragment]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if text_field not in file.schema_arrow.names:
                raise DataError(missing_column(str(path), text_field, file.schema_arrow.names, option))
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    yield document_text(value, f"{path}, row {row}, column {text_field}", option=option), True
                    row += 1
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from error


def document_text(value: Any, where: str, strip: bool = True, option: str = TEXT_FIELD) -> str:
    """Return the text of one row, "" for a null. `where` is its file, row and column, for the error message.

    Raises:
        DataError: the value is neither text nor null.
    """
    if value is None:
        return ""
    if isinstance(value, bytes):
        raise DataError(f"{where} is binary; convert the column to text (UTF-8), or name another with {option}")
    if not isinstance(value, str):
        raise DataError(f"{where} must hold text, got {type(value).__name__}; {option} names the column")
    text = unix_line_ends(valid_unicode(value))
    return text.strip() if strip else text


def missing_column(where: str, text_field: str, columns: list[str], option: str = TEXT_FIELD) -> str:
    """Return the message for a text column that does not exist, with the columns that do."""
    return f"{where} has no column {text_field!r}, it has {', '.join(columns) or 'none'}; set {option}"


def _not_utf8(path: Path, offset: int) -> str:
    return f"{path} is not UTF-8 at byte {offset}; convert it, for instance with iconv"


@lru_cache
def warn_once(text: str) -> None:
    """Log a warning, each text once per process. Bytes of a file's name that are not UTF-8 become U+FFFD."""
    log.warning(valid_unicode(text))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError about a file into a `DataError` of one line."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
