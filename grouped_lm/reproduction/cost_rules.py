"""Rules about what a step costs: bytes, time, operations, and how these go with batch, length and vocabulary.

Ratios are dense over the method: 2 is half the memory, or twice the speed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from grouped_lm.reproduction.claims import Claim, Claims, Method
from grouped_lm.reproduction.evidence import Evidence, Row, head_options
from grouped_lm.reproduction.verdicts import (
    FAILS,
    HOLDS,
    HOLDS_WHERE,
    NOT_SHOWN,
    Verdict,
    by_seed,
    not_shown,
    settings_of,
)

PAIRED = "grouped"
"""Whom rows of `gvc bench memory` without a head's name are about."""


@dataclass(frozen=True)
class Cell:
    """One ratio, where it was seen, and its interval."""

    model: str
    where: str
    """Begins with the body's name."""
    ratio: float
    low: float
    high: float
    run: str
    note: str = ""
    batch: int | None = None
    """Where one batch alone was seen."""

    def describe(self) -> str:
        """Return ratio and place in words."""
        return f"{self.ratio:.2f}x with {self.where}{self.note}"


def verdict_of(cells: list[Cell], line: float, models: list[str], interval: str, note: str = "") -> Verdict:
    """Return "holds" where every cell reaches the line and the claim's own models are among them.

    Args:
        cells: one or more.
        line: the claim's ratio.
        models: bodies that the claim is about.
        interval: what the intervals are.
        note: said behind the cells.
    """
    reached = [cell for cell in cells if cell.low >= line]
    missed = [cell for cell in cells if cell.high < line]
    own = {cell.model for cell in cells} >= set(models)
    word = HOLDS_WHERE if reached else FAILS if len(missed) == len(cells) else NOT_SHOWN
    if len(reached) == len(cells) and own:
        word = HOLDS
    best = max(cells, key=lambda cell: cell.ratio)
    where = {HOLDS_WHERE: "the body is " + "; ".join(places(reached)), FAILS: "with " + "; ".join(places(missed))}
    return Verdict(
        word=word,
        where=where.get(word, ""),
        figure=f"up to {best.ratio:.2f}x",
        interval=interval.format(low=best.low, high=best.high),
        why="; ".join(cell.describe() for cell in cells) + f".{note}",
        value=best.ratio,
        low=best.low,
        high=best.high,
        runs=tuple(dict.fromkeys(cell.run for cell in cells)),
    )


def places(cells: list[Cell]) -> list[str]:
    """Return where the cells were seen; bodies that share the rest stand together."""
    rests: dict[str, list[str]] = {}
    for cell in cells:
        rests.setdefault(cell.where.removeprefix(cell.model), []).append(cell.model)
    return [f"{' or '.join(dict.fromkeys(models))}{rest}" for rest, models in rests.items()]


def gpu_cells(
    claim: Claim, method: Method, claims: Claims, evidence: Evidence, key: str, sign: int, seeds: int
) -> list[Cell]:
    """Return ratios of runs on a GPU, seeds as the spread; a dense head in chunks is no standard layer.

    Args:
        claim, method, claims, evidence: as rules have them.
        key: column of runs.csv.
        sign: 1 where more is better, -1 where less is.
        seeds: as many as either side has at least: times vary from run to run, bytes hardly do.
    """
    cells = []
    ours = settings_of(evidence, method, None, None)
    for setting, rows in sorted(settings_of(evidence, claims.methods["dense"], None, None).items()):
        pair = [
            [r[key] for r in by_seed(own).values() if r.get("memory/peak_gpu_gib") and r.get(key) and not in_chunks(r)]
            for own in (rows, ours.get(setting, []))
        ]
        if min(map(len, pair)) < seeds or setting.model not in claim.options["models"]:
            continue
        dense, own = pair if sign < 0 else pair[::-1]
        ratio = (sum(dense) / len(dense)) / (sum(own) / len(own))
        where = f"{setting.model}, batch {setting.micro_batch_size}, on a GPU"
        low, high = min(dense) / max(own), max(dense) / min(own)
        note = " (one run)" if min(map(len, pair)) == 1 else ""
        batch = setting.micro_batch_size
        cells.append(Cell(setting.model, where, ratio, low, high, setting.describe(), note, batch))
    return cells


def in_chunks(row: Row) -> bool:
    """Return whether a run's dense head computed its loss in chunks of rows."""
    return row.get("head") == "dense" and head_options(row).get("head.chunk_rows") is not None


def claim_rows(evidence: Evidence, method: Method) -> list[Row]:
    """Return the predicted ratios of `gvc bench memory` for a method."""
    rows = [row for row in evidence["bench-memory"] if row.get("part") == "claim"]
    return [row for row in rows if row.get("head", PAIRED) == method.bench]


def memory_ratio(claim: Claim, method: Method, claims: Claims, evidence: Evidence) -> Verdict:
    """Does a step need `threshold` times less memory at one of our batches, fused attention or not?

    Options: models, batches, max_prediction_error (share; predictions count only where real steps bear them out).
    What was measured on a GPU stands for its body and batch; the other batches are predicted.
    """
    o, line = claim.options, float(claim.threshold or 0.0)
    cells = gpu_cells(claim, method, claims, evidence, "memory/peak_gpu_gib", -1, seeds=1)
    measured = {(cell.model, cell.batch) for cell in cells}
    rows = [
        r
        for r in claim_rows(evidence, method)
        if r["model"] in o["models"]
        and r["micro_batch_size"] in o["batches"]
        and (r["model"], r["micro_batch_size"]) not in measured
    ]
    errors = prediction_errors(evidence, claims.methods["dense"], method)
    worst = max(errors, default=0.0)
    if not errors or worst > o["max_prediction_error"]:
        rows = []
    if not rows and not cells:
        if errors and worst > o["max_prediction_error"]:
            return not_shown(f"predictions were up to {worst:.1%} off in real steps")
        return not_shown(f"no ratios of {' and '.join(o['models'])}, or no real steps beside the predicted ones")
    ranges = ["range of the runs on a GPU"] if cells else []
    note = ""
    if rows:
        note = f" Predicted from shapes{', but on a GPU' if cells else ''}; {off_by(errors)}."
        ranges.append("bodies, attention, batches " + " and ".join(map(str, o["batches"])))
    bounds = [row["memory_ratio"] for row in rows] + [bound for cell in cells for bound in (cell.low, cell.high)]
    interval = f"{min(bounds):.2f}x to {max(bounds):.2f}x ({'; '.join(ranges)})"
    for (model, attention), group in group_rows(rows, ("model", "attention")).items():
        ratios = [row["memory_ratio"] for row in group]
        at_claim = group[0].get("batch_at_claim")
        where = f"{model}, {attention} attention" + (f", batch {at_claim} and more" if at_claim else "")
        if max(ratios) < line and at_claim:
            where = f"{model}, {attention} attention, batches up to {max(r['micro_batch_size'] for r in group)}"
        cells.append(Cell(model, where, max(ratios), max(ratios), max(ratios), f"bench-memory {model} {attention}"))
    return verdict_of(cells, line, o["models"], interval, note)


def off_by(errors: list[float]) -> str:
    """Return how far predictions were off in real steps."""
    worst = max(errors)
    return f"{len(errors)} real steps were {f'within {worst:.1%}' if worst >= 0.0005 else 'as predicted'}"


def prediction_errors(evidence: Evidence, dense: Method, method: Method) -> list[float]:
    """Return |predicted / measured - 1| of real steps, if there are some of both heads, by their names in benches."""
    names = {dense.bench, method.bench}
    rows = [r for r in evidence["bench-memory"] if r.get("prediction_error") is not None and r.get("head") in names]
    return [abs(row["prediction_error"]) for row in rows] if {row["head"] for row in rows} == names else []


def group_rows(rows: Iterable[Row], keys: tuple[str, ...]) -> dict[tuple[Any, ...], list[Row]]:
    """Return rows by the values of some columns."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return found


def speed_ratio(claim: Claim, method: Method, claims: Claims, evidence: Evidence) -> Verdict:
    """Are whole steps `threshold` times as fast? The quartiles of both sides have to be on one side of it."""
    line, models = float(claim.threshold or 0.0), claim.options["models"]
    cells = gpu_cells(claim, method, claims, evidence, "throughput/tokens_per_sec", 1, seeds=2)
    if cells:
        return verdict_of(cells, line, models, "{low:.2f}x to {high:.2f}x (range of seeds)")
    shared = ("model", "micro_batch_size", "block_size", "threads", "commit")
    for (model, *_), rows in group_rows(evidence["bench-steps"], shared).items():
        by_head = {row["head"]: row for row in rows}
        dense, own = by_head.get(claims.methods["dense"].bench), by_head.get(method.bench)
        if dense and own:
            shape = f"{own['micro_batch_size']} x {own['block_size']} tokens"
            where = f"{model}, {shape}, {own['threads']} CPU {'thread' if own['threads'] == 1 else 'threads'}"
            ratios = dense["ms"] / own["ms"], dense["ms_q1"] / own["ms_q3"], dense["ms_q3"] / own["ms_q1"]
            cells.append(Cell(model, where, *ratios, f"bench-steps {model}"))
    if not cells:
        return not_shown(f"no steps of {method.name} beside dense ones")
    return verdict_of(cells, line, models, "{low:.2f}x to {high:.2f}x (quartiles of both)")


def flops_ratio(claim: Claim, method: Method, claims: Claims, evidence: Evidence) -> Verdict:
    """Does a step take `threshold` times fewer operations?"""
    cells = []
    for (model,), rows in group_rows(claim_rows(evidence, method), ("model",)).items():
        ratio = rows[0]["flops_ratio"]
        note = f" (a free head would give {rows[0]['flops_cap']:.2f}x)"
        cells.append(Cell(model, model, ratio, ratio, ratio, f"bench-memory {model}", note))
    if not cells:
        return not_shown(f"no counts of operations of {method.name}")
    low = min(cell.ratio for cell in cells)
    high = max(cell.ratio for cell in cells)
    interval = f"{low:.2f}x to {high:.2f}x (bodies)"
    return verdict_of(cells, float(claim.threshold or 0.0), claim.options["models"], interval)


def memory_grid(claim: Claim, method: Method, claims: Claims, evidence: Evidence) -> Verdict:
    """Is the ratio above `threshold` in every cell of batch x length, in training and in inference?

    Some cells are not all there are: it never holds but where it was seen.
    """
    rows = [row for row in evidence["bench-memory"] if row.get("part") == "grid"]
    cells: dict[tuple[Any, ...], float] = {}
    grid = group_rows(rows, ("model", "mode", "micro_batch_size", "block_size"))
    for key, group in grid.items():
        sizes = {row["head"]: row.get("measured_bytes") or row["predicted_bytes"] for row in group}
        if sizes.keys() >= {"dense", method.bench}:
            cells[key] = sizes["dense"] / sizes[str(method.bench)]
    modes = {key[1] for key in cells}
    if modes != {"training", "inference"}:
        return not_shown("no grid of batch x length for training and inference")
    line = float(claim.threshold or 0.0)
    good = {key for key, ratio in cells.items() if ratio > line}
    parts = []
    for mode in sorted(modes, reverse=True):
        ratios = {key: ratio for key, ratio in cells.items() if key[1] == mode}
        low, high = min(ratios, key=lambda k: ratios[k]), max(ratios, key=lambda k: ratios[k])
        parts.append(f"{mode}: {ratios[low]:.2f}x ({low[2]} x {low[3]}) to {ratios[high]:.2f}x ({high[2]} x {high[3]})")
    measured = sum(all(row.get("measured_bytes") for row in group) for group in grid.values())
    seen = f"batch x length is of {listed((b, t) for _, _, b, t in cells)}, {', '.join(sorted({k[0] for k in cells}))}"
    where = f"{seen}; {measured} of {len(cells)} cells measured, the others predicted"
    if good and len(good) < len(cells):
        where += f"; not in {listed((b, t, mode) for _, mode, b, t in cells.keys() - good)}"
    return Verdict(
        word=HOLDS_WHERE if good else FAILS,
        where=where if good else f"{measured} of {len(cells)} cells measured, the others predicted",
        figure=f"{min(cells.values()):.2f}x or more",
        interval=f"{min(cells.values()):.2f}x to {max(cells.values()):.2f}x ({len(cells)} cells)",
        why="; ".join(parts) + f"; {next(iter(cells))[0]}.",
        value=min(cells.values()),
        low=min(cells.values()),
        high=max(cells.values()),
        runs=tuple(dict.fromkeys(f"bench-memory grid {key[0]}" for key in cells)),
    )


def listed(cells: Iterable[tuple[Any, ...]]) -> str:
    """Return different cells in order, as 8 x 128."""
    return ", ".join(" x ".join(map(str, cell)) for cell in sorted(set(cells)))


def gain_by_vocabulary(claim: Claim, method: Method, claims: Claims, evidence: Evidence) -> Verdict:
    """Is the memory ratio at every V from `least` on at least `threshold` times that at `base`?

    It holds outright up to `most` alone, and where every peak was measured.
    """
    o, line = claim.options, float(claim.threshold or 0.0)
    memory: dict[int, float] = {}
    times: dict[int, float] = {}
    predicted: set[int] = set()
    shape = ""
    for (size,), rows in group_rows(
        (r for r in evidence["bench-vocab"] if r.get("part") == "step"), ("vocab_size",)
    ).items():
        by_head = {row["head"]: row for row in rows}
        dense, own = by_head.get(claims.methods["dense"].bench), by_head.get(method.bench)
        if dense and own:
            most, least = (row.get("measured_bytes") or row.get("predicted_bytes") for row in (dense, own))
            if most and least:
                memory[int(size)] = most / least
                if not dense.get("measured_bytes") or not own.get("measured_bytes"):
                    predicted.add(int(size))
            if dense.get("ms") and own.get("ms"):
                times[int(size)] = dense["ms"] / own["ms"]
            shape = f"with {own['model']}, {own['micro_batch_size']} x {own['block_size']} tokens"
    large = sorted(size for size in memory if size >= o["least"])
    if o["base"] not in memory or not large:
        return not_shown(f"no steps of {method.name} and dense at V = {o['base']:,} and from {o['least']:,} on")
    good = [size for size in large if memory[size] >= line * memory[o["base"]]]
    guessed = [size for size in (o["base"], *large) if size in predicted]
    whole = good == large and large[-1] >= o["most"] and not guessed
    word = HOLDS if whole else HOLDS_WHERE if good else FAILS
    how = f"predicted at V = {', '.join(f'{size:,}' for size in guessed)}" if guessed else "all measured"
    parts = [
        f"V = {size:,}: {memory[size]:.2f}x less memory" + (f", {times[size]:.1f}x as fast" if size in times else "")
        for size in (o["base"], *large)
    ]
    return Verdict(
        word=word,
        where=f"V is {', '.join(f'{size:,}' for size in good)}; {how}" if word == HOLDS_WHERE else f"{shape}; {how}",
        figure=f"{memory[large[-1]]:.2f}x at V = {large[-1]:,}",
        interval=f"{memory[o['base']]:.2f}x at {o['base']:,}",
        why="; ".join(parts) + f"; {shape}.",
        value=memory[large[-1]],
        low=memory[o["base"]],
        runs=tuple(f"bench-vocab {size:,}" for size in (o["base"], *large)),
    )
