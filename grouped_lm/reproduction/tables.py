"""Tables of the report that are computed: verdicts, methods over seeds, loss by frequency, where it was run."""

import statistics
from typing import Any

from grouped_lm.evaluate.significance import compare_methods
from grouped_lm.reproduction.claims import Claims, Method
from grouped_lm.reproduction.cost_rules import PAIRED, in_chunks
from grouped_lm.reproduction.evidence import Evidence, Row
from grouped_lm.reproduction.table import PLAIN, Column, Table
from grouped_lm.reproduction.verdicts import ANY_TEXT, Answer, Setting, Verdict, by_seed, pair_runs, settings_of

VERDICT_COLUMNS: tuple[Column, ...] = (
    ("claim", "says", "{}"),
    ("verdict", "verdict", "{}"),
    ("figure", "figure", "{}"),
    ("interval", "interval", "{}"),
    ("with our best head", "ours", "{}"),
    ("steps", "steps", "{}"),
)


def verdicts_table(answers: list[Answer]) -> Table:
    """Return a row per claim, in the order of the file."""
    rows: list[Row] = []
    for answer in answers:
        claim, verdict, ours = answer.claim, answer.verdict, answer.ours
        rows.append(
            {
                "id": claim.id,
                "kind": claim.kind,
                "says": claim.says,
                "quote": claim.quote,
                "source": claim.source,
                "threshold": claim.threshold,
                "verdict": verdict.text,
                "word": verdict.word,
                "figure": verdict.figure,
                "interval": verdict.interval,
                "value": verdict.value,
                "low": verdict.low,
                "high": verdict.high,
                "why": verdict.why,
                "runs": "; ".join(verdict.runs),
                "ours": None if ours is None else short(ours),
                "ours_verdict": None if ours is None else ours.text,
                "ours_value": None if ours is None else ours.value,
                "ours_low": None if ours is None else ours.low,
                "ours_high": None if ours is None else ours.high,
                "ours_why": None if ours is None else ours.why,
                "ours_runs": None if ours is None else "; ".join(ours.runs),
                "steps": ", ".join(claim.runs),
            }
        )
    return Table(name="verdicts", title="Verdicts", columns=VERDICT_COLUMNS, rows=rows)


def short(verdict: Verdict) -> str:
    """Return a verdict and its figure in one cell."""
    return verdict.text if verdict.figure == "-" else f"{verdict.text}; {verdict.figure}"


FAMILIES = (("gpt2", "GPT-2"), ("gpt_neo", "GPT-Neo"))


def main_settings(claims: Claims, evidence: Evidence, body: str | None = None) -> list[Setting]:
    """Return the settings with a dense run and another method's, the one with most behind it first."""
    dense = claims.methods["dense"]
    pairs = [
        pair
        for name in ("paper", "ours", "film", "full_layers", "class_full")
        for text in (None, ANY_TEXT)
        if (pair := pair_runs(evidence, dense, claims.methods[name], text, body)) is not None
    ]
    return list(dict.fromkeys(pair.setting for pair in pairs))


def runs_in(evidence: Evidence, method: Method, setting: Setting) -> dict[int, Row]:
    """Return a method's complete runs in a setting, by seed."""
    return by_seed(settings_of(evidence, method, ANY_TEXT, None).get(setting, []))


def families_table(claims: Claims, evidence: Evidence) -> Table:
    """Return both families, dense, the paper's head and ours, each beside what the paper says of it."""
    rows: list[Row] = []
    for body, family in FAMILIES:
        for setting in main_settings(claims, evidence, body)[:1]:
            dense = runs_in(evidence, claims.methods["dense"], setting)
            for name in ("dense", "paper", "ours"):
                runs = runs_in(evidence, claims.methods[name], setting)
                if runs:
                    label = {
                        "family": family,
                        "paper_says": PAPER_SAYS.get(name),
                        "setting": f"after {setting.describe()}",
                    }
                    rows.append(label | method_row(claims.methods[name], runs, dense))
    return Table(
        name="families",
        title="The two families",
        columns=(
            ("family", "family", "{}"),
            *METHOD_COLUMNS,
        ),
        rows=rows,
        note="; ".join(dict.fromkeys(f"{row['family']} {row['setting']}" for row in rows))
        + f". Of its head the paper says: {PAPER_SAYS['paper']}.",
    )


PAPER_SAYS = {"dense": "the standard", "paper": "on par, up to 3.4x less memory, up to 3x as fast"}
METHOD_COLUMNS: tuple[Column, ...] = (
    ("head", "head", "{}"),
    ("seeds", "seeds", "{}"),
    ("perplexity", "perplexity", "{:,.2f}"),
    ("nats", "loss", "{:.3f}"),
    ("sd", "loss_sd", "{:.3f}"),
    ("over dense", "over_dense", "{:+.3f}"),
    ("90 % interval", "interval", "{}"),
    ("bits/byte", "bits_per_byte", "{:.3f}"),
    ("tokens/s", "tokens_per_sec", "{:,.0f}"),
    ("x dense", "speed_ratio", "{:.1f}"),
    ("peak GiB", "peak_gib", "{:.3f}"),
    ("x less", "memory_ratio", "{:.2f}"),
)


def method_row(method: Method, runs: dict[int, Row], dense: dict[int, Row]) -> Row:
    """Return one method's means over seeds, and how it stands to dense runs of the same setting."""

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
    found = compare_methods([r["val/loss"] for _, r in sorted(dense.items())], losses)
    row |= {"over_dense": found.difference, "low": found.low, "high": found.high}
    row["interval"] = "one seed" if found.low is None else f"{found.low:+.3f} to {found.high:+.3f}"
    for ratio, key, sign in (("speed_ratio", "tokens_per_sec", 1), ("memory_ratio", "peak_gib", -1)):
        base = mean(dense, {"tokens_per_sec": "throughput/tokens_per_sec", "peak_gib": "memory/peak"}[key])
        if base and row[key]:
            row[ratio] = (row[key] / base) ** sign
    return row


def methods_table(claims: Claims, evidence: Evidence) -> Table:
    """Return every method that has runs, in every setting with a dense run."""
    rows: list[Row] = []
    for setting in main_settings(claims, evidence):
        dense = runs_in(evidence, claims.methods["dense"], setting)
        for method in claims.methods.values():
            runs = runs_in(evidence, method, setting)
            if runs and method.key != "any_size":
                rows.append(
                    {
                        "model": setting.model,
                        "data": setting.data,
                        "tokens": setting.tokens,
                        "millions": setting.tokens / 1e6,
                    }
                    | method_row(method, runs, dense)
                )
    columns: tuple[Column, ...] = (
        ("text", "data", "{}"),
        ("body", "model", "{}"),
        ("M tokens", "millions", "{:.3g}"),
        *METHOD_COLUMNS[:2],
        *METHOD_COLUMNS[3:7],
        *METHOD_COLUMNS[8:],
    )
    return Table(name="methods", title="Every head on the same body, text and budget", columns=columns, rows=rows)


def deciles_table(claims: Claims, evidence: Evidence) -> Table:
    """Return loss by training frequency, a column per method, means over seeds."""
    setting = next(iter(main_settings(claims, evidence)), None)
    by_run: dict[str, list[Row]] = {}
    for row in evidence["deciles"]:
        by_run.setdefault(row["run"], []).append(row)
    rows: dict[str, Row] = {}
    names = []
    for name in ("dense", "paper", "ours"):
        method = claims.methods[name]
        for run in runs_in(evidence, method, setting).values() if setting else []:
            for row in by_run.get(run["run"], []):
                rows.setdefault(row["decile"], {"decile": row["decile"], "tokens": row["tokens"]}).setdefault(
                    name, []
                ).append(row["loss"])
                names.append(name)
    shown: list[Row] = [
        {k: statistics.fmean(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows.values()
    ]
    columns = [("training frequency", "decile", "{}"), ("targets", "tokens", "{:,}")]
    columns += [(claims.methods[name].name, name, "{:.3f}") for name in dict.fromkeys(names)]
    return Table(
        name="deciles",
        title="Loss by how frequent the token is",
        columns=tuple(columns),
        rows=shown,
        note="nats per token, means over seeds" + (f", after {setting.describe()}" if setting else ""),
    )


def memory_claim_table(evidence: Evidence) -> Table:
    """Return predicted ratios, dense over a compressed head, a column per batch."""
    rows: dict[tuple[Any, ...], Row] = {}
    batches = []
    for row in evidence["bench-memory"]:
        if row.get("part") == "claim":
            key = tuple(row.get(name) for name in ("model", "attention", "head"))
            entry = rows.setdefault(key, row | {"head": row.get("head", PAIRED)})
            entry[f"batch_{row['micro_batch_size']}"] = row["memory_ratio"]
            batches.append(row["micro_batch_size"])
    columns: list[Column] = [("body", "model", "{}"), ("attention", "attention", "{}"), ("head", "head", "{}")]
    columns += [(f"x less at B {batch}", f"batch_{batch}", "{:.2f}") for batch in sorted(set(batches))]
    columns += [
        ("3.4x from B", "batch_at_claim", "{:,}"),
        ("at most", "ratio_limit", "{:.2f}"),
        ("x fewer FLOPs", "flops_ratio", "{:.2f}"),
        ("with a free head", "flops_cap", "{:.2f}"),
    ]
    return Table(
        name="memory-claim",
        title="Memory and FLOPs of a step, dense over a compressed head",
        columns=tuple(columns),
        rows=list(rows.values()),
        note="Predicted from shapes, windows of 512 tokens.",
    )


def environments_table(evidence: Evidence) -> Table:
    """Return a row per environment, with how many runs it made."""
    counted: dict[tuple[tuple[str, Any], ...], int] = {}
    for row in evidence["environments"]:
        key = tuple((k, v) for k, v in row.items() if k != "run")
        counted[key] = counted.get(key, 0) + 1
    for name in (n for n in evidence if n.startswith("bench-")):
        for row in evidence[name]:
            key = (
                ("commit", row.get("commit")),
                ("cpu", row.get("machine")),
                ("threads", row.get("threads")),
                ("torch", row.get("torch")),
            )
            counted[key] = counted.get(key, 0) + 1
    columns: tuple[Column, ...] = (
        ("commit", "short_commit", "{}"),
        ("processor", "cpu", "{}"),
        ("cores", "cpu_count", "{}"),
        ("threads", "threads", "{}"),
        ("GPU", "gpu", "{}"),
        ("python", "python", "{}"),
        ("torch", "torch", "{}"),
        ("runs or rows", "count", "{:,}"),
    )
    rows = [
        dict(key) | {"count": count, "short_commit": short_commit(str(dict(key)["commit"]))}
        for key, count in sorted(counted.items(), key=str)
        if dict(key).get("commit")
    ]
    return Table(name="environments", title="Where it was run", columns=columns, rows=rows)


def short_commit(commit: str) -> str:
    """Return twelve letters of a commit, and whether the tree had changes that it lacks."""
    return commit[:12] + ("+" if commit.endswith("+") else "")


def broken_table(evidence: Evidence) -> Table:
    """Return the runs that did not end well, with their reasons."""
    rows = [row for row in evidence["runs"] if row.get("state") != "complete"]
    columns = (
        ("run", "run", "{}"),
        ("state", "state", "{}"),
        ("reason", "reason", "{}"),
        ("step", "trainer/step", "{:,}"),
    )
    return Table(name="broken", title="Runs that are not complete", columns=columns, rows=rows)


def all_tables(claims: Claims, evidence: Evidence, answers: list[Answer]) -> dict[str, Table]:
    """Return every table that has rows, by name."""
    tables = [
        verdicts_table(answers),
        families_table(claims, evidence),
        methods_table(claims, evidence),
        deciles_table(claims, evidence),
        memory_claim_table(evidence),
        *(plain.build(evidence) for plain in PLAIN),
        environments_table(evidence),
        broken_table(evidence),
    ]
    return {table.name: table for table in tables if table.rows}
