"""Rules about the cost of a step: bytes, time and operations, over batch, length and vocabulary.

Ratios are dense over the method. A ratio of 2 means half the memory, or twice the speed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from grouped_lm.heads.losses.chunked import DEFAULT_CHUNK_ROWS
from grouped_lm.reproduction.evidence import Row, head_options
from grouped_lm.reproduction.verdicts import (
    ANY_TEXT,
    FAILS,
    HOLDS,
    HOLDS_WHERE,
    Case,
    NoEvidenceError,
    Setting,
    Verdict,
    by_seed,
    interval_verdict,
    root_of,
    settings_of,
    sizes_in,
    word_over,
)
from grouped_lm.runs.table import EQUAL_FOR_RATIOS
from grouped_lm.system.tables import group_rows

PAIRED = "grouped"
"""The head of those rows of `gvc bench memory` that name none."""
HEAD_MEMORY = "memory/peak_head_gib"
STEPS_ALIKE = ("model", "micro_batch_size", "block_size", "threads", "device", "dtype", "machine", "commit")
"""Columns in which whole steps must be equal to be compared. Old tables lack device and dtype: a CPU, float32."""
MIN_SIZES, MIN_SIZES_BESIDE = 5, 2
"""Fewest sizes, and fewest on each side of sqrt V, that show where memory is smallest."""


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


def verdict_of(case: Case, cells: list[Cell], interval: str, note: str = "") -> Verdict:
    """Return "holds" if every cell reaches the threshold and the claim's own bodies are among them.

    Args:
        case: its options name the bodies (`models`).
        cells: one or more.
        interval: what the intervals are over; `{low}` and `{high}` are those of the best cell.
        note: a sentence behind the cells.
    """
    general = {cell.model for cell in cells} >= set(case.options["models"])
    word = word_over([(cell.low, cell.high) for cell in cells], case.threshold, general)
    reached = _places(cell for cell in cells if cell.low >= case.threshold)
    where = {HOLDS_WHERE: f"the body is {reached}", FAILS: f"with {_places(cells)}"}
    best = max(cells, key=lambda cell: cell.ratio)
    figure, interval = f"up to {best.ratio:.2f}x", interval.format(low=best.low, high=best.high)
    why = "; ".join(f"{cell.ratio:.2f}x with {cell.where}{cell.note}" for cell in cells) + f".{note}"
    runs = tuple(dict.fromkeys(cell.run for cell in cells))
    return Verdict(word, where.get(word, ""), figure, interval, why, best.ratio, best.low, best.high, runs)


def _places(cells: Iterable[Cell]) -> str:
    """Return where the cells were measured; bodies with the same conditions share one entry."""
    bodies: dict[str, list[str]] = {}
    for cell in cells:
        bodies.setdefault(cell.where.removeprefix(cell.model), []).append(cell.model)
    return "; ".join(f"{' or '.join(dict.fromkeys(models))}{rest}" for rest, models in bodies.items())


def gpu_cells(case: Case, key: str, sign: int, seeds: int) -> list[Cell]:
    """Return ratios of runs on a GPU, with the range over seeds. A dense head in chunks is not a standard layer.

    Args:
        case: the claim and the evidence.
        key: column of runs.csv.
        sign: 1 if more is better, -1 if less is better.
        seeds: fewest seeds of either method. Times vary from run to run, bytes hardly do.
    """
    cells = []
    own_rows = settings_of(case.evidence, case.method, None, None)
    for setting, rows in sorted(settings_of(case.evidence, case.dense, None, None).items()):
        both = [
            [row for row in runs if row.get("memory/peak_gpu_gib") and row.get(key) and not in_chunks(row)]
            for runs in (rows, own_rows.get(setting, []))
        ]
        for pair in pairs_alike(*both) if setting.model in case.options["models"] else ():
            values = [[row[key] for row in by_seed(runs).values()] for runs in pair]
            fewest = min(map(len, values))
            if fewest < max(seeds, 1):
                continue
            above, below = values if sign < 0 else values[::-1]
            ratio = (sum(above) / len(above)) / (sum(below) / len(below))
            low, high = min(above) / max(below), max(above) / min(below)
            device = pair[0][0].get("device")
            where = f"{setting.model}, batch {setting.micro_batch_size}, on a GPU" + (f" ({device})" if device else "")
            note, batch = " (one run)" if fewest == 1 else "", setting.micro_batch_size
            cells.append(Cell(setting.model, where, ratio, low, high, setting.describe(), note, batch))
    return cells


def pairs_alike(first: Iterable[Row], second: Iterable[Row]) -> list[tuple[list[Row], list[Row]]]:
    """Return the runs of two methods in groups that may be compared in speed and memory: of one device, dtype, body."""
    one, other = group_rows(first, EQUAL_FOR_RATIOS), group_rows(second, EQUAL_FOR_RATIOS)
    return [(rows, other[key]) for key, rows in one.items() if key in other]


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
    errors = prediction_errors(case)
    worst = max(errors, default=0.0)
    if not errors or worst > o["max_prediction_error"]:
        rows = []
    if not rows and not cells:
        why = f"no ratios of {' and '.join(o['models'])}, or no real steps beside the predicted ones"
        off = f"predictions were up to {worst:.1%} off in real steps"
        raise NoEvidenceError(off if worst > o["max_prediction_error"] else why)
    ranges = ["range of the runs on a GPU"] if cells else []
    note = ""
    if rows:
        off_by = f"within {worst:.1%}" if worst >= 0.0005 else "as predicted"
        note = f" Predicted from shapes{', but on a GPU' if cells else ''}; {len(errors)} real steps were {off_by}."
        ranges.append("predicted for bodies, attention, batches " + " and ".join(map(str, o["batches"])))
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


def prediction_errors(case: Case) -> list[float]:
    """Return |predicted / measured - 1| of real steps; empty unless there are steps of both heads."""
    names = {case.dense.bench, case.method.bench}
    rows = [r for r in case.evidence["bench-memory"] if r.get("prediction_error") is not None and r["head"] in names]
    return [abs(row["prediction_error"]) for row in rows] if {row["head"] for row in rows} == names else []


def pairs_of(case: Case, rows: Iterable[Row], by: Sequence[str]) -> dict[tuple[Any, ...], tuple[Row, Row]]:
    """Return the rows of dense and of the method, by the columns `by`, in which both agree."""
    heads = {key: {row["head"]: row for row in group} for key, group in group_rows(rows, by).items()}
    names = case.dense.bench, case.method.bench
    return {key: (own[names[0]], own[names[1]]) for key, own in heads.items() if own.keys() >= set(names)}


def speed_ratio(case: Case) -> Verdict:
    """Are whole steps `threshold` times as fast? The quartiles of both methods must be on one side of it."""
    cells = gpu_cells(case, "throughput/tokens_per_sec", 1, seeds=2)
    if cells:
        return verdict_of(case, cells, "{low:.2f}x to {high:.2f}x (range of seeds)")
    for dense, own in pairs_of(case, case.evidence["bench-steps"], STEPS_ALIKE).values():
        model = dense["model"]
        where = f"{model}, {dense['micro_batch_size']} x {dense['block_size']} tokens, {_place(dense)}"
        ratios = dense["ms"] / own["ms"], dense["ms_q1"] / own["ms_q3"], dense["ms_q3"] / own["ms_q1"]
        cells.append(Cell(model, where, *ratios, f"bench-steps {model}"))
    if not cells:
        raise NoEvidenceError(f"no steps of {case.method.name} beside dense ones")
    return verdict_of(case, cells, "{low:.2f}x to {high:.2f}x (quartiles of both)")


def _place(row: Row) -> str:
    """Return what the row of a bench was measured on."""
    dtype = row.get("dtype") or "float32"
    place = f"{row.get('threads')} CPU {'thread' if row.get('threads') == 1 else 'threads'}"
    if (row.get("device") or "cpu") != "cpu":
        place = f"a GPU ({str(row.get('machine') or row['device']).partition(',')[0]})"
    return place if dtype == "float32" else f"{place}, {dtype}"


def flops_ratio(case: Case) -> Verdict:
    """Does a step take `threshold` times fewer operations?"""
    cells = []
    for (model,), rows in group_rows(predicted_rows(case), ("model",)).items():
        ratio = rows[0]["flops_ratio"]
        note = f" (a free head would give {rows[0]['flops_cap']:.2f}x)"
        cells.append(Cell(model, model, ratio, ratio, ratio, f"bench-memory {model}", note))
    if not cells:
        raise NoEvidenceError(f"no counts of operations of {case.method.name}")
    ratios = [cell.ratio for cell in cells]
    return verdict_of(case, cells, f"{min(ratios):.2f}x to {max(ratios):.2f}x (bodies)")


def memory_grid(case: Case) -> Verdict:
    """Is the ratio above `threshold` in every cell of batch x length, in training and in inference?

    The grid has not all cells that exist, so the verdict is never more than "holds where".
    """
    rows = [row for row in case.evidence["bench-memory"] if row.get("part") == "grid"]
    grid = pairs_of(case, rows, ("model", "mode", "micro_batch_size", "block_size"))
    cells = {key: _bytes(dense) / _bytes(own) for key, (dense, own) in grid.items()}
    if {mode for _, mode, _, _ in cells} != {"training", "inference"}:
        raise NoEvidenceError("no grid of batch x length for training and inference")
    good = {key for key, ratio in cells.items() if ratio > case.threshold}
    parts = []
    for mode in ("training", "inference"):
        own = {key: ratio for key, ratio in cells.items() if key[1] == mode}
        ends = min(own, key=own.__getitem__), max(own, key=own.__getitem__)
        parts.append(f"{mode}: " + " to ".join(f"{own[key]:.2f}x ({key[2]} x {key[3]})" for key in ends))
    measured = sum(all(row.get("measured_bytes") for row in pair) for pair in grid.values())
    how = f"{measured} of {len(cells)} cells measured, the others predicted"
    shapes = _listed((batch, length) for _, _, batch, length in cells)
    where = f"batch x length is of {shapes}, {', '.join(sorted({key[0] for key in cells}))}; {how}"
    if good and len(good) < len(cells):
        where += f"; not in {_listed((batch, length, mode) for _, mode, batch, length in cells.keys() - good)}"
    low, high = min(cells.values()), max(cells.values())
    word, where = (HOLDS_WHERE, where) if good else (FAILS, how)
    why = "; ".join(parts) + f"; {next(iter(cells))[0]}."
    runs = [f"bench-memory grid {key[0]}" for key in cells]
    return interval_verdict(word, where, (low, low, high), "{:.2f}x or more", f"{len(cells)} cells", why, runs)


def _bytes(row: Row) -> Any:
    """Return the peak of a step: measured, else predicted."""
    return row.get("measured_bytes") or row.get("predicted_bytes")


def _listed(cells: Iterable[tuple[Any, ...]]) -> str:
    """Return the different cells in order, each like 8 x 128."""
    return ", ".join(" x ".join(map(str, cell)) for cell in sorted(set(cells)))


def gain_by_vocabulary(case: Case) -> Verdict:
    """Is the memory ratio at every V from `least` on at least `threshold` times the ratio at `base`?

    The steps are those of the body and batch with the most V. The word is "holds" only if V reaches `most` and every
    peak was measured.
    """
    base = case.options["base"]
    steps = (row for row in case.evidence["bench-vocab"] if row.get("part") == "step")
    alike = [pairs_of(case, rows, ("vocab_size",)) for rows in group_rows(steps, STEPS_ALIKE).values()]
    pairs = {int(size): pair for (size,), pair in max(alike, key=len, default={}).items()}
    memory = {size: _bytes(pair[0]) / _bytes(pair[1]) for size, pair in pairs.items() if all(map(_bytes, pair))}
    times = {size: a["ms"] / b["ms"] for size, (a, b) in pairs.items() if a.get("ms") and b.get("ms")}
    large = sorted(size for size in memory if size >= case.options["least"])
    if base not in memory or not large:
        start = f"V = {base:,} and from {case.options['least']:,} on"
        raise NoEvidenceError(f"no steps of {case.method.name} and dense at {start}")
    good = [size for size in large if memory[size] >= case.threshold * memory[base]]
    guessed = [size for size in (base, *large) if not all(row.get("measured_bytes") for row in pairs[size])]
    word = HOLDS_WHERE if good else FAILS
    if good == large and large[-1] >= case.options["most"] and not guessed:
        word = HOLDS
    how = f"predicted at V = {', '.join(f'{size:,}' for size in guessed)}" if guessed else "all measured"
    own = [*pairs.values()][-1][1]
    shape = f"with {own['model']}, {own['micro_batch_size']} x {own['block_size']} tokens"
    parts = [
        f"V = {size:,}: {memory[size]:.2f}x less memory" + (f", {times[size]:.1f}x as fast" if size in times else "")
        for size in (base, *large)
    ]
    where = f"V is {', '.join(f'{size:,}' for size in good)}; {how}" if word == HOLDS_WHERE else f"{shape}; {how}"
    figure, interval = (f"{memory[size]:.2f}x at {name}{size:,}" for name, size in (("V = ", large[-1]), ("", base)))
    why, runs = "; ".join(parts) + f"; {shape}.", tuple(f"bench-vocab {size:,}" for size in (base, *large))
    return Verdict(word, where, figure, interval, why, memory[large[-1]], memory[base], runs=runs)


def least_memory_size(case: Case) -> Verdict:
    """Is the peak memory of the head smallest at sqrt V, among the sizes tried?

    The paper keeps the logits of all rows; our loss keeps one chunk of rows at a time. Sizes weigh differently then
    (`grouped_lm.plan.theory`), so the word is never more than "holds where".
    """
    best: tuple[Setting, dict[int, float], int, list[str]] | None = None
    for setting, rows in settings_of(case.evidence, case.named("method"), ANY_TEXT, None).items():
        sizes = sizes_in(rows)
        known = {size: [row for row in own.values() if row.get(HEAD_MEMORY)] for size, own in sizes.items()}
        peaks = {size: sum(row[HEAD_MEMORY] for row in own) / len(own) for size, own in known.items() if own}
        if peaks and (best is None or len(peaks) > len(best[1])):
            best = setting, peaks, root_of(sizes), [row["run"] for own in known.values() for row in own]
    if best is None:
        raise NoEvidenceError("no sweep of group sizes")
    setting, peaks, root, names = best
    tried = sorted(peaks)
    beside = min(sum(size < root for size in tried), sum(size > root for size in tried))
    if len(tried) < MIN_SIZES or beside < MIN_SIZES_BESIDE or root not in peaks:
        why = f"only sizes {', '.join(map(str, tried))}: too few on both sides of sqrt V = {root}"
        raise NoEvidenceError(why, names)
    least = min(tried, key=lambda size: peaks[size])
    at = tried.index(least)
    low, high = tried[max(0, at - 1)], tried[min(len(tried) - 1, at + 1)]
    chunked = f"the loss is in chunks of {DEFAULT_CHUNK_ROWS} rows"
    shape = f"{setting.model}, {setting.micro_batch_size} windows of {setting.block_size} tokens"
    result = f"{peaks[root] * 1024:.2f} MiB at S = {root} = sqrt(V), the least"
    if least != root:
        more = peaks[root] / peaks[least] - 1
        result = f"sqrt(V) = {root} takes {peaks[root] * 1024:.2f} MiB, {more:.1%} more than S = {least:,}"
    word, where = (HOLDS_WHERE, chunked) if least == root else (FAILS, f"where {chunked}")
    figure, interval = f"S = {least:,}", f"between S = {low:,} and {high:,} (the sizes beside it)"
    why = f"{result}; {shape}. Where the logits of all N rows are kept, N (V / S + S) numbers are, least at sqrt(V)."
    return Verdict(word, where, figure, interval, why, float(least), float(low), float(high), tuple(names))
