"""The tables of the report: verdicts, methods over seeds, loss by frequency, benches, where it was run."""

import statistics
from collections import Counter
from importlib.resources import files
from typing import Any

import yaml

from grouped_lm.evaluate.significance import compare_methods
from grouped_lm.reproduction.claims import Claims, Method
from grouped_lm.reproduction.cost_rules import PAIRED, in_chunks
from grouped_lm.reproduction.evidence import Evidence, Row
from grouped_lm.reproduction.rules import Answer
from grouped_lm.reproduction.verdicts import ANY_TEXT, Setting, Verdict, by_seed, pair_runs, settings_of
from grouped_lm.runs.folder import COMPLETE
from grouped_lm.system.tables import Column, Table, columns

FAMILIES = (("gpt2", "GPT-2"), ("gpt_neo", "GPT-Neo"))
"""Bodies of the paper's two families, and how they are called."""
PAPER_SAYS = {"dense": "the standard", "paper": "on par, up to 3.4x less memory, up to 3x as fast"}
VERDICT_COLUMNS = columns("claim = says; verdict; figure; interval; with our best head = ours; steps")
METHOD_COLUMNS = columns("""
    head; seeds; perplexity {:,.2f}; nats = loss {:.3f}; sd = loss_sd {:.3f}; over dense = over_dense {:+.3f}
    90 % interval = interval; bits/byte = bits_per_byte {:.3f}; tokens/s = tokens_per_sec {:,.0f}
    x dense = speed_ratio {:.1f}; peak GiB = peak_gib {:.3f}; x less = memory_ratio {:.2f}
""")
ENVIRONMENT_COLUMNS = columns("""
    commit = short_commit; processor = cpu; cores = cpu_count; threads; GPU = gpu; python; torch
    runs or rows = count {:,}
""")


def verdicts_table(answers: list[Answer]) -> Table:
    """Return one row per claim, in the order of the file."""
    rows: list[Row] = []
    for answer in answers:
        claim, verdict, ours = answer.claim, answer.verdict, answer.ours
        row: Row = {key: getattr(claim, key) for key in ("id", "kind", "says", "quote", "source", "threshold")}
        row |= {"verdict": verdict.text}
        row |= {key: getattr(verdict, key) for key in ("word", "figure", "interval", "value", "low", "high", "why")}
        row |= {"runs": "; ".join(verdict.runs), "ours": None, "ours_verdict": None}
        row |= dict.fromkeys(("ours_value", "ours_low", "ours_high", "ours_why", "ours_runs"))
        if ours is not None:
            row |= {"ours": _in_one_cell(ours), "ours_verdict": ours.text, "ours_runs": "; ".join(ours.runs)}
            row |= {f"ours_{key}": getattr(ours, key) for key in ("value", "low", "high", "why")}
        rows.append(row | {"steps": ", ".join(claim.runs)})
    return Table(name="verdicts", title="Verdicts", columns=VERDICT_COLUMNS, rows=rows)


def _in_one_cell(verdict: Verdict) -> str:
    """Return a verdict with its figure."""
    return verdict.text if verdict.figure == "-" else f"{verdict.text}; {verdict.figure}"


def main_settings(claims: Claims, evidence: Evidence, body: str | None = None) -> list[Setting]:
    """Return the settings that have runs of dense and of another method, the one with most runs and tokens first."""
    dense = claims.methods["dense"]
    pairs = [
        pair
        for name in ("paper", "ours", "film", "full_layers", "class_full")
        for text in (None, ANY_TEXT)
        if (pair := pair_runs(evidence, dense, claims.methods[name], text, body)) is not None
    ]
    return list(dict.fromkeys(pair.setting for pair in pairs))


def runs_in(evidence: Evidence, method: Method, setting: Setting) -> dict[int, Row]:
    """Return the complete runs of a method in a setting, by seed."""
    return by_seed(settings_of(evidence, method, ANY_TEXT, None).get(setting, []))


def families_table(claims: Claims, evidence: Evidence) -> Table:
    """Return dense, the paper's head and our best one for both families, beside the claims of the paper."""
    rows: list[Row] = []
    for body, family in FAMILIES:
        for setting in main_settings(claims, evidence, body)[:1]:
            dense = runs_in(evidence, claims.methods["dense"], setting)
            for name in ("dense", "paper", "ours"):
                runs = runs_in(evidence, claims.methods[name], setting)
                if runs:
                    label = {"family": family, "paper_says": PAPER_SAYS.get(name)}
                    label |= {"setting": f"after {setting.describe()}"}
                    rows.append(label | method_row(claims.methods[name], runs, dense))
    settings = "; ".join(dict.fromkeys(f"{row['family']} {row['setting']}" for row in rows))
    note = f"{settings}. Of its head the paper says: {PAPER_SAYS['paper']}."
    shown = [*columns("family"), *METHOD_COLUMNS]
    return Table(name="families", title="The two families", columns=shown, rows=rows, note=note)


def method_row(method: Method, runs: dict[int, Row], dense: dict[int, Row]) -> Row:
    """Return the means of one method over seeds, and its difference to the dense runs of the same setting."""

    def mean(rows: dict[int, Row], key: str) -> float | None:
        values = [row[key] for row in rows.values() if row.get(key) is not None]
        return statistics.fmean(values) if values else None

    losses = [row["val/loss"] for _, row in sorted(runs.items())]
    row: Row = {
        "head": method.name + (" (in chunks)" if any(map(in_chunks, runs.values())) else ""),
        "seeds": len(runs),
        "perplexity": mean(runs, "val/perplexity"),
        "loss": statistics.fmean(losses),
        "loss_sd": statistics.stdev(losses) if len(losses) > 1 else None,
        "bits_per_byte": mean(runs, "val/bits_per_byte"),
        "tokens_per_sec": mean(runs, "throughput/tokens_per_sec"),
        "peak_gib": mean(runs, "memory/peak"),
        "runs": "; ".join(str(r["run"]) for _, r in sorted(runs.items())),
    }
    if not dense or method.match["head"] == "dense":
        return row
    gap = compare_methods([r["val/loss"] for _, r in sorted(dense.items())], losses)
    row |= {"over_dense": gap.difference, "low": gap.low, "high": gap.high}
    row["interval"] = "one seed" if gap.low is None else f"{gap.low:+.3f} to {gap.high:+.3f}"
    speed, peak = mean(dense, "throughput/tokens_per_sec"), mean(dense, "memory/peak")
    if speed and row["tokens_per_sec"]:
        row["speed_ratio"] = row["tokens_per_sec"] / speed
    if peak and row["peak_gib"]:
        row["memory_ratio"] = (row["peak_gib"] / peak) ** -1
    return row


def methods_table(claims: Claims, evidence: Evidence) -> Table:
    """Return every method that has runs, in every setting that has a dense run."""
    rows: list[Row] = []
    for setting in main_settings(claims, evidence):
        dense = runs_in(evidence, claims.methods["dense"], setting)
        label = {"model": setting.model, "data": setting.data, "tokens": setting.tokens}
        label |= {"millions": setting.tokens / 1e6}
        for method in claims.methods.values():
            runs = runs_in(evidence, method, setting)
            if runs and method.key != "any_size":
                rows.append(label | method_row(method, runs, dense))
    shown = [*columns("text = data; body = model; M tokens = millions {:.3g}")]
    shown += [column for column in METHOD_COLUMNS if column.key not in ("perplexity", "bits_per_byte")]
    return Table(name="methods", title="Every head on the same body, text and budget", columns=shown, rows=rows)


def deciles_table(claims: Claims, evidence: Evidence) -> Table:
    """Return the loss by training frequency, one column per method, means over seeds."""
    setting = next(iter(main_settings(claims, evidence)), None)
    losses: dict[str, dict[str, list[float]]] = {}
    rows: dict[str, Row] = {}
    for name in ("dense", "paper", "ours"):
        runs = runs_in(evidence, claims.methods[name], setting) if setting else {}
        for run in runs.values():
            for row in evidence["deciles"]:
                if row["run"] == run["run"]:
                    rows.setdefault(row["decile"], {"decile": row["decile"], "tokens": row["tokens"]})
                    losses.setdefault(name, {}).setdefault(row["decile"], []).append(row["loss"])
    for name, by_decile in losses.items():
        for decile, values in by_decile.items():
            rows[decile][name] = statistics.fmean(values)
    shown = [*columns("training frequency = decile; targets = tokens {:,}")]
    shown += [Column(claims.methods[name].name, name, "{:.3f}") for name in losses]
    note = "nats per token, means over seeds" + (f", after {setting.describe()}" if setting else "")
    title = "Loss by how frequent the token is"
    return Table(name="deciles", title=title, columns=shown, rows=list(rows.values()), note=note)


def memory_claim_table(evidence: Evidence) -> Table:
    """Return the predicted ratios, dense over a compressed head, one column per batch."""
    rows: dict[tuple[Any, ...], Row] = {}
    batches = set()
    for row in evidence["bench-memory"]:
        if row.get("part") == "claim":
            key = tuple(row.get(name) for name in ("model", "attention", "head"))
            entry = rows.setdefault(key, row | {"head": row.get("head", PAIRED)})
            entry[f"batch_{row['micro_batch_size']}"] = row["memory_ratio"]
            batches.add(row["micro_batch_size"])
    shown = [*columns("body = model; attention; head")]
    shown += [Column(f"x less at B {batch}", f"batch_{batch}", "{:.2f}") for batch in sorted(batches)]
    shown += columns("""
        3.4x from B = batch_at_claim {:,}; at most = ratio_limit {:.2f}; x fewer FLOPs = flops_ratio {:.2f}
        with a free head = flops_cap {:.2f}
    """)
    title, note = (
        "Memory and FLOPs of a step, dense over a compressed head",
        "Predicted from shapes, windows of 512 tokens.",
    )
    return Table(name="memory-claim", title=title, columns=shown, rows=list(rows.values()), note=note)


def environments_table(evidence: Evidence) -> Table:
    """Return one row per environment, with the number of runs or rows from it."""
    counts: Counter[tuple[tuple[str, Any], ...]] = Counter()
    for row in evidence["environments"]:
        counts[tuple((key, value) for key, value in row.items() if key != "run")] += 1
    for name in (name for name in evidence if name.startswith("bench-")):
        for row in evidence[name]:
            keys = {"commit": "commit", "cpu": "machine", "threads": "threads", "torch": "torch"}
            counts[tuple((key, row.get(source)) for key, source in keys.items())] += 1
    rows = [
        dict(key) | {"count": count, "short_commit": _short_commit(str(dict(key)["commit"]))}
        for key, count in sorted(counts.items(), key=str)
        if dict(key).get("commit")
    ]
    return Table(name="environments", title="Where it was run", columns=ENVIRONMENT_COLUMNS, rows=rows)


def _short_commit(commit: str) -> str:
    """Return twelve characters of a commit, and a plus sign where the tree had changes."""
    return commit[:12] + ("+" if commit.endswith("+") else "")


def plain_tables(evidence: Evidence) -> list[Table]:
    """Return the tables that show rows of the evidence as they are, as `tables.yaml` defines them."""
    definitions = yaml.safe_load(files("grouped_lm.reproduction").joinpath("tables.yaml").read_text(encoding="utf-8"))
    tables = []
    for name, definition in definitions.items():
        source, part, shown = (definition.pop(key, None) for key in ("source", "part", "columns"))
        rows = [row for row in evidence[source] if part in (None, row.get("part"))]
        tables.append(Table(name=name, columns=columns(shown), rows=rows, **definition))
    return tables


def failed_table(evidence: Evidence) -> Table:
    """Return the runs that are not complete, with their reasons."""
    rows = [row for row in evidence["runs"] if row.get("state") != COMPLETE]
    shown = columns("run; state; reason; step = trainer/step {:,}")
    return Table(name="broken", title="Runs that are not complete", columns=shown, rows=rows)


def all_tables(claims: Claims, evidence: Evidence, answers: list[Answer]) -> dict[str, Table]:
    """Return every table that has rows, by name."""
    tables = [
        verdicts_table(answers),
        families_table(claims, evidence),
        methods_table(claims, evidence),
        deciles_table(claims, evidence),
        memory_claim_table(evidence),
        *plain_tables(evidence),
        environments_table(evidence),
        failed_table(evidence),
    ]
    return {table.name: table for table in tables if table.rows}
