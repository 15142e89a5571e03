"""The leaderboard of heads: one row per run, and the differences to the best dense head over seeds.

Learning rates and heads are chosen by the validation text of the runs. The reported figures come from another text, the
report text, so that no choice was made on it.
"""

import contextlib
import csv
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock

from grouped_lm.config import Config, ModelConfig
from grouped_lm.data import prepare_split
from grouped_lm.data.sources.text_files import file_sha256
from grouped_lm.errors import ConfigError, DataError, GvcError, RunFolderError, disk_errors
from grouped_lm.evaluate.counts import counts_tokens
from grouped_lm.evaluate.documents import DocumentLosses, document_losses
from grouped_lm.evaluate.significance import NOT_SHOWN, compare_paired, paired_interval
from grouped_lm.report.contest import SETTING, Place, notes_of
from grouped_lm.report.documents import Key, document_interval
from grouped_lm.report.texts import refuse_mixed_texts
from grouped_lm.runs.folder import COMPLETE, RunFolder
from grouped_lm.runs.identity import is_identity, iter_settings
from grouped_lm.runs.load import load_config, own_tokenizer
from grouped_lm.runs.query import Row
from grouped_lm.runs.table import collect_runs, run_labels, source_label, whole_rows
from grouped_lm.system.console import peak_memory_gib
from grouped_lm.system.files import write_text
from grouped_lm.system.phases import track
from grouped_lm.system.tables import Table, columns, csv_text, group_rows

LISTS = yaml.safe_load(files("grouped_lm.report").joinpath("columns.yaml").read_text(encoding="utf-8"))
COLUMNS = [*chain(*LISTS["leaderboard"])]
KEY = (*SETTING, "head", "options", "grouping", "group_size", "seed", "lr", "contest", "minutes", "threads", "machine")
"""Columns that identify a run. A second run with the same values replaces the first."""
REPORT = ("report_loss_nats", "report_bits_per_byte")
IN_COLUMNS = (
    *("seed", "model.name", "model.body", "model.n_embd", "model.n_layer", "grouping.name", "optim.lr"),
    *("train.max_steps", "train.auto_micro_batch", "train.threads", "prior.name", "prior.mix"),
)
"""Settings that have columns of their own, and those that rows never had. Head, data and tokenizer have columns too."""
CONFIDENCE = 0.95
SHOWN = "head; lr; seeds; nats; bits/byte = bits; minus best {} = gap; 95 % = interval"
SHOWN_TIMED = (
    "head; body; lr; seeds; M tokens = tokens; times seen = seen; bits/byte = bits; minus best {} = gap; "
    "95 % = interval"
)
SHOWN_DOCUMENTS = "; 95 % over documents = documents; within 0.01 = verdict"


def leaderboard_rows(
    folders: list[Path], report: Path | None, data: str | None = None
) -> tuple[list[Row], dict[Key, DocumentLosses]]:
    """Return one row per complete run below `folders`, and its losses on the documents of the report text.

    Of runs that are equal in `KEY` the last one counts. Runs that measured the speed for a contest have no row,
    nor have runs without a validation, such as imported ones.

    Args:
        folders: of runs.
        report: the report text; None leaves its columns empty.
        data: name for the text of the runs; None for the name in their config.

    Raises:
        RunFolderError: there is no complete run.
        ConfigError: runs of one place, or of one row, have different texts.
        CheckpointError: a run has no checkpoint.
        DataError: there is no such text.
    """
    measured = [row for row in collect_runs(folders) if row["state"] == COMPLETE and row.get("val/loss") is not None]
    complete = [row for row in measured if not notes_of(Path(row["run"])).get("measures_speed")]
    if not complete:
        raise RunFolderError(f"no complete run in {', '.join(map(str, folders))}: `gvc ls` shows their states")
    found = [(_row_of(run, data), Path(run["run"])) for run in complete]
    refuse_mixed_texts(found, KEY)
    rows, documents = {}, {}
    for (row, path), run in track(zip(found, complete, strict=True), "evaluating the runs", len(complete)):
        losses = document_losses(path, report, run["trainer/step"]) if report else None
        row |= {"report_loss_nats": losses and losses.loss, "report_bits_per_byte": losses and losses.bits_per_byte}
        row["report_text"] = report and f"{report.name} {file_sha256(report)[:8]}"
        rows[_key(row)] = row  # a repeated run is no second seed
        if losses is not None:
            documents[_key(row)] = losses
    return list(rows.values()), documents


def _row_of(row: Row, data: str | None) -> Row:
    """Return the leaderboard's row of one run, without figures of the report text."""
    run = Path(row["run"])
    config, environment, notes = load_config(run), RunFolder(run).read_environment(), notes_of(run)
    values = {column: row.get(key) for column, key in LISTS["from_run"].items()}
    values |= {key: getattr(config.model, key) for key in ("body", "n_embd", "n_layer")}
    return values | {
        "data": data or row["data"],
        "options": options_of(config),
        "seed": config.seed,
        "lr": None if counts_tokens(config) else config.optim.lr,
        "peak_tensor_gib": peak_memory_gib(row),
        "commit": str(row.get("commit") or "")[:7],
        "device": environment.get("gpu") or "cpu",
        "machine": environment.get("gpu") or f"{environment.get('cpu')}, {environment.get('cpu_count')} cores",
        "curve": _curve(run),
        "epochs": _epochs(run, config, row["trainer/tokens"]) if notes else None,
        **{key: notes.get(key) for key in ("contest", "minutes", "threads", "command")},
    }


def options_of(config: Config) -> str:
    """Return the options of the head, the vocabulary, and all other settings of a run that are not the usual ones."""
    tokenizer, labels = config.tokenizer.name, run_labels(config)
    names = {"gpt2": None, "bpe": f"bpe={config.tokenizer.vocab_size}"}
    options = [labels["head_options"], names.get(tokenizer, f"tokenizer={tokenizer}"), *_more_options(config)]
    return " ".join(filter(None, options))


def _more_options(config: Config) -> Iterator[str]:
    """Yield the settings that decide what a run computes, have no column, and are not the usual ones.

    Those of the body are the usual ones of its shape, so that the bodies of conf/model have no options.
    """
    usual = {path: value for path, _, value in iter_settings(Config())}
    usual |= _usual_body(config.model.body, config.model.n_embd, config.model.n_layer)
    for path, spec, value in iter_settings(config):
        elsewhere = path in IN_COLUMNS or path.startswith(("head.", "data.", "tokenizer."))
        if not is_identity(spec) or elsewhere or (path.startswith("prior.") and not config.prior.is_on):
            continue
        if value != usual.get(path, spec.default):
            yield f"{path}={source_label(config) if path == 'init_from' else value}"


@cache
def _usual_body(body: str, n_embd: int, n_layer: int) -> dict[str, Any]:
    """Return the settings, but for block_size, of the first preset of conf/model with this shape, or the defaults."""
    folder = files("grouped_lm.conf") / "model"
    presets = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(folder.iterdir(), key=str))
    shaped = (one for one in presets if one and (one["body"], one["n_embd"], one["n_layer"]) == (body, n_embd, n_layer))
    usual = ModelConfig(**next(shaped, {}))
    return {path: value for path, _, value in iter_settings(usual, "model.") if path != "model.block_size"}


def _epochs(run: Path, config: Config, tokens: int) -> float | None:
    """Return how often a run has seen its training text; None where that text is not there any more."""
    with contextlib.suppress(GvcError):
        return tokens / prepare_split(config.data, own_tokenizer(run, config.tokenizer), "train").target_tokens
    return None


def _vocabulary_in(row: Row) -> str:
    """Return the vocabulary that a row's options name, "" for GPT-2's. Losses per token are compared within one."""
    match = re.search(r"\b(bpe|tokenizer)=\S+", row["options"])
    return match[0] if match else ""


def _curve(run: Path) -> str:
    """Return the validation losses during a run, such as "100:4.9131 200:4.4020"."""
    with contextlib.suppress(FileNotFoundError), RunFolder(run).metrics.open("rb") as file:
        rows = [row for row in whole_rows(file) if isinstance(row.get("val/loss"), float)]
        return " ".join(f"{row['trainer/step']}:{row['val/loss']:.4f}" for row in rows)
    return ""


def merge_rows(path: Path, rows: Sequence[Row]) -> list[Row]:
    """Write rows into the CSV at `path`, in place of those of the same runs, and return all rows as text.

    A run keeps its figures of a report text if the new row has none.

    Raises:
        ConfigError: a row has other losses and another report text than before: it belongs to another text.
        DataError: the file is not a leaderboard.
        DiskError: it cannot be written.
    """
    with disk_errors(path.parent), FileLock(path.with_suffix(".lock")):
        merged = {_key(row): row for row in read_rows(path)}
        for row in map(text_row, rows):
            old = merged.get(_key(row), {})
            same = old.get("val_loss_nats") == row["val_loss_nats"]
            if not same and old.get("report_text") and row["report_text"] not in ("", old["report_text"]):
                raise ConfigError(
                    f"{path} has this row of {row['data']} with the report text {old['report_text']}, got "
                    f"{row['report_text']}: give --data NAME for another text, or another file to --csv"
                )
            kept = [key for key in (*REPORT, "report_text") if same and not row["report_loss_nats"]]
            merged[_key(row)] = row | {key: old[key] for key in kept}
        ordered = sorted(merged.values(), key=lambda row: [_natural(row.get(key, "")) for key in KEY])
        write_text(path, csv_text(ordered, COLUMNS))
    return ordered


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a leaderboard's CSV, none if there is no file. Columns may be missing.

    Raises:
        DataError: the file is not a leaderboard, or a row is damaged.
    """
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            lacks = [key for key in ("head", "seed", "val_loss_nats") if key not in (reader.fieldnames or ())]
            if lacks:
                raise DataError(f"{path} is no leaderboard: it has no column {', '.join(lacks)}")
            rows = [dict.fromkeys(COLUMNS, "") | row for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a leaderboard: {error}") from error
    for number, row in enumerate(rows, 2):
        try:
            float(row["val_loss_nats"])
            for key in ("val_bits_per_byte", *REPORT):
                float(row[key] or 0)
            int(row["tokens"] or 0)
            curve_points(row)
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}, row {number} is damaged: {error}") from error
    return rows


def curve_points(row: Row) -> dict[int, float]:
    """Return step -> nats of a row's curve."""
    pairs = (point.split(":") for point in row["curve"].split())
    return {int(step): float(nats) for step, nats in pairs}


def text_row(row: Row, keys: Sequence[str] = COLUMNS) -> Row:
    """Return a row as it is in the CSV: numbers with 6 digits, nothing for None."""
    known = {key: row.get(key) for key in keys}
    return {k: "" if v is None else f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in known.items()}


def _key(row: Row) -> Key:
    return tuple(text_row(row, KEY).values())


def _natural(text: str) -> tuple[int, float, str]:
    """Return a sort key: numbers by value, before words."""
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """The place of one head on the leaderboard, over its seeds."""

    head: str
    """Name with all options and the grouping."""
    settings: dict[str, str]
    """The options by name, and the head as `name`."""
    lr: str
    seeds: int
    on_report: bool
    """Whether the figures are of the report text; else they are of the validation text."""
    loss: float
    """Mean nats per token."""
    bits_per_byte: float
    """NaN if it is not known."""
    difference: float | None
    """Mean difference to the reference, over the seeds that both have."""
    unit: str
    """Unit of the difference: `loss_nats`, or `bits_per_byte` for different vocabularies."""
    low: float | None
    """95 % interval (paired t test over seeds); None with one seed."""
    high: float | None
    documents: tuple[float, float] | None
    """95 % interval (bootstrap over the documents of the report text); None if their losses are not known."""
    verdict: str
    """`on par` within 0.01 nats, `not on par`, or `not shown` (two one-sided t tests over seeds)."""
    trend: list[tuple[float, float]]
    """(share of the run, mean difference in nats on the validation text)."""
    tokens: int
    """Tokens of the whole run."""
    rows: list[Row]
    """The runs, one for each seed."""


def standings(
    rows: list[Row],
    reference: str = "dense",
    choice: Sequence[str] = ("lr",),
    losses: dict[Key, DocumentLosses] | None = None,
    timed: bool = False,
) -> list[Standing]:
    """Return the heads of one `Place`, best first, each with its `best_choice`.

    Args:
        rows: as `merge_rows` returns them, all of one place.
        reference: the head that others are compared with, in the variant with the best validation loss; several with
            commas. One without a prior, with GPT-2's vocabulary and figures of the report text goes first.
        choice: columns that were chosen for each head.
        losses: those of `read_documents`, by the rows' keys.
        timed: whether bits per byte are compared, as bodies and vocabularies differ.
    """
    variants = group_rows(rows, ("head", "options", "grouping", "group_size"))
    chosen = {" ".join(filter(None, variant)): best_choice(own, choice) for variant, own in variants.items()}

    def rank(name: str) -> tuple[bool, str, bool, float]:
        own, counts = chosen[name], "prior=" in chosen[name][0]["options"]
        return counts, _vocabulary_in(own[0]), not _have_report(own), float(_figures(own, "loss_nats", False).mean())

    exact = reference.split(",")
    base = min((name for name, own in chosen.items() if own[0]["head"] in exact), key=rank, default=None)
    others = chosen[base] if base else []
    entries = [_standing(name, own, others, losses or {}, timed) for name, own in chosen.items()]
    return sorted(entries, key=lambda entry: (math.isnan(entry.bits_per_byte), entry.bits_per_byte, entry.loss))


def short_names(entries: Sequence[Standing]) -> dict[str, str]:
    """Return a short name for each `head`: its name and the settings that most variants of that head do not have."""

    def name_of(entry: Standing, keys: Iterable[str]) -> str:
        return " ".join([entry.settings["name"], *(_short_setting(key, entry.settings[key]) for key in keys)])

    names = {}
    for entry in entries:
        peers = [other.settings for other in entries if other.settings["name"] == entry.settings["name"]]
        rare = [k for k, v in entry.settings.items() if 2 * sum(peer.get(k) == v for peer in peers) <= len(peers)]
        names[entry.head] = name_of(entry, rare)
    shared = [name for name, count in Counter(names.values()).items() if count > 1]
    whole = {entry.head: name_of(entry, (key for key in entry.settings if key != "name")) for entry in entries}
    return {head: whole[head] if name in shared else name for head, name in names.items()}


def _short_setting(key: str, value: str) -> str:
    return {"true": key, "false": f"no {key}"}.get(value, value if key == "grouping" else f"{key}={value}")


def _settings(row: Row) -> dict[str, str]:
    """Return a row's head, options, grouping and group size by name."""
    options = dict(re.findall(r"([\w.]+)=(.*?)(?= [\w.]+=|$)", row["options"].lower()))
    groups = {key: row[key] for key in ("grouping", "group_size") if row[key]}
    return {"name": row["head"]} | options | groups


def best_choice(rows: list[Row], choice: Sequence[str]) -> list[Row]:
    """Return the rows of the choice with most seeds; of several, the one with the best mean validation loss.

    Two rows of one seed, such as those of two contests, are one run: the one with figures of the report text counts.
    """

    def one_per_seed(own: list[Row]) -> list[Row]:
        found: dict[str, Row] = {}
        for row in sorted(own, key=lambda row: (not row["report_loss_nats"], row["contest"], row["commit"])):
            found.setdefault(row["seed"], row)
        return [row for row in own if row is found[row["seed"]]]

    rates = [one_per_seed(own) for own in group_rows(rows, tuple(choice)).values()]
    return min(rates, key=lambda own: (-len(own), np.mean([float(row["val_loss_nats"]) for row in own])))


def _have_report(rows: Sequence[Row]) -> bool:
    """Return whether all rows have figures of one report text."""
    return all(row["report_loss_nats"] for row in rows) and len({row["report_text"] for row in rows}) < 2


def _figures(rows: Sequence[Row], unit: str, on_report: bool) -> np.ndarray:
    """Return a figure of each row of the report text, or of the validation text; NaN where it is not known."""
    return np.array([float(row[f"{'report' if on_report else 'val'}_{unit}"] or math.nan) for row in rows])


def _standing(name: str, rows: list[Row], base: list[Row], losses: dict[Key, DocumentLosses], timed: bool) -> Standing:
    """Return the place of one head against the reference's rows, on a text for which all of them have figures."""
    base_by_seed = {row["seed"]: row for row in base}
    pairs = [(row, base_by_seed[row["seed"]]) for row in rows if row["seed"] in base_by_seed]
    own, others = [row for row, _ in pairs], [other for _, other in pairs]
    on_report = _have_report([*rows, *others])
    same_vocabulary = not base or _vocabulary_in(rows[0]) == _vocabulary_in(base[0])
    unit = "loss_nats" if same_vocabulary and not timed else "bits_per_byte"
    both = [(row, other) for row, other in pairs if _key(row) in losses and _key(other) in losses]
    known = [[losses[_key(pair[side])] for pair in both] for side in (1, 0)]
    gaps = (_figures(own, unit, on_report) - _figures(others, unit, on_report)).tolist()
    low, high = paired_interval(gaps, CONFIDENCE) or (None, None)
    return Standing(
        head=name,
        settings=_settings(rows[0]),
        lr=rows[0]["lr"],
        seeds=len(rows),
        on_report=on_report,
        loss=float(_figures(rows, "loss_nats", on_report).mean()),
        bits_per_byte=float(_figures(rows, "bits_per_byte", on_report).mean()),
        difference=float(np.mean(gaps)) if gaps else None,
        unit=unit,
        low=low,
        high=high,
        documents=document_interval(known[0], known[1], unit) if on_report and rows is not base else None,
        verdict=compare_paired(gaps).verdict if gaps and unit == "loss_nats" and rows is not base else NOT_SHOWN,
        trend=_trend(pairs) if same_vocabulary and not timed else [],
        tokens=int(rows[0]["tokens"] or 0),
        rows=rows,
    )


def _trend(pairs: list[tuple[Row, Row]]) -> list[tuple[float, float]]:
    """Return (share of the run, mean difference in nats) at the steps that all curves have."""
    curves = [(curve_points(own), curve_points(other)) for own, other in pairs]
    steps = sorted(set.intersection(*(set(points) for pair in curves for points in pair))) if curves else []
    return [(step / max(steps), float(np.mean([own[step] - other[step] for own, other in curves]))) for step in steps]


def standings_table(place: Place, entries: Sequence[Standing], reference: str) -> Table:
    """Return the leaderboard of one place as a table for a terminal."""
    partly = len({entry.on_report for entry in entries}) == 2
    notes = ["loss on the --report text if there is one", "b: bits per byte"]
    notes += ["*: of the runs' own validation text"] if partly else []
    names, rows = short_names(entries), []
    for entry in entries:
        row = _table_row(entry, "*" if partly and not entry.on_report else "") | {"head": names[entry.head]}
        rows.append(row)
    shown = (SHOWN_TIMED if place.timed else SHOWN).format(reference.replace(",", " or "))
    if any(entry.documents for entry in entries):
        shown += SHOWN_DOCUMENTS
    if not place.timed:
        shown += "; along training = along"
        notes.append("along training: of the runs' validation text")
    return Table(columns=columns(shown), rows=rows, title=place.title, note="; ".join(notes), missing="")


def _table_row(entry: Standing, mark: str) -> Row:
    unit, first = "" if entry.unit == "loss_nats" else " b", entry.rows[0]
    row: Row = {"lr": entry.lr, "seeds": entry.seeds, "nats": f"{entry.loss:.4f}{mark}"}
    row["body"], row["tokens"] = f"{first.get('n_embd')}x{first.get('n_layer')}", f"{entry.tokens / 1e6:.2f}"
    row["seen"] = f"{float(first['epochs']):.2g}" if first.get("epochs") else None
    row["bits"] = None if math.isnan(entry.bits_per_byte) else f"{entry.bits_per_byte:.4f}"
    row["gap"] = None if entry.difference is None else f"{entry.difference:+.3f}{unit}"
    if entry.low is not None:
        row["interval"] = f"{entry.low:+.3f} to {entry.high:+.3f}{unit}"
    if entry.documents is not None:
        row["documents"] = "{:+.3f} to {:+.3f}".format(*entry.documents) + unit
        row["verdict"] = entry.verdict if entry.unit == "loss_nats" else None
    points = entry.trend[:: -max(1, len(entry.trend) // 4)][::-1]  # the last one is always shown
    return row | {"along": " ".join(f"{gap:+.3f}" for _, gap in points)}
