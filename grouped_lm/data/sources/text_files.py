"""The user's own text: .txt, .jsonl and .parquet files, folders, globs and lists of them."""

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from grouped_lm.config import DataConfig
from grouped_lm.data.cache import cache_folder, expand_home
from grouped_lm.data.sources.readers import TEXT_FIELD, read_file, reading, warn_once
from grouped_lm.data.text import Fragment
from grouped_lm.errors import ConfigError, DataError
from grouped_lm.system.files import read_json_dict, write_json

SUFFIXES = (".txt", ".jsonl", ".parquet")
REMEMBERED_BYTES = 64 << 20
"""The hash of a file of at least this size is kept in the cache. Smaller files are hashed every time."""


@dataclass(kw_only=True, slots=True)
class TextConfig(DataConfig):
    """`data=text`: own files."""

    source: str = "text"
    train: Any = None
    """A .txt, .jsonl or .parquet file, a folder, a glob, or a list of them."""
    valid: Any = None
    """The same for validation."""
    text_field: str = "text"
    """Column of .jsonl and .parquet that holds the document."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        for key in ("train", "valid"):
            value = getattr(self, key)
            paths = [value] if isinstance(value, str) else value
            is_list = isinstance(paths, list | tuple) and len(paths) > 0
            if not is_list or not all(isinstance(path, str) and path.strip() for path in paths):
                advice = "must be a file, folder, glob or list of them when data=text"
                raise ConfigError(f"data.{key} {advice}, got {value!r}")


class TextSource:
    """Files, read one after another.

    The hashes of large files are kept in `cache_dir`; None hashes them each time. `option` is what a user sets to name
    the column, for messages.
    """

    unit = "bytes"

    def __init__(
        self, paths: list[Path], text_field: str, cache_dir: Path | None = None, option: str = TEXT_FIELD
    ) -> None:
        self.paths, self.text_field, self.cache_dir, self.option = paths, text_field, cache_dir, option

    @classmethod
    def of_split(cls, config: TextConfig, split: str) -> "TextSource":
        """Return the source of the files that the config names for a split."""
        patterns = config.train if split == "train" else config.valid
        return cls(find_files(patterns, f"data.{split}"), config.text_field, cache_folder(config))

    @property
    def total(self) -> int | None:
        """Return the bytes of all files if all are .txt, else None: other files hold more than text."""
        return None if self._has_tables else sum(path.stat().st_size for path in self.paths)

    @property
    def _has_tables(self) -> bool:
        return any(path.suffix.lower() != ".txt" for path in self.paths)

    @cached_property
    def _stats(self) -> list[tuple[int, int]]:
        return [_stat(path) for path in self.paths]

    def describe(self) -> dict[str, Any]:
        """Return paths, sizes and hashes of the files, and the column that is read from them."""
        files = [
            {"path": str(path), "bytes": size, "sha256": remembered_sha256(path, self.cache_dir)}
            for path, (size, _) in zip(self.paths, self._stats, strict=True)
        ]
        return {"source": "text", "files": files, "text_field": self.text_field if self._has_tables else None}

    def fragments(self) -> Iterator[Fragment]:
        """Yield the fragments of all files in order.

        Raises:
            DataError: a file cannot be read, or it changed while it was read.
        """
        for path, before in zip(self.paths, self._stats, strict=True):
            yield from read_file(path, self.text_field, self.option)
            if _stat(path) != before:  # else the manifest would describe a text that was never read
                raise DataError(f"{path} changed while it was read; run again when it is complete")


def find_files(patterns: str | Iterable[str], key: str = "data.train") -> list[Path]:
    """Return the files that paths, folders and globs name, absolute, each pattern's files sorted, no file twice.

    Raises:
        DataError: a pattern without files, or a file whose suffix is not .txt, .jsonl or .parquet.
    """
    files = [path for pattern in _as_list(patterns) for path in _matches(pattern, key)]
    for path in files:
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{key}: {path} must end in one of {', '.join(SUFFIXES)}")
    once: dict[Path, Path] = {}
    for path in files:
        once.setdefault(path.resolve(), path)
    return list(once.values())


def _as_list(patterns: str | Iterable[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _matches(pattern: str, key: str) -> list[Path]:
    path = expand_home(pattern, key)
    with reading(path):
        if path.is_dir():
            files = _files_below(path)
            problem = f"is a folder without {', '.join(SUFFIXES)} files"
        elif path.is_file():
            files, problem = [path], ""
        elif path.exists():
            files, problem = [], "is a pipe or a device, which cannot be read twice; write its text into a file"
        else:
            files = _glob(_escape_folder(path)) or _glob(str(path))
            problem = "matches no file" if glob.has_magic(pattern) else "does not exist"
    if not files:
        raise DataError(f"{key}: {pattern} {problem}; give a file, folder, glob or a list of them")
    return [p.absolute() for p in files]


def _files_below(folder: Path) -> list[Path]:
    """Return the text files of a folder and its subfolders, sorted, without hidden ones.

    Raises:
        DataError: a subfolder cannot be read: its texts would be missing in silence.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    files = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]  # editors keep old versions there
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            with reading(path):  # a folder whose names may be listed, but not looked at
                if path.suffix.lower() in SUFFIXES and path.is_file():
                    files.append(path)
    return sorted(files)


def _glob(pattern: str) -> list[Path]:
    return sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())  # noqa: PTH207


def _escape_folder(path: Path) -> str:
    """Return the glob `path` with its existing folder taken literally: brackets in a folder's name are no set."""
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    return str(Path(glob.escape(str(folder))) / path.relative_to(folder))


def check_splits_apart(config: DataConfig) -> None:
    """Refuse a file of a folder or glob that both splits of `data=text` would read; warn of a file that both name.

    Raises:
        ConfigError: there is such a file.
        DataError: a pattern without files.
    """
    if not isinstance(config, TextConfig):
        return
    found = [{path.resolve() for path in find_files(getattr(config, key), f"data.{key}")} for key in ("train", "valid")]
    named = [_named(patterns) for patterns in (config.train, config.valid)]
    for path in sorted(found[0] & found[1]):
        if path not in named[0] & named[1]:
            raise ConfigError(
                f"{path} is in data.train={config.train} and in data.valid={config.valid}: move it out of the folder, "
                "or name the files of each"
            )
        warn_once(f"{path} is both data.train and data.valid: the validation loss is that of text trained on")


def _named(patterns: str | Iterable[str]) -> set[Path]:
    """Return the files that are named one by one, not by a folder or glob."""
    paths = [expand_home(pattern, "data.train") for pattern in _as_list(patterns)]
    return {path.resolve() for path in paths if path.is_file()}


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content."""
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path, cache_dir: Path | None) -> str:
    """Return `file_sha256`. For a large file it is kept in the cache while the file's size and times do not change.

    Every process of every run needs the hash, and to read 40 GB takes minutes.
    """
    with reading(path):
        stat = path.stat()
    if cache_dir is None or stat.st_size < REMEMBERED_BYTES:
        return file_sha256(path)
    entry = {"path": str(path), "stamp": [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]}
    cached = cache_dir / "hashes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    known = read_json_dict(cached) or {}
    sha256 = known.pop("sha256", None)
    if known == entry and isinstance(sha256, str):
        return sha256
    sha256 = file_sha256(path)
    with suppress(OSError):  # then the next process computes it again
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_json(cached, entry | {"sha256": sha256})
    return sha256


def _stat(path: Path) -> tuple[int, int]:
    with reading(path):
        stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
