"""Collect runs as rows for tables: one row per run folder, finished or not.

A row is a flat dict: metrics such as "val/loss", settings such as "optim.lr", and labels such as "head".
This module only reads. It never takes a run's lock.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from grouped_lm.config import Config
from grouped_lm.data.tokenizers.base import vocab_size_of
from grouped_lm.errors import GvcError, RunFolderError, SchemaError
from grouped_lm.grouping import default_group_size
from grouped_lm.runs.folder import COMPLETE, RunFolder, is_saved_config
from grouped_lm.runs.identity import is_identity, iter_settings
from grouped_lm.runs.load import load_config, read_job
from grouped_lm.runs.query import COLUMNS, PARETO_KEYS, text_of
from grouped_lm.system.console import peak_memory_gib
from grouped_lm.system.files import is_leased_elsewhere, read_json_dict
from grouped_lm.system.tables import Row, group_rows

RUNNING, UNFINISHED, DAMAGED, OTHER_VERSION = "running", "unfinished", "damaged", "other version"
LABELS = (
    "model",
    "head",
    "head_options",
    "prior",
    "group_size",
    "grouping",
    "data",
    "tokenizer",
    "vocab_size",
    "seed",
    "init_from",
    "device",
)
"""Columns that every row has. They are None in the row of a folder that cannot be read."""
SETTING_PARTS = ("model", "grouping", "data", "tokenizer", "optim", "train", "prior")
"""Parts of a config whose settings become columns such as "optim.lr"."""
PATH_SETTINGS = ("data.train", "data.valid", "tokenizer.file")
"""A row shows only the last part of these paths: tables are shown to other people."""
COST_SETTINGS = tuple(path for path, spec, _ in iter_settings(Config()) if spec.metadata.get("cost"))
"""Settings that change speed and memory, but not what is computed. A row has them where they are not the default."""
EQUAL_MODEL = ("body", "n_layer", "n_head", "n_embd", "block_size", "window_size", "dropout")
EQUAL_TRAIN = ("micro_batch_size", "grad_accum_steps", "dtype", "compile", "threads")
EQUAL_SETTINGS = [f"model.{key}" for key in EQUAL_MODEL] + [f"train.{key}" for key in EQUAL_TRAIN]
CPU_PLACE = {"cpu": "cpu", "cpu_count": "cpu_count", "cpu_threads": "threads"}
"""Columns of a run on a CPU, and their keys in environment.json."""
EQUAL_FOR_RATIOS = ("model", "trainer/tokens", "device", *CPU_PLACE, *EQUAL_SETTINGS, *COST_SETTINGS)
"""Two runs on one text must be equal in these columns before their speed and memory are compared."""
NUMBER_COLUMNS = {key for _, key, form in COLUMNS if form != "{}"} | {key for key, _ in PARETO_KEYS}
TEXT_COLUMNS = {key for _, key, form in COLUMNS if form == "{}"} | {"tokenizer", "device", "reason", "trainer/tokens"}
TAIL_BYTES = 65_536
"""Bytes that are read from the end of metrics.jsonl: over a hundred rows, whatever the file's length."""
VALIDATION = b'"val/loss"'
"""What the line of a validation in metrics.jsonl contains."""
CONTENTS = ("data.train", "data.valid", "tokenizer.file")
"""Inputs that decide which tokens a run has read, and the settings with their paths."""


def find_runs(folders: list[Path]) -> list[Path]:
    """Return the run folders of any version among and below `folders`, by name, with numbers in order of size.

    Raises:
        RunFolderError: a folder does not exist, or there is no run anywhere.
    """
    runs: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise RunFolderError(f"{folder} is not a folder: name run folders, or a folder of them")
        runs |= dict.fromkeys(sorted(_runs_below(folder), key=natural_order))
    if not runs:
        raise RunFolderError(f"no run in {', '.join(map(str, folders))}: `gvc train` makes one")
    return list(runs)


def _runs_below(folder: Path) -> Iterator[Path]:
    for path, inside, _ in os.walk(folder):
        run = RunFolder(Path(path))
        if any(is_saved_config(read_json_dict(file) or {}) for file in (run.config, run.job)) or _is_damaged(run):
            yield run.path
            inside.clear()  # its checkpoints and W&B files are not runs
        inside[:] = [name for name in inside if not name.startswith(".")]  # `.replaced` holds runs that were repeated


def _is_damaged(run: RunFolder) -> bool:
    """Return whether a folder has a config.json that cannot be read, and something else that only a run has."""
    if not run.config.is_file() or read_json_dict(run.config) is not None:
        return False
    return run.metrics.exists() or run.result.exists() or run.checkpoints.is_dir()


def natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Return a sort key under which `size=64` comes before `size=128`."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def collect_runs(folders: list[Path]) -> list[Row]:
    """Return one row per run: its folder, sweep, state, labels, settings and last metrics. Errors as in `find_runs`."""
    rows = [read_row(path) for path in find_runs(folders)]
    add_ratios(rows)
    return rows


def read_row(path: Path) -> Row:
    """Return the row of one run folder.

    `state` is that of result.json once it is complete. Before that it is `running` while a process holds the folder,
    then what the last process wrote (`failed` with a `reason`, or `interrupted`), or `unfinished` if it wrote nothing.
    A folder with wrong values has the state `damaged`, one of another version of gvc `other version`.
    """
    try:
        row = _read_row(path)
        _check_types(row)
        return row
    except SchemaError as error:
        state, reason = OTHER_VERSION, str(error)
    except GvcError as error:
        state, reason = DAMAGED, str(error)
    except (TypeError, AttributeError, ValueError) as error:
        state = DAMAGED
        reason = f"metrics.jsonl or result.json holds a value of another kind than gvc writes ({error})"
    return {"run": str(path), "sweep": sweep_of(path), **dict.fromkeys(LABELS), "state": state, "reason": reason}


def _check_types(row: Row) -> None:
    for key in sorted((NUMBER_COLUMNS | TEXT_COLUMNS) & row.keys()):
        value, kinds = row[key], int | float if key in NUMBER_COLUMNS else int | float | str
        if value is not None and not isinstance(value, kinds):
            raise TypeError(f"{key}: {value!r:.50}")


def _read_row(path: Path) -> Row:
    folder = RunFolder(path)
    metrics, result = last_metrics(path), folder.read_result() or {}
    state = result.get("state", UNFINISHED)
    if state != COMPLETE and is_held(path / ".lock"):
        state, values = RUNNING, result | metrics  # the result is that of an earlier attempt
        values.pop("reason", None)
    else:
        values = metrics | result
    config = load_config(path) if folder.config.exists() else read_job(folder.job)
    labels = run_labels(config) | run_settings(config, read_json_dict(folder.inputs))
    environment = folder.read_environment()
    if not environment.get("gpu"):
        labels |= {column: environment.get(key) for column, key in CPU_PLACE.items()}
    labels["device"] = environment.get("gpu") or environment.get("device") or labels["device"]
    row = {"run": str(path), "sweep": sweep_of(path)} | labels | values | {"state": state}
    evaluated = read_evaluation(path, row.get("trainer/step"))
    row |= {key: value for key, value in evaluated.items() if key.startswith(("task/", "sample/", "judge/"))}
    return row | {"memory/peak": peak_memory_gib(row)}


def read_evaluation(path: Path, step: int | None) -> Row:
    """Return what `gvc eval` has measured of a run, {} if that was at another step than `step`, the last one."""
    evaluated = read_json_dict(path / "eval.json") or {}
    return evaluated if step is None or evaluated.get("trainer/step", step) == step else {}


def run_labels(config: Config) -> Row:
    """Return the names that tell runs apart, and the sizes of vocabulary and groups."""
    head = {spec.name: value for _, spec, value in iter_settings(config.head) if value is not None}
    vocab_size, group_size = vocab_size_of(config.tokenizer), head.get("group_size")
    is_grouped = hasattr(config.head, "group_size")
    if is_grouped and group_size is None:
        group_size = default_group_size(vocab_size)
    options = [f"{key}={value}" for key, value in sorted(head.items()) if key not in ("name", "group_size")]
    if config.prior.is_on:
        options.append(f"prior={config.prior.mix}")
    return {
        "model": config.model.name,
        "head": head["name"],
        "head_options": " ".join(options) or None,
        "prior": config.prior.mix if config.prior.is_on else None,
        "group_size": group_size,
        "grouping": config.grouping.name if is_grouped else None,
        "data": config.data.name if config.data is not None else None,
        "tokenizer": config.tokenizer.label,
        "vocab_size": vocab_size,
        "seed": config.seed,
        "init_from": source_label(config),
        "device": config.train.device,
    }


def source_label(config: Config) -> str | None:
    """Return the last part of the path `init_from` with a hash of the whole, None for a run from scratch."""
    source = config.init_from
    return source and f"{Path(source).name}-{hashlib.sha256(source.encode()).hexdigest()[:6]}"


def run_settings(config: Config, inputs: Row | None = None) -> Row:
    """Return the settings of a run as columns, without head and seed, and a hash `text` of its text and tokens.

    The hash is that of the settings, with the contents of the files in place of their paths where `inputs` (the values
    of inputs.json) has them.
    """
    values: Row = {}
    for part in SETTING_PARTS:
        unused = part == "prior" and not config.prior.is_on
        if getattr(config, part) is None or unused or (part == "grouping" and not hasattr(config.head, "group_size")):
            continue
        for path, spec, value in iter_settings(getattr(config, part), f"{part}."):
            is_shown = is_identity(spec) or (path in COST_SETTINGS and value != spec.default)
            if is_shown and value is not None:
                values[path] = value
    text = {key: value for key, value in values.items() if key.startswith(("data.", "tokenizer."))}
    text |= text_contents(inputs or {})
    text_hash = hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()[:12]
    return {key: _cell(key, value) for key, value in values.items()} | {"text": text_hash}


def text_contents(inputs: Row) -> Row:
    """Return what tells the text and tokenizer file of a run from others, whatever their paths; {} if nothing is known.

    The keys are those of the settings that this replaces.
    """
    found: Row = {}
    for key in CONTENTS:
        own = inputs.get(key)
        if isinstance(own, dict):
            files = own.get("files") or []
            if isinstance(files, list) and all(isinstance(file, dict) for file in files):
                own = own | {"files": [[file.get("bytes"), file.get("sha256")] for file in files]}
            found[key] = own
    return found | ({"data.name": None} if "data.valid" in found else {})


def _cell(key: str, value: Any) -> Any:
    if key in PATH_SETTINGS:
        return " ".join(Path(str(path)).name for path in (value if isinstance(value, list) else [value]))
    return value if isinstance(value, str | int | float) else json.dumps(value)


def last_metrics(path: Path) -> Row:
    """Return the last value of every metric in the last rows, and those of the last validation, however old it is.

    A last line that is only half written is left out.
    """
    try:
        with RunFolder(path).metrics.open("rb") as file:
            lines = _last_lines(file)
    except OSError:
        return {}
    metrics: Row = {}
    for row in whole_rows(lines):
        metrics |= row
    return metrics


def _last_lines(file: BinaryIO) -> list[bytes]:
    """Return the lines in the last `TAIL_BYTES`, after the line of the last validation if that is before them."""
    start = max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES)
    file.seek(start)
    last = file.read().split(b"\n")
    cut, found = last[0], [line for line in last[1 if start else 0 :] if VALIDATION in line]
    while start and not found:  # the first line of a block may have its beginning in the block before it
        begin = max(0, start - TAIL_BYTES)
        file.seek(begin)
        lines = (file.read(start - begin) + cut).split(b"\n")
        start, cut = begin, lines[0]
        found = [line for line in lines[1 if start else 0 :] if VALIDATION in line]
        if found:
            return [found[-1], *last]
    return last


def whole_rows(lines: Iterable[bytes]) -> Iterator[Row]:
    """Yield the rows of a `metrics.jsonl` that can be read. The first and the last line may be cut."""
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def is_held(lock: Path) -> bool:
    """Return whether a process holds the lock file `lock`, without taking the lock.

    To take it, even for an instant, could make a trainer fail that starts in that instant. filelock uses flock(2), and
    the kernel lists such locks by inode in /proc/locks. It does not list the locks of other machines. What these hold
    follows from the lease beside the lock file.
    """
    if is_leased_elsewhere(lock):
        return True
    try:
        inode = lock.stat().st_ino
        held = Path("/proc/locks").read_text(encoding="utf-8")
    except OSError:
        return False
    # By inode alone: on btrfs and overlays the device that stat names is not the one listed here.
    return re.search(rf"FLOCK .* \S+:\S+:{inode} ", held) is not None


def sweep_of(path: Path) -> str | None:
    """Return the name of the sweep folder that a run is in, None for a single run."""
    for parent in list(path.resolve().parents)[:4]:
        if (parent / "multirun.yaml").exists():
            return parent.name
    return path.resolve().parent.name if RunFolder(path).job.exists() else None


def add_ratios(rows: list[Row]) -> None:
    """Add the ratios to the first dense run that is equal in text and `EQUAL_FOR_RATIOS`, such as "memory/vs_dense"."""
    for alike in group_rows(rows, lambda row: (text_of(row), *map(row.get, EQUAL_FOR_RATIOS))).values():
        dense = next((row for row in alike if row["head"] == "dense"), {})
        for row in alike:
            for ratio, key in ("throughput/vs_dense", "throughput/tokens_per_sec"), ("memory/vs_dense", "memory/peak"):
                if dense.get(key) and row.get(key):
                    row[ratio] = row[key] / dense[key]
