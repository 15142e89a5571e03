"""Datasets of the Hugging Face hub: a split through `datasets`, or a text file out of the repository."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from grouped_lm.config import DataConfig
from grouped_lm.data.cache import cache_folder, expand_home
from grouped_lm.data.sources.readers import document_text, missing_column, split_documents
from grouped_lm.data.sources.text_files import TextSource
from grouped_lm.data.text import Fragment
from grouped_lm.errors import ConfigError, DataError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ROWS_PER_READ = 1000


@dataclass(kw_only=True, slots=True)
class HubConfig(DataConfig):
    """`data=tinystories`, `data=wikitext` and others: a dataset of the Hugging Face hub."""

    source: str = "hub"
    hub_id: str | None = None
    """The dataset, owner/name."""
    hub_config: str | None = None
    """Name of the dataset's configuration."""
    hub_revision: str | None = None
    """Commit, tag or branch. The manifest records the commit that it resolves to."""
    hub_train: str = "train"
    """A split, or a text file in the repository (`*.txt`)."""
    hub_valid: str = "validation"
    """The same for validation."""
    hub_join_rows: bool = False
    """Rows are lines of one long text, as in WikiText: join them without borders."""
    text_field: str = "text"
    """Column that holds the document."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        if not self.hub_id:
            raise ConfigError("data.hub_id must name a dataset (owner/name) when data.source=hub")


class HubSource:
    """One split of a dataset. If the split's name ends in .txt, that file of the repository."""

    def __init__(self, config: HubConfig, split: str) -> None:
        self.config = config
        self.part = config.hub_train if split == "train" else config.hub_valid
        self.is_file = self.part.endswith(".txt")
        self.unit = "bytes" if self.is_file else "documents"

    @property
    def total(self) -> int | None:
        """Return the bytes of the file or the rows of the split; None for joined rows, which are no documents."""
        if self.is_file:
            return self._text.total
        return None if self.config.hub_join_rows else len(self._rows)

    def describe(self) -> dict[str, Any]:
        """Return name, split and the commit of the revision; if there is no commit, the rows' fingerprint."""
        config = self.config
        described: dict[str, Any] = {"source": "hub", "id": config.hub_id, "part": self.part}
        if self.is_file:
            commit = _commit_in(self._file)
            content = None if commit else self._text.describe()["files"][0]["sha256"]
        else:
            described |= {"config": config.hub_config, "text_field": config.text_field}
            described["join_rows"] = config.hub_join_rows
            commit = self._rows_commit()
            content = None if commit else self._rows._fingerprint
        return {**described, "commit": commit, "fingerprint": content}

    def fragments(self) -> Iterator[Fragment]:
        """Yield the fragments of the file or of all rows."""
        if self.is_file:
            return self._text.fragments()
        if self.config.hub_join_rows:
            return split_documents(self._row_texts(strip=False), border=None)
        return ((text, True) for text in self._row_texts(strip=True))

    @cached_property
    def _file(self) -> Path:
        """The repository's text file, downloaded if it is not cached."""
        from huggingface_hub import hf_hub_download

        config = self.config
        local = expand_home(config.hub_id or "", "data.hub_id") / self.part
        if local.is_file():
            return local
        try:
            path = hf_hub_download(config.hub_id or "", self.part, repo_type="dataset", revision=config.hub_revision)
        except Exception as error:  # network, offline mode, no such file, gated, disk: one line for all
            raise self._unreachable(error) from error
        return Path(path)

    @cached_property
    def _text(self) -> TextSource:
        return TextSource([self._file], self.config.text_field, cache_folder(self.config))

    @cached_property
    def _rows(self) -> Any:
        """The split as a memory-mapped `datasets.Dataset`, checked for the text column."""
        import datasets

        config = self.config
        name = expand_home(config.hub_id or "", "data.hub_id")
        try:
            rows = datasets.load_dataset(
                str(name) if name.is_dir() else config.hub_id,
                config.hub_config,
                split=self.part,
                revision=config.hub_revision,
            )
        except Exception as error:  # as above; `datasets` raises a dozen types
            raise self._unreachable(error) from error
        if config.text_field not in rows.column_names:
            raise DataError(missing_column(f"{config.hub_id}, {self.part},", config.text_field, rows.column_names))
        return rows.select_columns([config.text_field])

    def _rows_commit(self) -> str | None:
        cached, asked = self._rows.cache_files, self.config.hub_revision or ""
        commit = _commit_in(Path(cached[0]["filename"])) if cached else None
        if commit and _COMMIT.fullmatch(asked) and commit != asked:  # offline, `datasets` takes any cached commit
            raise DataError(f"data.hub_revision={asked} is not cached, only {commit} is; go online once to fetch it")
        return commit

    def _row_texts(self, strip: bool) -> Iterator[str]:
        field, number = self.config.text_field, 0
        for rows in self._rows.iter(batch_size=_ROWS_PER_READ):
            for value in rows[field]:
                yield document_text(value, f"{self.config.hub_id}, row {number}, column {field}", strip)
                number += 1

    def _unreachable(self, error: Exception) -> DataError:
        from huggingface_hub.errors import LocalEntryNotFoundError

        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        mend = "go online once to fill the cache, or use data=text with data.train and data.valid, or data=tinytales"
        if isinstance(error, ValueError | FileNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            mend = "data.hub_id, hub_config, hub_train, hub_valid and hub_revision must name things that exist"
        given = f"data.hub_id={self.config.hub_id}, {self.part},"
        return DataError(f"{given} cannot be loaded ({reason.rstrip('.')}); {mend}")


def _commit_in(path: Path) -> str | None:
    """Return the commit in a path: both caches of Hugging Face name a folder after it."""
    return next((part for part in reversed(path.parts) if _COMMIT.fullmatch(part)), None)
