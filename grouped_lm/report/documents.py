"""Losses of leaderboard rows on each document of the report text, in a JSON file beside the CSV.

With them the intervals over documents can be computed again. Letters: S documents.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from grouped_lm.errors import DataError, disk_errors
from grouped_lm.evaluate.documents import DocumentLosses
from grouped_lm.evaluate.significance import compare_checkpoints
from grouped_lm.system.files import read_json_dict, write_text

Key = tuple[str, ...]
"""The values of `leaderboard.KEY` of a row."""
DIGITS = 1
"""Decimals of the nats of a document, which has some hundreds: 0.0003 nats per token."""


def documents_path(path: Path) -> Path:
    """Return the file beside the CSV of a leaderboard."""
    return path.with_name(f"{path.stem}-documents.json")


def merge_documents(path: Path, losses: dict[Key, DocumentLosses]) -> None:
    """Add the losses of rows to the file beside the CSV at `path`. A text is kept once for each tokenizer.

    Raises:
        DataError: the file is damaged.
        DiskError: it cannot be written.
    """
    if not losses:
        return
    with disk_errors(path.parent), FileLock(path.with_suffix(".lock")):
        read_documents(path)  # raises for a damaged file, which would else be replaced
        values = read_json_dict(documents_path(path)) or {"texts": {}, "rows": {}}
        for key, own in losses.items():
            text = {"tokens": own.tokens.tolist(), "text_bytes": own.text_bytes.tolist()}
            name = hashlib.sha256(str(text).encode()).hexdigest()[:12]
            values["texts"][name] = text
            values["rows"]["|".join(key)] = {"text": name, "nats": np.round(own.nats, DIGITS).tolist()}
        parts = (f'"{part}": {{\n{_lines(values[part])}\n}}' for part in ("texts", "rows"))
        write_text(documents_path(path), "{" + ",\n".join(parts) + "}\n")


def _lines(values: dict[str, Any]) -> str:
    """Return the entries of a JSON object, one on each line, sorted."""
    return ",\n".join(f"{json.dumps(key)}: {json.dumps(values[key], separators=(',', ':'))}" for key in sorted(values))


def read_documents(path: Path) -> dict[Key, DocumentLosses]:
    """Return the losses of the rows of the CSV at `path`, none if there is no file.

    Raises:
        DataError: the file is damaged.
    """
    file = documents_path(path)
    if not file.exists():
        return {}
    values = read_json_dict(file)
    if values is None:
        raise DataError(f"{file} is damaged: it is no JSON object. Delete it and run gvc leaderboard again")
    try:
        return {
            tuple(key.split("|")): DocumentLosses(
                np.array(row["nats"]), *(np.array(values["texts"][row["text"]][n]) for n in ("tokens", "text_bytes"))
            )
            for key, row in values["rows"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is damaged: {error!r}") from error


def document_interval(
    first: Sequence[DocumentLosses], second: Sequence[DocumentLosses], unit: str
) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval over documents of second minus first, each a mean over seeds.

    `unit` is "loss_nats" (per token) or "bits_per_byte". None where there are no losses, or of different documents.
    """
    texts = [losses.text_bytes for losses in (*first, *second)]
    if not first or not second or any(not np.array_equal(text, texts[0]) for text in texts) or len(texts[0]) < 2:
        return None
    sizes = first[0].tokens if unit == "loss_nats" else texts[0] * math.log(2)
    base, own = (np.mean([losses.nats for losses in side], axis=0) for side in (first, second))
    compared = compare_checkpoints(base, own, sizes)
    return None if compared.low is None or compared.high is None else (compared.low, compared.high)
