"""Rules about the cost of a step: bytes, time and operations, over batch, length and vocabulary.

Ratios are dense over the method. A ratio of 2 means half the memory, or twice the speed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from grouped_lm.reproduction.claims import Method
from grouped_lm.reproduction.evidence import Evidence, Row, head_options
from grouped_lm.reproduction.verdicts import (
    FAILS,
    HOLDS,
    HOLDS_WHERE,
    NOT_SHOWN,
    Case,
    Verdict,
    by_seed,
    not_shown,
    settings_of,
)
from grouped_lm.system.tables import group_rows

PAIRED = "grouped"
"""The head of those rows of `gvc bench memory` that name none."""


@dataclass(frozen=True)
class Cell:
    """One ratio, its interval, and where it was measured."""

    model: str
    where: str
    """Begins with the name of the body."""
    ratio: float
    low: float
    high: float
    run: str
    note: str = ""
    batch: int | None = None
    """The batch, if the ratio is for one batch only."""

    def describe(self) -> str:
        """Return ratio and place in words."""
        return f"{self.ratio:.2f}x with {self.where}{self.note}"


def verdict_of(case: Case, cells: list[Cell], interval: str, note: str = "") -> Verdict:
    """Return "holds" if every cell reaches the threshold and the claim's own bodies are among them.

    Args:
        case: its options name the bodies (`models`).
        cells: one or more.
        interval: what the intervals are over; `{low}` and `{high}` are those of the best cell.
        note: a sentence behind the cells.
    """
    reached = [cell for cell in cells if cell.low >= case.threshold]
    missed = [cell for cell in cells if cell.high < case.threshold]
    word = HOLDS_WHERE if reached else FAILS if len(missed) == len(cells) else NOT_SHOWN
    if len(reached) == len(cells) and {cell.model for cell in cells} >= set(case.options["models"]):
        word = HOLDS
    best = max(cells, key=lambda cell: cell.ratio)
    where = {HOLDS_WHERE: "the body is " + "; ".join(_places(reached)), FAILS: "with " + "; ".join(_places(missed))}
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


def _places(cells: list[Cell]) -> list[str]:
    """Return where the cells were measured; bodies with the same conditions share one entry."""
    bodies: dict[str, list[str]] = {}
    for cell in cells:
        bodies.setdefault(cell.where.removeprefix(cell.model), []).append(cell.model)
    return [f"{' or '.join(dict.fromkeys(models))}{rest}" for rest, models in bodies.items()]


def gpu_cells(case: Case, key: str, sign: int, seeds: int) -> list[Cell]:
    """Return ratios of runs on a GPU, with the range over seeds. A dense head in chunks is not a standard layer.

    Args:
        case: claim, method and evidence.
        key: column of runs.csv.
        sign: 1 if more is better, -1 if less is better.
        seeds: fewest seeds of either method. Times vary from run to run, bytes hardly do.
    """
    cells = []
    own_rows = settings_of(case.evidence, case.method, None, None)
    for setting, rows in sorted(settings_of(case.evidence, case.dense, None, None).items()):
        pair = [
            [r[key] for r in by_seed(runs).values() if r.get("memory/peak_gpu_gib") and r.get(key) and not in_chunks(r)]
            for runs in (rows, own_rows.get(setting, []))
        ]
        fewest = min(map(len, pair))
        if fewest < seeds or setting.model not in case.options["models"]:
            continue
        above, below = pair if sign < 0 else pair[::-1]
        ratio = (sum(above) / len(above)) / (sum(below) / len(below))
        low, high = min(above) / max(below), max(above) / min(below)
        where = f"{setting.model}, batch {setting.micro_batch_size}, on a GPU"
        note = " (one run)" if fewest == 1 else ""
        cells.append(Cell(setting.model, where, ratio, low, high, setting.describe(), note, setting.micro_batch_size))
    return cells


def in_chunks(row: Row) -> bool:
    """Return whether the dense head of a run computed its loss in chunks of rows."""
    return row.get("head") == "dense" and head_options(row).get("head.chunk_rows") is not None


def predicted_rows(case: Case) -> list[Row]:
    """Return the predicted ratios of `gvc bench memory` for the method."""
    rows = [row for row in case.evidence["bench-memory"] if row.get("part") == "claim"]
    return [row for row in rows if row.get("head", PAIRED) == case.method.bench]


def memory_ratio(case: Case) -> Verdict:
    """Does a step need `threshold` times less memory at one of our batches, with fused attention or without?

    Options: models, batches, max_prediction_error (a share: predictions count only if real steps agree with them).
    A measurement on a GPU counts for its body and batch. The other batches are predicted.
    """
    o = case.options
    cells = gpu_cells(case, "memory/peak_gpu_gib", -1, seeds=1)
    measured = {(cell.model, cell.batch) for cell in cells}
    rows = [row for row in predicted_rows(case) if row["model"] in o["models"]]
    rows = [row for row in rows if row["micro_batch_size"] in o["batches"]]
    rows = [row for row in rows if (row["model"], row["micro_batch_size"]) not in measured]
    errors = prediction_errors(case.evidence, case.dense, case.method)
    worst = max(errors, default=0.0)
    if not errors or worst > o["max_prediction_error"]:
        rows = []
    if not rows and not cells:
        if worst > o["max_prediction_error"]:
            return not_shown(f"predictions were up to {worst:.1%} off in real steps")
        return not_shown(f"no ratios of {' and '.join(o['models'])}, or no real steps beside the predicted ones")
    ranges = ["range of the runs on a GPU"] if cells else []
    note = ""
    if rows:
        off_by = f"within {worst:.1%}" if worst >= 0.0005 else "as predicted"
        note = f" Predicted from shapes{', but on a GPU' if cells else ''}; {len(errors)} real steps were {off_by}."
        ranges.append("bodies, attention, batches " + " and ".join(map(str, o["batches"])))
    bounds = [row["memory_ratio"] for row in rows] + [bound for cell in cells for bound in (cell.low, cell.high)]
    interval = f"{min(bounds):.2f}x to {max(bounds):.2f}x ({'; '.join(ranges)})"
    for (model, attention), group in group_rows(rows, ("model", "attention")).items():
        ratio, at_claim = max(row["memory_ratio"] for row in group), group[0].get("batch_at_claim")
        batches = f", batch {at_claim} and more" if at_claim else ""
        if ratio < case.threshold and at_claim:
            batches = f", batches up to {max(row['micro_batch_size'] for row in group)}"
        where = f"{model}, {attention} attention{batches}"
        cells.append(Cell(model, where, ratio, ratio, ratio, f"bench-memory {model} {attention}"))
    return verdict_of(case, cells, interval, note)


def prediction_errors(evidence: Evidence, dense: Method, method: Method) -> list[float]:
    """Return |predicted / measured - 1| of real steps; empty unless there are steps of both heads."""
    names = {dense.bench, method.bench}
    rows = [r for r in evidence["bench-memory"] if r.get("prediction_error") is not None and r.get("head") in names]
    return [abs(row["prediction_error"]) for row in rows] if {row["head"] for row in rows} == names else []


def speed_ratio(case: Case) -> Verdict:
    """Are whole steps `threshold` times as fast? The quartiles of both methods must be on one side of it."""
    cells = gpu_cells(case, "throughput/tokens_per_sec", 1, seeds=2)
    if cells:
        return verdict_of(case, cells, "{low:.2f}x to {high:.2f}x (range of seeds)")
    shared = ("model", "micro_batch_size", "block_size", "threads", "commit")
    for (model, *_), rows in group_rows(case.evidence["bench-steps"], shared).items():
        by_head = {row["head"]: row for row in rows}
        dense, own = by_head.get(case.dense.bench), by_head.get(case.method.bench)
        if dense and own:
            shape = f"{own['micro_batch_size']} x {own['block_size']} tokens"
            where = f"{model}, {shape}, {own['threads']} CPU {'thread' if own['threads'] == 1 else 'threads'}"
            ratios = dense["ms"] / own["ms"], dense["ms_q1"] / own["ms_q3"], dense["ms_q3"] / own["ms_q1"]
            cells.append(Cell(model, where, *ratios, f"bench-steps {model}"))
    if not cells:
        return not_shown(f"no steps of {case.method.name} beside dense ones")
    return verdict_of(case, cells, "{low:.2f}x to {high:.2f}x (quartiles of both)")


def flops_ratio(case: Case) -> Verdict:
    """Does a step take `threshold` times fewer operations?"""
    cells = []
    for (model,), rows in group_rows(predicted_rows(case), ("model",)).items():
        ratio = rows[0]["flops_ratio"]
        note = f" (a free head would give {rows[0]['flops_cap']:.2f}x)"
        cells.append(Cell(model, model, ratio, ratio, ratio, f"bench-memory {model}", note))
    if not cells:
        return not_shown(f"no counts of operations of {case.method.name}")
    ratios = [cell.ratio for cell in cells]
    return verdict_of(case, cells, f"{min(ratios):.2f}x to {max(ratios):.2f}x (bodies)")


def memory_grid(case: Case) -> Verdict:
    """Is the ratio above `threshold` in every cell of batch x length, in training and in inference?

    The grid has not all cells that exist, so the verdict is never more than "holds where".
    """
    rows = [row for row in case.evidence["bench-memory"] if row.get("part") == "grid"]
    grid = group_rows(rows, ("model", "mode", "micro_batch_size", "block_size"))
    cells: dict[tuple[Any, ...], float] = {}
    for key, group in grid.items():
        sizes = {row["head"]: row.get("measured_bytes") or row["predicted_bytes"] for row in group}
        if sizes.keys() >= {"dense", case.method.bench}:
            cells[key] = sizes["dense"] / sizes[str(case.method.bench)]
    modes = {mode for _, mode, _, _ in cells}
    if modes != {"training", "inference"}:
        return not_shown("no grid of batch x length for training and inference")
    good = {key for key, ratio in cells.items() if ratio > case.threshold}
    parts = []
    for mode in sorted(modes, reverse=True):
        ratios = {key: ratio for key, ratio in cells.items() if key[1] == mode}
        ends = (min(ratios, key=lambda key: ratios[key]), max(ratios, key=lambda key: ratios[key]))
        parts.append(f"{mode}: " + " to ".join(f"{ratios[key]:.2f}x ({key[2]} x {key[3]})" for key in ends))
    measured = sum(all(row.get("measured_bytes") for row in group) for group in grid.values())
    how = f"{measured} of {len(cells)} cells measured, the others predicted"
    shapes = _listed((batch, length) for _, _, batch, length in cells)
    where = f"batch x length is of {shapes}, {', '.join(sorted({key[0] for key in cells}))}; {how}"
    if good and len(good) < len(cells):
        where += f"; not in {_listed((batch, length, mode) for _, mode, batch, length in cells.keys() - good)}"
    low, high = min(cells.values()), max(cells.values())
    return Verdict(
        word=HOLDS_WHERE if good else FAILS,
        where=where if good else how,
        figure=f"{low:.2f}x or more",
        interval=f"{low:.2f}x to {high:.2f}x ({len(cells)} cells)",
        why="; ".join(parts) + f"; {next(iter(cells))[0]}.",
        value=low,
        low=low,
        high=high,
        runs=tuple(dict.fromkeys(f"bench-memory grid {key[0]}" for key in cells)),
    )


def _listed(cells: Iterable[tuple[Any, ...]]) -> str:
    """Return the different cells in order, each like 8 x 128."""
    return ", ".join(" x ".join(map(str, cell)) for cell in sorted(set(cells)))


def gain_by_vocabulary(case: Case) -> Verdict:
    """Is the memory ratio at every V from `least` on at least `threshold` times the ratio at `base`?

    The word is "holds" only if V reaches `most` and every peak was measured.
    """
    base = case.options["base"]
    memory: dict[int, float] = {}
    times: dict[int, float] = {}
    predicted: set[int] = set()
    shape = ""
    steps = (row for row in case.evidence["bench-vocab"] if row.get("part") == "step")
    for (size,), rows in group_rows(steps, ("vocab_size",)).items():
        by_head = {row["head"]: row for row in rows}
        dense, own = by_head.get(case.dense.bench), by_head.get(case.method.bench)
        if dense and own:
            above, below = (row.get("measured_bytes") or row.get("predicted_bytes") for row in (dense, own))
            if above and below:
                memory[int(size)] = above / below
                if not dense.get("measured_bytes") or not own.get("measured_bytes"):
                    predicted.add(int(size))
            if dense.get("ms") and own.get("ms"):
                times[int(size)] = dense["ms"] / own["ms"]
            shape = f"with {own['model']}, {own['micro_batch_size']} x {own['block_size']} tokens"
    large = sorted(size for size in memory if size >= case.options["least"])
    if base not in memory or not large:
        start = f"V = {base:,} and from {case.options['least']:,} on"
        return not_shown(f"no steps of {case.method.name} and dense at {start}")
    good = [size for size in large if memory[size] >= case.threshold * memory[base]]
    guessed = [size for size in (base, *large) if size in predicted]
    word = HOLDS_WHERE if good else FAILS
    if good == large and large[-1] >= case.options["most"] and not guessed:
        word = HOLDS
    how = f"predicted at V = {', '.join(f'{size:,}' for size in guessed)}" if guessed else "all measured"
    parts = [
        f"V = {size:,}: {memory[size]:.2f}x less memory" + (f", {times[size]:.1f}x as fast" if size in times else "")
        for size in (base, *large)
    ]
    return Verdict(
        word=word,
        where=f"V is {', '.join(f'{size:,}' for size in good)}; {how}" if word == HOLDS_WHERE else f"{shape}; {how}",
        figure=f"{memory[large[-1]]:.2f}x at V = {large[-1]:,}",
        interval=f"{memory[base]:.2f}x at {base:,}",
        why="; ".join(parts) + f"; {shape}.",
        value=memory[large[-1]],
        low=memory[base],
        runs=tuple(f"bench-vocab {size:,}" for size in (base, *large)),
    )
