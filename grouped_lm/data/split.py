"""Two halves of a text, document by document: one to choose by, one to report on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from grouped_lm.data.sources import join_fragments
from grouped_lm.data.sources.text_files import TextSource, find_files
from grouped_lm.data.text import EOT_TEXT
from grouped_lm.errors import DataError, disk_errors
from grouped_lm.system.files import write_bytes


def halve(text: str, out: Path, text_field: str = "text") -> list[tuple[Path, int]]:
    """Write every other document of `text` into `out`/NAME-a.txt, from the first on, and the rest into NAME-b.txt.

    `text` is a file, folder or glob; NAME is its last part without a suffix. `text_field` is the column of .jsonl and
    .parquet. Empty documents are left out. The text is held in memory.

    Returns:
        Both files, each with the number of its documents.

    Raises:
        DataError: nothing there or unreadable, fewer than two documents, a border of .txt inside a document, or a file
            of that name with another content.
        DiskError: `out` cannot be written.
    """
    source = TextSource(find_files(text, "TEXT"), text_field, option="--text-field")
    documents = [document for document in join_fragments(source.fragments()) if document]
    if len(documents) < 2:
        raise DataError(f"{text} has {len(documents)} documents; two halves need two or more")
    name = Path(text).stem.strip("*") or "text"
    parts = {out / f"{name}-a.txt": documents[::2], out / f"{name}-b.txt": documents[1::2]}
    write_documents(parts)
    return [(path, len(own)) for path, own in parts.items()]


def write_documents(parts: Mapping[Path, Sequence[str]]) -> None:
    """Write the documents of each .txt file, as `data=text` reads them; all files or none.

    Raises:
        DataError: a border of .txt inside a document, or a file of that name with another content.
        DiskError: a file cannot be written.
    """
    for path, documents in parts.items():
        if any(EOT_TEXT in document for document in documents):
            raise DataError(f"{path}: a document has {EOT_TEXT} inside, and would be two in a .txt")
    texts = {path: "".join(f"{text}\n{EOT_TEXT}\n" for text in own).encode() for path, own in parts.items()}
    for path, whole in texts.items():
        if path.exists() and (not path.is_file() or path.read_bytes() != whole):
            raise DataError(f"{path} is there and holds something else: give another --out, or remove it")
    for path, whole in texts.items():
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, whole)
