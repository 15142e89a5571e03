"""Everything that verdicts and pages are made from, as plain tables: gathered from folders, kept as CSV, read back.

Verdicts are computed from what was read back, so that whoever has the CSV files has the verdicts.
"""

import csv
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from grouped_lm.errors import DataError, RunFolderError
from grouped_lm.report import to_csv
from grouped_lm.rows import collect_runs, natural_order
from grouped_lm.run_folder import RunFolder
from grouped_lm.runtime import write_text

Row = dict[str, Any]
Evidence = dict[str, list[Row]]
"""Name of a table -> its rows; every table of `TABLES` is there, with no rows where nothing was found."""

BENCHES = ("bench-heads", "bench-steps", "bench-memory", "bench-decode", "bench-vocab")
TABLES = ("runs", "curves", "deciles", "stories", "environments", "order", "steps", *BENCHES)
DATA = "data"
"""The folder of a report with the tables that it was made from."""
CURVE = ("run", "step", "tokens", "seconds", "train_loss", "val_loss", "peak_gib")
"""Of the environment of a run, what decides its figures; nothing that says whose machine it was."""
ENVIRONMENT = ("commit", "cpu", "cpu_count", "threads", "gpu", "device", "python")


def collect_evidence(folders: list[Path]) -> Evidence:
    """Return the tables of everything in and below `folders`: run folders, benches, and tables kept before.

    A run that is broken is a row with its state and reason.

    Raises:
        RunFolderError: a folder that does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise RunFolderError(f"{folder} is not a folder: name run folders, folders of them, or a report's folder")
    found: Evidence = {name: [] for name in TABLES}
    for folder in folders:
        kept = read_evidence(folder)
        for name, rows in (kept or _gather(folder, folder if len(folders) == 1 else None)).items():
            found[name] += rows
    return found


def _gather(folder: Path, top: Path | None) -> Evidence:
    """Return the tables of one folder; names of runs begin below `top`."""
    found: Evidence = {name: [] for name in TABLES}
    try:
        rows = collect_runs([folder])
    except RunFolderError:
        rows = []
    for row in rows:
        path = Path(row["run"])
        name = str(path.relative_to(top)) if top is not None and path != top else str(path)
        found["runs"].append(row | {"run": name})
        found["curves"] += read_curve(path, name)
        found["deciles"] += read_deciles(path, name)
        found["stories"] += read_stories(path, name)
        found["environments"] += read_environment(path, name)
    for path in sorted_files(folder, ("bench.csv", "bench-*.csv", "order*.csv", "steps.csv")):
        kind = path.stem.split("-")[0]
        for row in read_csv(path):
            found[f"bench-{row['suite']}" if kind == "bench" else kind].append(row)
    return found


def sorted_files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Return the files below `folder` that fit a pattern, hidden folders and reports left out."""
    found = {path for pattern in patterns for path in folder.rglob(pattern)}
    parts = {path: path.relative_to(folder).parts for path in found}
    own = [p for p in found if not {"report", DATA} & set(parts[p][:-1]) and not any(x[0] == "." for x in parts[p])]
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
        step = values.get("trainer/step", 0)
        seconds += (values.get("time/step_ms") or 0) / 1000 * (step - last_step)
        last_step = step
        peak = values.get("memory/peak_gpu_gib") or values.get("memory/peak_tensor_gib")
        losses = values.get("train/loss"), values.get("val/loss")
        rows.append(dict(zip(CURVE, (name, step, values.get("trainer/tokens"), seconds, *losses, peak), strict=True)))
    return rows


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def read_deciles(path: Path, name: str) -> list[Row]:
    """Return loss and accuracy by training frequency, where `gvc eval` has judged the run."""
    rows = _read_json(path / "eval.json").get("by_frequency") or []
    return [{"run": name, "decile": row["name"], **{k: v for k, v in row.items() if k != "name"}} for row in rows]


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
    values = _read_json(path / "environment.json")
    if not values:
        return []
    torch = values.get("libraries", {}).get("torch")
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


def read_evidence(folder: Path) -> Evidence | None:
    """Return the tables that a report left in `folder`/data, None where there are none."""
    place = folder if folder.name == DATA else folder / DATA
    files = {name: place / f"{name}.csv" for name in TABLES}
    if not any(path.exists() for path in files.values()):
        return None
    return {name: read_csv(path) if path.exists() else [] for name, path in files.items()}


def read_csv(path: Path) -> list[Row]:
    """Return the rows of a CSV with numbers as numbers; empty cells are left out.

    Raises:
        DataError: it is no CSV in UTF-8.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{k: parse(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]
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
