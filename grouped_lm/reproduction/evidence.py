"""The evidence: plain tables that verdicts and pages are made from, collected from folders and kept as CSV.

Verdicts are computed from the CSV files that were written, so everyone who has these files gets the same verdicts.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from grouped_lm.errors import DataError, RunFolderError
from grouped_lm.report.tables import runs_csv
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.table import collect_runs, natural_order, read_evaluation, read_row, whole_rows
from grouped_lm.system.console import peak_memory_gib
from grouped_lm.system.files import write_text
from grouped_lm.system.tables import csv_text

Row = dict[str, Any]
Evidence = dict[str, list[Row]]
"""Name of a table -> its rows. Every table of `TABLES` is there, even with no rows."""

BENCHES = ("bench-heads", "bench-steps", "bench-memory", "bench-decode", "bench-vocab")
TABLES = ("runs", "curves", "deciles", "stories", "environments", "order", "steps", *BENCHES)
DATA = "data"
"""The folder of a report with the tables that it was made from."""
ENVIRONMENT = ("commit", "cpu", "cpu_count", "threads", "gpu", "device", "python")
"""The kept parts of a run's environment: those that its figures depend on. Names of machines are left out."""

COLUMNS = yaml.safe_load(files("grouped_lm.reproduction").joinpath("evidence.yaml").read_text(encoding="utf-8"))
TEXTS = frozenset(chain(*COLUMNS["texts"]))
"""Columns that are always text."""
Say = Callable[[str], None]
"""Shows a line to the user."""


def missing_in(table: str, row: Row) -> str | None:
    """Return a column that a row of `table` lacks; None if it has all of them."""
    kind = f"{table} {row['part']}" if row.get("part") else table
    required = COLUMNS["required"].get(kind, {"numbers": (), "texts": ()})
    for key in required["numbers"]:
        if type(row.get(key)) not in (int, float):
            return key
    return next((key for key in required["texts"] if not row.get(key)), None)


def collect_evidence(folders: list[Path], say: Say = lambda _: None) -> Evidence:
    """Return the tables of everything in and below `folders`: run folders, benches, and tables of earlier reports.

    A failed run is a row with its state and reason. With several folders, the names of runs begin with the name of
    their folder. The tables of an earlier report are read only if a folder holds nothing else.

    Args:
        folders: one or more.
        say: shows a line for each file that is left out.

    Raises:
        RunFolderError: a folder does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise RunFolderError(f"{folder} is not a folder: name run folders, folders of them, or a report's folder")
    evidence: Evidence = {name: [] for name in TABLES}
    folders = list({folder.resolve(): folder for folder in folders}.values())
    for folder, label in zip(folders, _labels_of(folders), strict=True):
        own = _collect_one(folder, say)
        if not any(own.values()):
            own = read_evidence(folder, say) or own
        for name, rows in own.items():
            evidence[name] += [row | {"run": f"{label}{row['run']}"} if label and "run" in row else row for row in rows]
    return evidence


def _labels_of(folders: list[Path]) -> list[str]:
    """Return the prefix of the runs of each folder: its name; nothing if there is one folder."""
    names = [folder.resolve().name for folder in folders]
    before = [names[:i].count(name) for i, name in enumerate(names)]
    labels = [f"{name}-{n + 1}/" if n else f"{name}/" for name, n in zip(names, before, strict=True)]
    return labels if len(folders) > 1 else [""]


def _collect_one(folder: Path, say: Say) -> Evidence:
    """Return the tables of one folder; names of runs are relative to it."""
    evidence: Evidence = {name: [] for name in TABLES}
    try:
        rows = collect_runs([folder])
    except RunFolderError:
        rows = []
    readers = {"curves": read_curve, "deciles": read_deciles, "stories": read_stories, "environments": read_environment}
    for row in rows:
        path = Path(row["run"])
        name = str(path.relative_to(folder)) if path != folder else path.resolve().name
        evidence["runs"].append(row | {"run": name})
        if row.get("reason"):  # no path of the machine
            evidence["runs"][-1]["reason"] = str(row["reason"]).replace(str(path), name)
        for table, read in readers.items():
            try:
                evidence[table] += read(path, name)
            except (LookupError, TypeError, AttributeError, ValueError) as error:  # JSON, but not of ours
                say(f"gvc: {name}: its {table} are left out, not in our form ({type(error).__name__}: {error})")
    for path in _files_below(folder, ("bench.csv", "bench-*.csv", "order.csv", "order-*.csv", "steps.csv")):
        try:
            for table, row in _rows_by_table(path):
                evidence[table].append(row)
        except DataError as error:
            say(f"gvc: {path.relative_to(folder)} is left out: {error}")
    return evidence


def _rows_by_table(path: Path) -> list[tuple[str, Row]]:
    """Return the rows of a CSV, each with the table that it belongs to.

    Raises:
        DataError: the file cannot be read, or a row is not one of ours.
    """
    kind = path.stem.split("-")[0]
    tables = [(f"bench-{row.get('suite')}" if kind == "bench" else kind, row) for row in read_csv(path)]
    for table, row in tables:
        if lacks := missing_in(table, row):
            raise DataError(f"a row lacks {lacks}")
        if table not in TABLES:
            raise DataError(f"there is no suite {table.removeprefix('bench-')}")
    return tables


def _files_below(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Return the files below `folder` that match a pattern, without hidden folders and reports."""

    def is_own(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        in_report = path.parent.name == "tables" and (path.parents[1] / "report.md").exists()
        return not in_report and not {"report", DATA} & set(parts[:-1]) and not any(part[0] == "." for part in parts)

    return sorted({path for pattern in patterns for path in folder.rglob(pattern) if is_own(path)}, key=natural_order)


def read_curve(path: Path, name: str) -> list[Row]:
    """Return one row per logged step: tokens, seconds of training steps, losses, peak memory so far."""
    rows: list[Row] = []
    seconds, last_step = 0.0, 0
    try:
        lines = RunFolder(path).metrics.read_bytes().splitlines()
    except OSError:
        return []
    for values in whole_rows(lines):
        step = values.get("trainer/step", 0)
        if (step_ms := values.get("time/step_ms")) is not None:  # rows of a validation have no time
            seconds += step_ms / 1000 * (step - last_step)
            last_step = step
        row = {"run": name, "step": step, "tokens": values.get("trainer/tokens"), "seconds": seconds}
        row |= {"train_loss": values.get("train/loss"), "val_loss": values.get("val/loss")}
        rows.append(row | {"peak_gib": peak_memory_gib(values)})
    return rows


def read_deciles(path: Path, name: str) -> list[Row]:
    """Return loss and accuracy by training frequency; empty unless `gvc eval` has evaluated the last step."""
    rows = read_evaluation(path, read_row(path).get("trainer/step")).get("by_frequency") or []
    return [
        {"run": name, "decile": str(row.pop("name")), **row, "loss": float(row["loss"]), "tokens": row["tokens"]}
        for row in rows
    ]


def read_stories(path: Path, name: str) -> list[Row]:
    """Return the texts that the run wrote: the lines of `stories.jsonl`, as `gvc sample --json` prints them."""
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
    """Write each table that has rows as CSV, and remove the files of tables without rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in evidence.items():
        path = folder / f"{name}.csv"
        if rows:
            write_text(path, runs_csv(rows) if name == "runs" else csv_text(rows))
        else:
            path.unlink(missing_ok=True)


def read_evidence(folder: Path, say: Say = lambda _: None) -> Evidence | None:
    """Return the tables that a report wrote into `folder`/data; None if there are none.

    Args:
        folder: of the report, or its `data` folder.
        say: shows a line for each table that is left out.

    Raises:
        DataError: a table is not a CSV.
    """
    place = folder if folder.name == DATA else folder / DATA
    known = {name: path for name in TABLES if (path := place / f"{name}.csv").exists()}
    evidence: Evidence = {name: [] for name in TABLES}
    for name, path in known.items():
        rows = read_csv(path)
        if lacks := next((key for row in rows if (key := missing_in(name, row))), None):
            say(f"gvc: {path.name} is left out: a row lacks {lacks}")
        else:
            evidence[name] = rows
    return evidence if known else None


def read_csv(path: Path) -> list[Row]:
    """Return the rows of a CSV with numbers as numbers, without empty cells.

    Raises:
        DataError: it cannot be read, or is not a CSV in UTF-8.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                {k: v if k in TEXTS else parse(v) for k, v in row.items() if k is not None and v not in ("", None)}
                for row in csv.DictReader(file)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
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
    """Return `head.NAME` -> value from a run's `head_options`, such as `bias=False chunk_rows=256`."""
    pairs = re.findall(r"(\w+)=(.*?)(?= \w+=|$)", str(row.get("head_options") or ""))
    return {f"head.{key}": parse(value) for key, value in pairs if value != "None"}
