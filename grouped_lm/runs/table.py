"""Runs as rows: what their folders say about each, finished or not. Reads only; never takes a run's lock."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from grouped_lm.config import tokenizer_label
from grouped_lm.data.tokenizers.base import VOCAB_SIZES
from grouped_lm.errors import RunFolderError
from grouped_lm.grouping import default_group_size
from grouped_lm.runs.folder import COMPLETE, RunFolder
from grouped_lm.runs.identity import first_identity
from grouped_lm.runs.query import COLUMNS, PARETO_KEYS, text_of
from grouped_lm.system.console import peak_memory_gib

Row = dict[str, Any]

RUNNING, UNFINISHED, DAMAGED = "running", "unfinished", "damaged"
PARTS = ("model", "grouping", "data", "tokenizer", "optim", "train")
"""Parts of a config whose settings a row carries under the names that commands use."""
COSTS = {
    "model.attention": "fused",
    "model.activation_checkpointing": False,
    "train.cuda_graphs": False,
    "train.devices": 1,
    "train.nodes": 1,
    "train.strategy": "ddp",
    "train.vocab_parallel": False,
}
"""Settings that change a run's speed and memory and not what it computes, and what they were before they were there:
of that value they are left out of a row, as `identity.first_identity` leaves out others."""
PATHS = ("data.train", "data.valid", "tokenizer.file")
"""Settings of which a row has the last part alone: tables are shown to others."""
ALIKE = (
    *("model", "trainer/tokens", "device", "model.body", "model.n_layer", "model.n_head", "model.n_embd"),
    *("model.block_size", "model.window_size", "model.dropout", "train.micro_batch_size", "train.grad_accum_steps"),
    *("train.dtype", "train.compile", "train.threads", *COSTS),
)
"""What runs on one text must share for their speed and memory to compare."""
NUMBERS = {key for _, key, form in COLUMNS if form != "{}"} | {key for key, _ in PARETO_KEYS}
WORDS = {key for _, key, form in COLUMNS if form == "{}"} | {"data", "tokenizer", "device", "reason", "trainer/tokens"}
"""What tables compute with, and what they compare."""
TAIL_BYTES = 65_536
"""How much of the end of metrics.jsonl is read: over a hundred rows, whatever the file's length."""


def find_runs(folders: list[Path]) -> list[Path]:
    """Return the run folders among and below `folders`, numbers in their names in order of size.

    Raises:
        RunFolderError: a folder that does not exist, or no run anywhere.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise RunFolderError(f"{folder} is not a folder: name run folders, or a folder of them")
        found += sorted(_runs_below(folder), key=natural_order)
    if not found:
        raise RunFolderError(f"no run in {', '.join(map(str, folders))}: `gvc train` makes one")
    return list(dict.fromkeys(found))


def _runs_below(folder: Path) -> list[Path]:
    found = []
    for path, inside, _ in os.walk(folder):
        if read_config(Path(path)) is not None:
            found.append(Path(path))
            inside.clear()  # checkpoints and W&B files are no runs
        inside[:] = [name for name in inside if not name.startswith(".")]  # `.replaced` keeps what was run anew
    return found


def natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Return a sort key under which `size=64` comes before `size=128`."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def read_config(path: Path) -> Row | None:
    """Return a run folder's config as plain values, None where there is none: an old run need not fit the schema."""
    for file in (RunFolder(path).config, RunFolder(path).job):
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(values, dict) and all(isinstance(values.get(k), dict) for k in ("model", "head", "train")):
            return values
    return None


def collect_runs(folders: list[Path]) -> list[Row]:
    """Return a row per run: its folder, sweep, state, labels and the last figures known.

    Raises:
        RunFolderError: see `find_runs`.
    """
    rows = [read_row(path) for path in find_runs(folders)]
    add_ratios(rows)
    return rows


def read_row(path: Path) -> Row:
    """Return what one run folder says.

    `state` is result.json's once complete; before that `running` while a process holds the folder, then what the last
    one left (`failed` with its `reason`, `interrupted`), and `unfinished` where it left nothing. A folder with values
    of another kind than ours reads `damaged`: it must not hide the others.
    """
    try:
        row = _read_row(path)
        _check_kinds(row)
    except (TypeError, AttributeError, ValueError) as error:
        reason = f"config.json, metrics.jsonl or result.json holds a value of another kind than gvc writes ({error})"
        return {"run": str(path), "sweep": sweep_of(path)} | _labels({}) | {"state": DAMAGED, "reason": reason}
    return row


def _check_kinds(row: Row) -> None:
    for key in sorted((NUMBERS | WORDS) & row.keys()):
        value, kinds = row[key], int | float if key in NUMBERS else int | float | str
        if value is not None and not isinstance(value, kinds):
            raise TypeError(f"{key}: {value!r:.50}")


def _read_row(path: Path) -> Row:
    figures, result = last_metrics(path), RunFolder(path).read_result() or {}
    state = result.get("state", UNFINISHED)
    if state != COMPLETE and is_held(path / ".lock"):
        state, known = RUNNING, result | figures  # the result is an earlier attempt's
        known.pop("reason", None)
    else:
        known = figures | result
    labels = _labels(read_config(path) or {})
    environment = RunFolder(path).read_environment()
    labels["device"] = environment.get("gpu") or environment.get("device") or labels["device"]
    row = {"run": str(path), "sweep": sweep_of(path)} | labels | known | {"state": state}
    return row | read_tasks(path) | {"memory/peak": peak_memory_gib(row)}


def read_tasks(path: Path) -> Row:
    """Return what `gvc eval` found of a run's tasks and written texts, nothing where it has not judged it."""
    try:
        figures = json.loads((path / "eval.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(figures, dict):
        return {}
    return {key: value for key, value in figures.items() if key.startswith(("task/", "sample/", "judge/"))}


def _labels(config: Row) -> Row:
    """Return what tells runs apart, and the sizes that theory needs."""
    config = {key: value for key, value in config.items() if value is not None}
    head, tokenizer = config.get("head", {}), config.get("tokenizer", {})
    vocab_size = tokenizer.get("vocab_size") or VOCAB_SIZES.get(str(tokenizer.get("name")))
    group_size = head.get("group_size")
    if "group_size" in head and group_size is None and vocab_size is not None:
        group_size = default_group_size(vocab_size)
    options = [f"{key}={value}" for key, value in sorted(head.items()) if key not in ("name", "group_size")]
    labels = {
        "model": config.get("model", {}).get("name"),
        "head": head.get("name"),
        "head_options": " ".join(options) or None,
        "group_size": group_size,
        "grouping": config.get("grouping", {}).get("name") if group_size is not None else None,
        "data": config.get("data", {}).get("name"),
        "tokenizer": tokenizer_label(tokenizer) or None,
        "vocab_size": vocab_size,
        "seed": config.get("seed"),
        "device": config.get("train", {}).get("device"),
    }
    return labels | _settings(config, grouped=group_size is not None)


def _settings(config: Row, grouped: bool) -> Row:
    """Return what a run computes and how, flat, without head and seed; `text` is a hash of what tells its text."""
    parts = {part: dict(config.get(part, {})) for part in PARTS}
    settings = {key: value for key, value in first_identity(parts).items() if value is not None}
    if not grouped:
        settings = {key: value for key, value in settings.items() if not key.startswith("grouping.")}
    for key, usual in COSTS.items():
        part, name = key.split(".")
        if parts[part].get(name, usual) != usual:
            settings[key] = parts[part][name]
    text = {key: value for key, value in settings.items() if key.startswith(("data.", "tokenizer."))}
    row = {key: _cell(key, value) for key, value in settings.items()}
    if parts["data"]:
        row["text"] = hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()[:12]
    return row


def _cell(key: str, value: Any) -> Any:
    if key in PATHS:
        return " ".join(Path(str(path)).name for path in (value if isinstance(value, list) else [value]))
    return value if isinstance(value, str | int | float) else json.dumps(value)


def last_metrics(path: Path) -> Row:
    """Return the last known figure of every metric; a line that is being written just now is left out."""
    try:
        with RunFolder(path).metrics.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    known: Row = {}
    for row in whole_rows(lines):
        known |= row
    return known


def whole_rows(lines: Iterable[bytes]) -> Iterator[Row]:
    """Yield the lines of a `metrics.jsonl` that can be read; the first may be cut by its reader, the last by a kill."""
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def is_held(lock: Path) -> bool:
    """Return whether a process holds `lock`, without taking it for even an instant.

    Trying it would make a trainer that starts in that instant fail, since it does not wait. filelock uses flock(2),
    which the kernel lists in /proc/locks by inode. Over NFS flock is a byte-range lock on the server, which other
    machines do not list. There, and where there is no /proc/locks, a run in training reads `unfinished`.
    """
    try:
        inode = lock.stat().st_ino
        held = Path("/proc/locks").read_text(encoding="utf-8")
    except OSError:
        return False
    # By inode alone: on btrfs and overlays the device that stat names is not the one listed here.
    return re.search(rf"FLOCK .* \S+:\S+:{inode} ", held) is not None


def sweep_of(path: Path) -> str | None:
    """Return the name of the sweep folder that a run lies in, None for a run of its own."""
    for parent in list(path.resolve().parents)[:4]:
        if (parent / "multirun.yaml").exists():
            return parent.name
    return path.resolve().parent.name if RunFolder(path).job.exists() else None


def add_ratios(rows: list[Row]) -> None:
    """Add speed and memory over those of the first dense run on the same text that is `ALIKE`, where there is one."""
    dense: dict[Any, Row] = {}
    for row in rows:
        if row["head"] == "dense":
            dense.setdefault(_conditions(row), row)
    for row in rows:
        other = dense.get(_conditions(row), {})
        for ratio, key in (("throughput/vs_dense", "throughput/tokens_per_sec"), ("memory/vs_dense", "memory/peak")):
            if other.get(key) and row.get(key):
                row[ratio] = row[key] / other[key]


def _conditions(row: Row) -> tuple[Any, ...]:
    return text_of(row), *(row.get(key) for key in ALIKE)
