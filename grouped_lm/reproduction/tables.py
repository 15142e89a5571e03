"""The tables of the report: verdicts, methods over seeds, loss by frequency, benches, where it was run."""

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from itertools import chain
from typing import Any

import yaml

from grouped_lm.evaluate.significance import compare_methods
from grouped_lm.reproduction.claims import Claims, Method
from grouped_lm.reproduction.cost_rules import PAIRED, in_chunks, pairs_alike
from grouped_lm.reproduction.evidence import BENCHES, Evidence, Row
from grouped_lm.reproduction.gaps import describe_trends, gaps_of
from grouped_lm.reproduction.rules import Answer
from grouped_lm.reproduction.verdicts import ANY_TEXT, Setting, Verdict, pair_runs, runs_in
from grouped_lm.runs.folder import COMPLETE
from grouped_lm.system.tables import Column, Table, columns, group_rows

DEFINITIONS = yaml.safe_load(files("grouped_lm.reproduction").joinpath("tables.yaml").read_text(encoding="utf-8"))
FAMILIES = {"gpt2": "GPT-2", "gpt_neo": "GPT-Neo"}
"""Bodies of the paper's two families, and how they are called."""
MAIN = ("dense", "paper", "film", "ours")
PAPER_SAYS = {"dense": "the standard", "paper": "on par, up to 3.4x less memory, up to 3x as fast"}


def make_table(
    name: str, rows: Iterable[Row], note: str = "", added: Sequence[Column] = (), place: int | None = None
) -> Table:
    """Return a table as `tables.yaml` defines it, with the columns `added` at a place, by default at the end."""
    entry = DEFINITIONS[name]
    shown = [*columns(entry["columns"])]
    shown = [*shown[:place], *added, *(shown[place:] if place else ())]
    note = note or entry.get("note", "")
    return Table(name=name, title=entry["title"], columns=shown, rows=list(rows), note=note)


def verdicts_table(answers: list[Answer]) -> Table:
    """Return one row per claim, in the order of the file."""
    rows: list[Row] = []
    for answer in answers:
        claim, ours = answer.claim, answer.ours
        row: Row = {key: getattr(claim, key) for key in ("id", "kind", "says", "quote", "source", "threshold")}
        row |= _cells(answer.verdict, ("word", "figure", "interval", "value", "low", "high", "why"))
        row["ours"] = ours and (ours.text if ours.figure == "-" else f"{ours.text}; {ours.figure}")
        row |= {f"ours_{key}": value for key, value in _cells(ours, ("value", "low", "high", "why")).items()}
        rows.append(row | {"steps": ", ".join(claim.runs)})
    return make_table("verdicts", rows)


def _cells(verdict: Verdict | None, keys: Sequence[str]) -> Row:
    """Return a verdict as cells of a row; all are None if there is none."""
    if verdict is None:
        return dict.fromkeys(("verdict", *keys, "runs"))
    return {"verdict": verdict.text} | {key: getattr(verdict, key) for key in keys} | {"runs": "; ".join(verdict.runs)}


def main_settings(claims: Claims, evidence: Evidence, body: str | None = None) -> list[Setting]:
    """Return the settings that have runs of dense and of another method, the one with most runs and tokens first."""
    dense = claims.methods["dense"]
    pairs = [
        pair_runs(evidence, dense, claims.methods[name], text, body)
        for name in ("paper", "ours", "film", "full_layers", "class_full")
        for text in (None, ANY_TEXT)
    ]
    return list(dict.fromkeys(pair.setting for pair in pairs if pair is not None))


def method_rows(claims: Claims, evidence: Evidence, setting: Setting, names: Iterable[str]) -> Iterator[Row]:
    """Yield the means over seeds of each method that has runs in a setting, with its name as `method`."""
    dense = runs_in(evidence, claims.methods["dense"], setting)
    for name in names:
        runs = runs_in(evidence, claims.methods[name], setting)
        if runs and name != "any_size":
            yield {"method": name} | method_row(claims.methods[name], runs, dense)


def families_table(claims: Claims, evidence: Evidence) -> Table:
    """Return the main methods for both families, beside the claims of the paper."""
    rows: list[Row] = []
    for body, family in FAMILIES.items():
        for setting in main_settings(claims, evidence, body)[:1]:
            for row in method_rows(claims, evidence, setting, MAIN):
                label = {"family": family, "paper_says": PAPER_SAYS.get(row.pop("method"))}
                rows.append(label | {"setting": f"after {setting.describe()}"} | row)
    settings = "; ".join(dict.fromkeys(f"{row['family']} {row['setting']}" for row in rows))
    return make_table("families", rows, f"{settings}. Of its head the paper says: {PAPER_SAYS['paper']}.")


def method_row(method: Method, runs: dict[int, Row], dense: dict[int, Row]) -> Row:
    """Return the means of one method over seeds, and its difference to the dense runs of the same setting."""

    def mean(rows: Iterable[Row], key: str) -> float | None:
        values = [row[key] for row in rows if row.get(key) is not None]
        return statistics.fmean(values) if values else None

    losses = [row["val/loss"] for _, row in sorted(runs.items())]
    row: Row = {
        "head": method.name + (" (in chunks)" if any(map(in_chunks, runs.values())) else ""),
        "seeds": len(runs),
        "perplexity": mean(runs.values(), "val/perplexity"),
        "loss": statistics.fmean(losses),
        "loss_sd": statistics.stdev(losses) if len(losses) > 1 else None,
        "bits_per_byte": mean(runs.values(), "val/bits_per_byte"),
        "tokens_per_sec": mean(runs.values(), "throughput/tokens_per_sec"),
        "peak_gib": mean(runs.values(), "memory/peak"),
        "runs": "; ".join(str(r["run"]) for _, r in sorted(runs.items())),
    }
    if not dense or method.match["head"] == "dense":
        return row
    gap = compare_methods([r["val/loss"] for _, r in sorted(dense.items())], losses)
    row |= {"over_dense": gap.difference, "low": gap.low, "high": gap.high}
    row["interval"] = "one seed" if gap.low is None else f"{gap.low:+.3f} to {gap.high:+.3f}"
    pairs = pairs_alike(dense.values(), runs.values())
    alike = max(pairs, key=lambda pair: min(map(len, pair)), default=([], []))
    speed, own_speed = (mean(rows, "throughput/tokens_per_sec") for rows in alike)
    peak, own_peak = (mean(rows, "memory/peak") for rows in alike)
    if speed and own_speed:
        row["speed_ratio"] = own_speed / speed
    if peak and own_peak:
        row["memory_ratio"] = (own_peak / peak) ** -1
    return row


def methods_table(claims: Claims, evidence: Evidence) -> Table:
    """Return every method that has runs, in every setting that has a dense run."""
    rows: list[Row] = []
    for setting in main_settings(claims, evidence):
        label = {"model": setting.model, "data": setting.data, "tokens": setting.tokens}
        for row in method_rows(claims, evidence, setting, claims.methods):
            row.pop("method")
            rows.append(label | {"millions": setting.tokens / 1e6} | row)
    return make_table("methods", rows)


def deciles_table(claims: Claims, evidence: Evidence) -> Table:
    """Return the loss by training frequency, one column per method, means over seeds."""
    setting = next(iter(main_settings(claims, evidence)), None)
    rows: dict[str, Row] = {}
    added = []
    for name in MAIN:
        runs = runs_in(evidence, claims.methods[name], setting) if setting else {}
        names = {run["run"] for run in runs.values()}
        own = group_rows((row for row in evidence["deciles"] if row["run"] in names), ("decile",))
        for (decile,), group in own.items():
            rows.setdefault(decile, {"decile": decile, "tokens": group[0]["tokens"]})
            rows[decile][name] = statistics.fmean(row["loss"] for row in group)
        added += [Column(claims.methods[name].name, name, "{:.3f}")] if own else []
    note = f"nats per token, means over seeds, after {setting.describe()}" if setting else ""
    return make_table("deciles", rows.values(), note, added)


def gaps_table(claims: Claims, evidence: Evidence) -> Table:
    """Return one row per number of training tokens, one column per method."""
    setting = next(iter(main_settings(claims, evidence)), None)
    gaps = list(gaps_of(claims, evidence, setting)) if setting else []
    points = sorted(set(chain.from_iterable(gap.gaps for gap in gaps)))
    rows: list[Row] = [
        {"tokens": n, "millions": n / 1e6} | {gap.method: gap.gaps[n] for gap in gaps if n in gap.gaps} for n in points
    ]
    added = [Column(gap.name, gap.method, "{:+.3f}") for gap in gaps]
    note = f"after {setting.describe()}: {describe_trends(gaps)}" if setting and gaps else ""
    return make_table("gaps", rows, note, added)


def memory_claim_table(evidence: Evidence) -> Table:
    """Return the predicted ratios, dense over a compressed head, one column per batch."""
    claims = [row for row in evidence["bench-memory"] if row.get("part") == "claim"]
    rows = []
    for group in group_rows(claims, ("model", "attention", "head")).values():
        ratios = {f"batch_{row['micro_batch_size']}": row["memory_ratio"] for row in group}
        rows.append(group[0] | {"head": group[0].get("head", PAIRED)} | ratios)
    batches = sorted({row["micro_batch_size"] for row in claims})
    added = [Column(f"x less at B {batch}", f"batch_{batch}", "{:.2f}") for batch in batches]
    return make_table("memory-claim", rows, added=added, place=3)


def environments_table(evidence: Evidence) -> Table:
    """Return one row per environment, with the number of runs or rows from it."""
    counts: Counter[tuple[tuple[str, Any], ...]] = Counter()
    for row in evidence["environments"]:
        counts[tuple((key, value) for key, value in row.items() if key != "run")] += 1
    keys = {"commit": "commit", "cpu": "machine", "threads": "threads", "torch": "torch"}
    for row in (row for name in BENCHES for row in evidence[name]):
        counts[tuple((key, row.get(source)) for key, source in keys.items())] += 1
    rows = []
    for key, count in sorted(counts.items(), key=str):
        row = dict(key) | {"count": count}
        if row.get("commit"):
            changed = "+" if row["commit"].endswith("+") else ""  # the tree had changes
            rows.append(row | {"short_commit": row["commit"][:12] + changed})
    return make_table("environments", rows)


def all_tables(claims: Claims, evidence: Evidence, answers: list[Answer]) -> dict[str, Table]:
    """Return every table that has rows, by name. Those with a `source` show rows of the evidence as they are."""
    tables = [
        verdicts_table(answers),
        families_table(claims, evidence),
        methods_table(claims, evidence),
        gaps_table(claims, evidence),
        deciles_table(claims, evidence),
        memory_claim_table(evidence),
        environments_table(evidence),
        make_table("broken", (row for row in evidence["runs"] if row.get("state") != COMPLETE)),
    ]
    for name, entry in DEFINITIONS.items():
        if "source" in entry:
            part = entry.get("part")
            tables.append(make_table(name, (r for r in evidence[entry["source"]] if part in (None, r.get("part")))))
    return {table.name: table for table in tables if table.rows}
