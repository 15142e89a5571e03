"""Everything that verdicts and pages are made from, as plain tables: gathered from folders, kept as CSV, read back.

Verdicts are computed from what was read back, so that whoever has the CSV files has the verdicts.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from grouped_lm.errors import DataError, RunFolderError
from grouped_lm.report.tables import to_csv
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.table import collect_runs, natural_order
from grouped_lm.system.files import write_text

Row = dict[str, Any]
Evidence = dict[str, list[Row]]
"""Name of a table -> its rows; every table of `TABLES` is there, with no rows where nothing was found."""

BENCHES = ("bench-heads", "bench-steps", "bench-memory", "bench-decode", "bench-vocab")
TABLES = ("runs", "curves", "deciles", "stories", "environments", "order", "steps", *BENCHES)
DATA = "data"
"""The folder of a report with the tables that it was made from."""
CURVE = ("run", "step", "tokens", "seconds", "train_loss", "val_loss", "peak_gib")
"""Columns of a learning curve; seconds are those of training steps."""
ENVIRONMENT = ("commit", "cpu", "cpu_count", "threads", "gpu", "device", "python")
"""Of the environment of a run, what decides its figures; nothing that says whose machine it was."""

NUMBERS = {
    "order": ("rank_correlation", "low", "high", "ids", "tokens", "first", "share_of_first", "share_of_top"),
    "steps": ("minutes",),
    "bench-steps": ("micro_batch_size", "block_size", "ms", "ms_q1", "ms_q3", "tokens_per_sec"),
    "bench-memory truth": ("micro_batch_size", "block_size", "measured_bytes"),
    "bench-memory claim": ("micro_batch_size", "memory_ratio", "claim_ratio", "flops_ratio", "flops_cap"),
    "bench-memory grid": ("micro_batch_size", "block_size", "predicted_bytes"),
    "bench-vocab step": ("vocab_size", "micro_batch_size", "block_size"),
}
"""Of a table, or one part of a bench: columns without whose numbers a row says nothing."""
NAMES = {
    "order": ("data",),
    "steps": ("scale", "step", "state", "command"),
    "bench-steps": ("model", "head"),
    "bench-memory truth": ("model", "head"),
    "bench-memory claim": ("model", "attention"),
    "bench-memory grid": ("model", "head", "mode"),
    "bench-vocab step": ("model", "head"),
}
"""The same for texts."""
TEXTS = frozenset(
    {"run", "sweep", "data", "model", "model.body", "tokenizer", "head", "head_options", "grouping", "state", "reason"}
    | {"name", "text", "prompt", "decile", "command", "commit", "machine", "cpu", "gpu", "device", "python", "torch"}
    | {"suite", "part", "option", "attention", "mode", "scale", "about"}
)
"""Columns that are never numbers, whatever they look like: a run may be called 0, and a text 2024."""


def missing_in(table: str, row: Row) -> str | None:
    """Return a column that a row of `table` lacks, None where it has all."""
    kind = f"{table} {row['part']}" if row.get("part") else table
    for key in NUMBERS.get(kind, ()):
        if not isinstance(row.get(key), int | float) or isinstance(row.get(key), bool):
            return key
    return next((key for key in NAMES.get(kind, ()) if not row.get(key)), None)


def collect_evidence(folders: list[Path], say: Callable[[str], None] = lambda _: None) -> Evidence:
    """Return the tables of everything in and below `folders`: run folders, benches, and tables kept before.

    A run that is broken is a row with its state and reason. Runs of several folders have the folder's name before
    their own. Tables kept before speak where a folder holds nothing else.

    Args:
        folders: one or more.
        say: told of each file that is left out, in a line.

    Raises:
        RunFolderError: a folder that does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise RunFolderError(f"{folder} is not a folder: name run folders, folders of them, or a report's folder")
    found: Evidence = {name: [] for name in TABLES}
    folders = list({folder.resolve(): folder for folder in folders}.values())
    for folder, label in zip(folders, labels_of(folders), strict=True):
        own = _gather(folder, say)
        if not any(own.values()):
            own = read_evidence(folder, say) or own
        for name, rows in own.items():
            found[name] += [row | {"run": f"{label}{row['run']}"} if label and "run" in row else row for row in rows]
    return found


def labels_of(folders: list[Path]) -> list[str]:
    """Return what stands before the names of each folder's runs: nothing for one, else its own name."""
    if len(folders) == 1:
        return [""]
    names = [folder.resolve().name for folder in folders]
    return [
        f"{name}-{names[:i].count(name) + 1}/" if names[:i].count(name) else f"{name}/" for i, name in enumerate(names)
    ]


def _gather(folder: Path, say: Callable[[str], None]) -> Evidence:
    """Return the tables of one folder; names of runs begin below it."""
    found: Evidence = {name: [] for name in TABLES}
    try:
        rows = collect_runs([folder])
    except RunFolderError:
        rows = []
    for row in rows:
        path = Path(row["run"])
        name = str(path.relative_to(folder)) if path != folder else path.resolve().name
        found["runs"].append(row | {"run": name})
        for table, read in (
            ("curves", read_curve),
            ("deciles", read_deciles),
            ("stories", read_stories),
            ("environments", read_environment),
        ):
            try:
                found[table] += read(path, name)
            except (LookupError, TypeError, AttributeError, ValueError) as error:  # JSON, but not of ours
                say(f"gvc: {name}: its {table} are left out, not in our form ({type(error).__name__}: {error})")
    for path in sorted_files(folder, ("bench.csv", "bench-*.csv", "order.csv", "order-*.csv", "steps.csv")):
        kind = path.stem.split("-")[0]
        try:
            rows = read_csv(path)
        except (DataError, OSError) as error:
            say(f"gvc: left out: {error}")
            continue
        tables = [f"bench-{row.get('suite')}" if kind == "bench" else kind for row in rows]
        lacks = next((key for table, row in zip(tables, rows, strict=True) if (key := missing_in(table, row))), None)
        strange = next((table for table in tables if table not in TABLES), None)
        if lacks or strange:
            why = f"a row lacks {lacks}" if lacks else f"there is no suite {str(strange).removeprefix('bench-')}"
            say(f"gvc: {path.relative_to(folder)} is left out: {why}")
            continue
        for table, row in zip(tables, rows, strict=True):
            found[table].append(row)
    return found


def sorted_files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Return the files below `folder` that fit a pattern, hidden folders and reports left out."""
    found = {path for pattern in patterns for path in folder.rglob(pattern)}
    parts = {path: path.relative_to(folder).parts for path in found}
    own = [p for p in found if not {"report", DATA} & set(parts[p][:-1]) and not any(x[0] == "." for x in parts[p])]
    own = [p for p in own if not (p.parent.name == "tables" and (p.parents[1] / "report.md").exists())]
    return sorted(own, key=natural_order)


def read_curve(path: Path, name: str) -> list[Row]:
    """Return a row per logged step: tokens, seconds of training steps, losses, the highest peak so far."""
    try:
        lines = RunFolder(path).metrics.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rows: list[Row] = []
    seconds, last_step = 0.0, 0
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue  # being written just now
        if not isinstance(values, dict):
            continue  # a line, but none of ours
        step = values.get("trainer/step", 0)
        seconds += (values.get("time/step_ms") or 0) / 1000 * (step - last_step)
        last_step = step
        peak = values.get("memory/peak_gpu_gib") or values.get("memory/peak_tensor_gib")
        losses = values.get("train/loss"), values.get("val/loss")
        rows.append(dict(zip(CURVE, (name, step, values.get("trainer/tokens"), seconds, *losses, peak), strict=True)))
    return rows


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def read_deciles(path: Path, name: str) -> list[Row]:
    """Return loss and accuracy by training frequency, where `gvc eval` has judged the run."""
    rows = _read_json(path / "eval.json").get("by_frequency") or []
    found = [{"run": name, "decile": row["name"], **{k: v for k, v in row.items() if k != "name"}} for row in rows]
    return [row | {"decile": str(row["decile"]), "loss": float(row["loss"]), "tokens": row["tokens"]} for row in found]


def read_stories(path: Path, name: str) -> list[Row]:
    """Return what the run wrote: the lines of `stories.jsonl`, as `gvc sample --json` prints them."""
    try:
        lines = (path / "stories.jsonl").read_text(encoding="utf-8").splitlines()
        values = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []
    return [{"run": name, "index": v["index"], "prompt": v["prompt"], "text": v["text"]} for v in values]


def read_environment(path: Path, name: str) -> list[Row]:
    """Return code, libraries and hardware of a run."""
    values = RunFolder(path).read_environment()
    if not values:
        return []
    libraries = values.get("libraries")
    torch = libraries.get("torch") if isinstance(libraries, dict) else None
    return [{"run": name} | {key: values.get(key) for key in ENVIRONMENT} | {"torch": torch}]


def write_evidence(evidence: Evidence, folder: Path) -> None:
    """Write every table that has rows as CSV, each whole or not at all; a table without rows has no file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in evidence.items():
        path = folder / f"{name}.csv"
        if rows:
            write_text(path, to_csv(rows) if name == "runs" else table_csv(rows))
        else:
            path.unlink(missing_ok=True)


def table_csv(rows: list[Row]) -> str:
    """Return rows as CSV, columns in the order in which rows first bring them."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_evidence(folder: Path, say: Callable[[str], None] = lambda _: None) -> Evidence | None:
    """Return the tables that a report left in `folder`/data, None where there are none; `say` is told what is left out.

    Raises:
        DataError: a table that is no CSV.
    """
    place = folder if folder.name == DATA else folder / DATA
    files = {name: place / f"{name}.csv" for name in TABLES}
    if not any(path.exists() for path in files.values()):
        return None
    found: Evidence = {name: read_csv(path) if path.exists() else [] for name, path in files.items()}
    for name, rows in found.items():
        lacks = next((key for row in rows if (key := missing_in(name, row))), None)
        if lacks:
            say(f"gvc: {files[name].name} is left out: a row lacks {lacks}")
            found[name] = []
    return found


def read_csv(path: Path) -> list[Row]:
    """Return the rows of a CSV with numbers as numbers; empty cells are left out.

    Raises:
        DataError: it is no CSV in UTF-8.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                {k: v if k in TEXTS else parse(v) for k, v in row.items() if k is not None and v not in ("", None)}
                for row in csv.DictReader(file)
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV: {error}") from error


def parse(text: str) -> Any:
    """Return a cell as int, float, bool or text."""
    if text in ("True", "False"):
        return text == "True"
    if re.fullmatch(r"-?\d{1,18}", text):
        return int(text)
    try:
        return float(text) if re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", text) else text
    except ValueError:
        return text


def head_options(row: Row) -> Row:
    """Return `head.NAME` -> value of a run's `head_options`, as `bias=False chunk_rows=256` has them."""
    pairs = re.findall(r"(\w+)=(.*?)(?= \w+=|$)", str(row.get("head_options") or ""))
    return {f"head.{key}": parse(value) for key, value in pairs if value != "None"}
