"""The ladder of heads: a row a run, judged on text that no choice was made on, and paired with the best dense.

Learning rates and heads are chosen by the validation text of the runs; what is reported comes from another text.
"""

import contextlib
import csv
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from grouped_lm.config import Config
from grouped_lm.data import prepare_split
from grouped_lm.data.loader import ValidWindows
from grouped_lm.data.sources.text_files import file_sha256
from grouped_lm.errors import DataError, RunFolderError, disk_errors
from grouped_lm.evaluate.significance import paired_interval
from grouped_lm.evaluate.validation import validate
from grouped_lm.runs.folder import COMPLETE, RunFolder
from grouped_lm.runs.load import load_config, load_model, own_tokenizer
from grouped_lm.runs.query import Row
from grouped_lm.runs.table import collect_runs, whole_rows
from grouped_lm.system.console import peak_memory_gib
from grouped_lm.system.files import write_text
from grouped_lm.system.runtime import resolve_device, set_threads
from grouped_lm.system.tables import csv_text

COLUMNS = (
    *("data", "body", "n_embd", "n_layer", "head", "options", "grouping", "group_size", "seed", "lr"),
    *("steps", "tokens"),
    *("val_loss_nats", "val_bits_per_byte", "report_loss_nats", "report_bits_per_byte", "tokens_per_sec"),
    *("peak_tensor_gib", "params_head", "commit", "device", "curve"),
)
"""`val`: the text of the run's own evaluations. `report`: the text given to the ladder. `peak_tensor_gib`: on a GPU, of
its allocator. `device`: the GPU, or cpu. `curve`: step:nats of `val`."""
PLACE = ("data", "body", "n_embd", "n_layer", "steps", "tokens")
"""What heads must have alike to be held against each other."""
KEY = (*PLACE, "head", "options", "grouping", "group_size", "seed", "lr")
"""What tells runs apart: a second run of the same replaces the first."""
JUDGED = ("val/loss", "val/bits_per_byte")
REPORT = ("report_loss_nats", "report_bits_per_byte")
LEVEL = 0.95


def ladder_rows(folders: list[Path], report: Path | None, data: str | None = None) -> list[Row]:
    """Return a row per complete run below `folders`.

    Args:
        folders: of runs.
        report: a text to judge them on; None leaves its columns empty.
        data: what to call their text; None is the config's own name for it.

    Raises:
        RunFolderError, CheckpointError, DataError: no runs, no checkpoint in one of them, no such text.
    """
    complete = [row for row in collect_runs(folders) if row["state"] == COMPLETE]
    if not complete:
        raise RunFolderError(f"no complete run in {', '.join(map(str, folders))}: `gvc ls` shows their states")
    return [ladder_row(row, report, data) for row in complete]


def ladder_row(row: Row, report: Path | None, data: str | None) -> Row:
    """Return the ladder's row of one run."""
    run = Path(row["run"])
    config = load_config(run)
    judged = judge_on(run, config, report, row["trainer/step"]) if report else {}
    return {
        "data": data or row["data"],
        "body": config.model.body,
        "n_embd": config.model.n_embd,
        "n_layer": config.model.n_layer,
        "head": row["head"],
        "options": " ".join(filter(None, [row["head_options"], vocabulary(config)])),
        "grouping": row["grouping"],
        "group_size": row["group_size"],
        "seed": config.seed,
        "lr": config.optim.lr,
        "steps": row["trainer/step"],
        "tokens": row["trainer/tokens"],
        "val_loss_nats": row["val/loss"],
        "val_bits_per_byte": row["val/bits_per_byte"],
        "report_loss_nats": judged.get("val/loss"),
        "report_bits_per_byte": judged.get("val/bits_per_byte"),
        "tokens_per_sec": row.get("throughput/tokens_per_sec"),
        "peak_tensor_gib": peak_memory_gib(row),
        "params_head": row.get("params/head"),
        "commit": str(row.get("commit") or "")[:7],
        "device": RunFolder(run).read_environment().get("gpu") or "cpu",
        "curve": curve(run),
    }


def vocabulary(config: Config) -> str:
    """Return the vocabulary where it is not GPT-2's: losses per token compare only where it is the same."""
    name = config.tokenizer.name
    return {"gpt2": "", "bpe": f"bpe={config.tokenizer.vocab_size}"}.get(name, f"tokenizer={name}")


def vocabulary_of(row: Row) -> str:
    """Return the `vocabulary` that a row's options name."""
    found = re.search(r"\b(bpe|tokenizer)=\S+", row["options"])
    return found[0] if found else ""


def judge_on(run: Path, config: Config, report: Path, step: int) -> dict[str, float]:
    """Return the figures of the checkpoint at `step` on another text; they are kept in the run folder.

    Raises:
        DataError: there is no such text.
    """
    if not report.is_file():
        raise DataError(f"--report: there is no file {report}")
    kept = run / f"ladder-{file_sha256(report)[:16]}-{step}.json"
    with contextlib.suppress(OSError, ValueError):  # measured anew, then
        found = json.loads(kept.read_text(encoding="utf-8"))
        return {key: float(found[key]) for key in JUDGED}
    data = replace(config.data, name="text", source="text", train=str(report), valid=str(report))
    config = replace(config, data=data, tokenizer=own_tokenizer(run, config.tokenizer))
    device = resolve_device(config.train.device)
    set_threads(config.train.threads)
    model, _ = load_model(run, config, device)
    split = prepare_split(config.data, config.tokenizer, "valid")
    batch_size = config.train.eval_batch_size or config.train.micro_batch_size
    windows = ValidWindows(split.tokens(), config.model.block_size, batch_size)
    figures = validate(model, windows, split.text_bytes, device, config.train.dtype)
    with contextlib.suppress(OSError):  # a run that may only be read
        write_text(kept, json.dumps({key: figures[key] for key in JUDGED}))
    return figures


def curve(run: Path) -> str:
    """Return the validation losses along a run, "100:4.9131 200:4.4020"."""
    with contextlib.suppress(FileNotFoundError), (run / "metrics.jsonl").open("rb") as file:
        rows = [row for row in whole_rows(file) if isinstance(row.get("val/loss"), float)]
        return " ".join(f"{row['trainer/step']}:{row['val/loss']:.4f}" for row in rows)
    return ""


def merge_rows(path: Path, rows: Sequence[Row]) -> list[Row]:
    """Put rows into the CSV at `path`, in place of those of the same runs, and return all of them as text.

    A run that was judged on a report text keeps those figures where the new row has none.

    Raises:
        DataError: there is something else at `path`.
        DiskError: it cannot be written.
    """
    with disk_errors(path.parent), FileLock(path.with_suffix(".lock")):
        found = {key_of(row): row for row in read_rows(path)}
        for row in rows:
            new, old = text_row(row), found.get(key_of(row), {})
            same = old.get("val_loss_nats") == new["val_loss_nats"]
            found[key_of(row)] = new | {key: old[key] for key in REPORT if same and not new[key]}
        merged = sorted(found.values(), key=lambda row: [natural(row.get(key, "")) for key in KEY])
        write_text(path, csv_text(merged, COLUMNS))
    return merged


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a ladder's CSV, none where there is no file; older ones have fewer columns.

    Raises:
        DataError: it is no ladder, or a row of it is damaged.
    """
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            lacks = [key for key in ("head", "seed", "val_loss_nats") if key not in (reader.fieldnames or ())]
            if lacks:
                raise DataError(f"{path} is no ladder: it has no column {', '.join(lacks)}")
            rows = [dict.fromkeys(COLUMNS, "") | row for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a ladder: {error}") from error
    for number, row in enumerate(rows, 2):
        try:
            float(row["val_loss_nats"])
            for key in ("val_bits_per_byte", *REPORT):
                float(row[key] or 0)
            int(row["tokens"] or 0)
            for point in row["curve"].split():
                step, nats = point.split(":")
                int(step), float(nats)
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}, row {number} is damaged: {error}") from error
    return rows


def key_of(row: Row) -> tuple[str, ...]:
    """Return what tells a run apart, whether its values are text or not."""
    return tuple(as_text(row.get(key)) for key in KEY)


def text_row(row: Row) -> Row:
    """Return a row as the CSV has it."""
    return {key: as_text(row.get(key)) for key in COLUMNS}


def as_text(value: Any) -> str:
    """Return a value as it stands in the CSV: numbers with 6 digits, nothing for None."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def natural(text: str) -> tuple[int, float, str]:
    """Return what sorts numbers by size and before words."""
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A head on the ladder, over its seeds."""

    head: str
    """With all of its options, and its grouping."""
    settings: dict[str, str]
    """The same by name, the head's name as `name`."""
    lr: str
    seeds: int
    judged: bool
    """Whether its figures, and those that it is held against, are of the report text; else of `val`."""
    loss: float
    """Mean nats per token."""
    bits_per_byte: float
    """NaN where an older file does not say."""
    difference: float | None
    """Mean difference to the reference over the seeds that both have."""
    unit: str
    """Of the difference: `loss_nats`, or `bits_per_byte` where vocabularies differ."""
    low: float | None
    """95 % interval (paired t test over seeds); None with one seed."""
    high: float | None
    trend: list[tuple[float, float]]
    """(share of the run, mean difference in nats of `val`)."""
    tokens: int
    """Of the whole run."""


def standings(rows: list[Row], reference: str = "dense") -> list[Standing]:
    """Return heads of one body, text and length, best first, each at its `best_lr`.

    Args:
        rows: of `merge_rows`, all of one `PLACE`.
        reference: the head of which the best row of options is what others are held against, one with GPT-2's
            vocabulary and judged on the report text where there is one.
    """
    chosen = {name: best_lr(own) for name, own in by_head(rows).items()}

    def rank(name: str) -> tuple[str, bool, float]:
        own = chosen[name]
        return vocabulary_of(own[0]), not are_judged(own), mean_of(own, "loss_nats", are_judged(own))

    base = min((name for name, own in chosen.items() if own[0]["head"] == reference), key=rank, default=None)
    found = [standing(name, own, chosen[base] if base else []) for name, own in chosen.items()]
    return sorted(found, key=lambda entry: (math.isnan(entry.bits_per_byte), entry.bits_per_byte, entry.loss))


def short_names(found: Sequence[Standing]) -> dict[str, str]:
    """Return for each `head` its name, with the settings that more than half of those of that name have otherwise."""
    names = {}
    for entry in found:
        peers = [other.settings for other in found if other.settings["name"] == entry.settings["name"]]
        rare = [k for k, v in entry.settings.items() if 2 * sum(peer.get(k) == v for peer in peers) <= len(peers)]
        names[entry.head] = " ".join([entry.settings["name"], *(word_of(k, entry.settings[k]) for k in rare)])
    shared = [name for name, count in Counter(names.values()).items() if count > 1]  # where older rows say less
    return {head: head if name in shared else name for head, name in names.items()}


def word_of(key: str, value: str) -> str:
    """Return a setting in as few letters as tell it."""
    switch = {"true": key, "false": f"no {key}"}
    return switch.get(value, value if key == "grouping" else f"{key}={value}")


def by_head(rows: list[Row]) -> dict[str, list[Row]]:
    """Return rows by head with its options and grouping."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[" ".join(filter(None, [row["head"], row["options"], row["grouping"], row["group_size"]]))].append(row)
    return found


def settings_of(row: Row) -> dict[str, str]:
    """Return a row's head, options, grouping and group size by name."""
    options = dict(re.findall(r"(\w+)=(.*?)(?= \w+=|$)", row["options"].lower()))
    groups = {key: row[key] for key in ("grouping", "group_size") if row[key]}
    return {"name": row["head"]} | options | groups


def best_lr(rows: list[Row]) -> list[Row]:
    """Return the rows of the learning rate with the most seeds, of these the one with the least mean `val` loss."""
    rates: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        rates[row["lr"]].append(row)
    return min(rates.values(), key=lambda own: (-len(own), np.mean([float(row["val_loss_nats"]) for row in own])))


def are_judged(rows: Sequence[Row]) -> bool:
    """Return whether all rows have figures of the report text."""
    return all(row["report_loss_nats"] for row in rows)


def of(row: Row, unit: str, judged: bool) -> float:
    """Return the figure of the report text, or of the run's own validation text; NaN where it has none."""
    return float(row[f"{'report' if judged else 'val'}_{unit}"] or math.nan)


def mean_of(rows: Sequence[Row], unit: str, judged: bool) -> float:
    """Return the mean of `of` over rows."""
    return float(np.mean([of(row, unit, judged) for row in rows]))


def standing(name: str, rows: list[Row], base: list[Row]) -> Standing:
    """Return where one head stands against the reference's rows, on a text that all of them were judged on."""
    theirs = {row["seed"]: row for row in base}
    pairs = [(row, theirs[row["seed"]]) for row in rows if row["seed"] in theirs]
    judged = are_judged([*rows, *(other for _, other in pairs)])
    alike = not base or vocabulary_of(rows[0]) == vocabulary_of(base[0])
    unit = "loss_nats" if alike else "bits_per_byte"
    gaps = [of(row, unit, judged) - of(other, unit, judged) for row, other in pairs]
    low, high = paired_interval(gaps, LEVEL) or (None, None)
    return Standing(
        head=name,
        settings=settings_of(rows[0]),
        lr=rows[0]["lr"],
        seeds=len(rows),
        judged=judged,
        loss=mean_of(rows, "loss_nats", judged),
        bits_per_byte=mean_of(rows, "bits_per_byte", judged),
        difference=float(np.mean(gaps)) if gaps else None,
        unit=unit,
        low=low,
        high=high,
        trend=trend(pairs) if alike else [],
        tokens=int(rows[0]["tokens"] or 0),
    )


def trend(pairs: list[tuple[Row, Row]]) -> list[tuple[float, float]]:
    """Return (share of the run, mean difference in nats) at the steps at which all were evaluated."""
    curves = [[dict(point.split(":") for point in row["curve"].split()) for row in pair] for pair in pairs]
    shared = set.intersection(*(set(points) for pair in curves for points in pair)) if curves else set()
    last = max((int(step) for step in shared), default=1)
    return [
        (int(step) / last, float(np.mean([float(own[step]) - float(other[step]) for own, other in curves])))
        for step in sorted(shared, key=int)
    ]
