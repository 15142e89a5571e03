"""Rules about group sizes: where memory is least, and what a size costs in loss and in tasks."""

import math
from itertools import groupby

from scipy import stats

from grouped_lm.evaluate.significance import LEVEL, compare_methods
from grouped_lm.grouping import default_group_size
from grouped_lm.heads.losses.chunked import DEFAULT_CHUNK_ROWS
from grouped_lm.reproduction.claims import Claim, Claims, Method
from grouped_lm.reproduction.evidence import Evidence, Row
from grouped_lm.reproduction.quality_rules import place_of
from grouped_lm.reproduction.verdicts import (
    ANY_TEXT,
    FAILS,
    HOLDS,
    HOLDS_WHERE,
    NOT_SHOWN,
    Setting,
    Verdict,
    by_seed,
    not_shown,
    settings_of,
    untrained,
)

HEAD_MEMORY = "memory/peak_head_gib"
LEAST_SIZES, LEAST_BESIDE = 5, 2
"""Sizes, and sizes on either side of sqrt V, without which a sweep does not show where the least point lies."""


def least_memory_size(claim: Claim, method: Method, claims: Claims, evidence: Evidence) -> Verdict:
    """Is the head's peak memory least at sqrt V, among the sizes tried?

    Our loss keeps a chunk of rows at a time, so that it never holds but there: the logits of all rows, which the paper
    keeps, weigh sizes differently (`grouped_lm.plan.theory`).
    """
    best: tuple[int, Setting, dict[int, float], int, list[str]] | None = None
    for setting, rows in settings_of(evidence, claims.methods[claim.options["method"]], ANY_TEXT, None).items():
        known = {size: [r for r in seeds.values() if r.get(HEAD_MEMORY)] for size, seeds in sizes_in(rows).items()}
        peaks = {size: sum(r[HEAD_MEMORY] for r in own) / len(own) for size, own in known.items() if own}
        if peaks and (best is None or len(peaks) > best[0]):
            names = [r["run"] for own in known.values() for r in own]
            best = len(peaks), setting, peaks, root_of({k: dict(enumerate(v)) for k, v in known.items() if v}), names
    if best is None:
        return not_shown("no sweep of group sizes")
    _, setting, peaks, root, names = best
    sizes = sorted(peaks)
    beside = min(sum(size < root for size in sizes), sum(size > root for size in sizes))
    if len(sizes) < LEAST_SIZES or beside < LEAST_BESIDE or root not in peaks:
        return not_shown(f"only sizes {', '.join(map(str, sizes))}: too few on both sides of sqrt V = {root}", names)
    least = min(sizes, key=lambda size: peaks[size])
    at = sizes.index(least)
    low, high = sizes[max(0, at - 1)], sizes[min(len(sizes) - 1, at + 1)]
    chunked = f"the loss is in chunks of {DEFAULT_CHUNK_ROWS} rows"
    shape = f"{setting.model}, {setting.micro_batch_size} windows of {setting.block_size} tokens"
    found = f"{peaks[root] * 1024:.2f} MiB at S = {root} = sqrt(V), the least"
    if least != root:
        more = peaks[root] / peaks[least] - 1
        found = f"sqrt(V) = {root} takes {peaks[root] * 1024:.2f} MiB, {more:.1%} more than S = {least:,}"
    return Verdict(
        word=HOLDS_WHERE if least == root else FAILS,
        where=chunked if least == root else f"where {chunked}",
        figure=f"S = {least:,}",
        interval=f"between S = {low:,} and {high:,} (the sizes beside it)",
        why=f"{found}; {shape}. Where the logits of all N rows are kept, N (V / S + S) numbers are, least at sqrt(V).",
        value=float(least),
        low=float(low),
        high=float(high),
        runs=tuple(names),
    )


def sizes_in(rows: list[Row]) -> dict[int, dict[int, Row]]:
    """Return group size -> seed -> run."""
    known = [row for row in rows if row.get("group_size") and row.get("vocab_size")]
    ordered = sorted(known, key=lambda row: (row["group_size"], row["run"]))
    return {size: by_seed(group) for size, group in groupby(ordered, key=lambda row: row["group_size"])}


def sized_settings(claim: Claim, claims: Claims, evidence: Evidence) -> dict[Setting, dict[int, dict[int, Row]]]:
    """Return the settings of real text in which sqrt V and another size have complete runs."""
    found = {}
    for setting, rows in settings_of(evidence, claims.methods[claim.options["method"]], None, None).items():
        sizes = {size: seeds for size, seeds in sizes_in(rows).items() if seeds}
        if len(sizes) > 1 and root_of(sizes) in sizes:
            found[setting] = sizes
    return found


def root_of(sizes: dict[int, dict[int, Row]]) -> int:
    """Return round(sqrt V) of runs by size."""
    return default_group_size(next(iter(next(iter(sizes.values())).values()))["vocab_size"])


def size_no_worse(claim: Claim, method: Method, claims: Claims, evidence: Evidence) -> Verdict:
    """Is the loss at sqrt V no higher than at any other size, on every text, body and budget that was tried?"""
    words: dict[Setting, str] = {}
    parts, runs, worst = [], list[str](), None
    for setting, sizes in sorted(sized_settings(claim, claims, evidence).items()):
        root = root_of(sizes)
        if len(sizes[root]) < 2 or untrained(evidence, setting, sizes[root].values()):
            continue
        base = [row["val/loss"] for row in sizes[root].values()]
        others = {
            size: compare_methods(
                [row["val/loss"] for row in seeds.values()], base, margin=float(claim.threshold or 0.0)
            )
            for size, seeds in sizes.items()
            if size != root and len(seeds) > 1
        }
        if not others:
            continue
        places = [place_of(found) for found in others.values()]
        words[setting] = FAILS if FAILS in places else HOLDS if set(places) == {HOLDS} else NOT_SHOWN
        size, found = max(others.items(), key=lambda item: item[1].difference)
        parts.append(f"{setting.data}: S = {root} {found.difference:+.3f} nats over S = {size:,}, {setting.describe()}")
        runs += [row["run"] for seeds in sizes.values() for row in seeds.values()]
        if worst is None or found.difference > worst.difference:
            worst = found
    if worst is None:
        return not_shown("no text with several group sizes, several seeds each, and models that beat its frequencies")
    held = [setting for setting, word in words.items() if word == HOLDS]
    whole = len(held) == len(words) and len({setting.data for setting in held}) > 1
    word = HOLDS if whole else HOLDS_WHERE if held else FAILS if FAILS in words.values() else NOT_SHOWN
    failed = [setting for setting, found in words.items() if found == FAILS]
    where = "the text is " + "; ".join(f"{s.data} ({s.model}, {s.tokens / 1e6:.3g} million tokens)" for s in held)
    return Verdict(
        word=word,
        where=where if word == HOLDS_WHERE else "; ".join(f"after {s.describe()}" for s in (failed or words)),
        figure=f"{worst.difference:+.3f} nats",
        interval=f"{worst.low:+.3f} to {worst.high:+.3f} (90 %, {worst.seeds[1]} + {worst.seeds[0]} seeds)",
        why="Over the best other size, " + "; ".join(parts) + ".",
        value=worst.difference,
        low=worst.low,
        high=worst.high,
        runs=tuple(dict.fromkeys(runs)),
    )


def size_tasks(claim: Claim, method: Method, claims: Claims, evidence: Evidence) -> Verdict:
    """Are the shares of right answers at sqrt V no lower than at the other sizes, within the threshold?

    The interval (normal, 95 %) is that of two shares of as many questions as one run was asked: seeds are asked the
    same ones, so they add none. A task at which no model is better than chance is left out.
    """
    margin, chances = float(claim.threshold or 0.0), claim.options["chance"]
    reach_of = float(stats.norm.ppf(1 - LEVEL / 2))
    found: list[tuple[float, float, str, str]] = []
    runs: list[str] = []
    able: set[str] = set()
    for setting, sizes in sorted(sized_settings(claim, claims, evidence).items()):
        root = root_of(sizes)
        for task, chance in chances.items():
            shares = {size: _share(seeds, task) for size, seeds in sizes.items() if len(seeds) > 1}
            if shares.get(root) is None:
                continue
            for size, share in shares.items():
                if size != root and share is not None:
                    (own, n), (other, m) = shares[root], share  # type: ignore[misc]
                    if max(own - chance - reach_of * _sd(own, n), other - chance - reach_of * _sd(other, m)) > 0:
                        able.add(task)
                    reach = reach_of * math.hypot(_sd(own, n), _sd(other, m))
                    where = f"{task} on {setting.data}: {own:.1%} at S = {root}, {other:.1%} at S = {size:,}"
                    found.append((own - other, reach, where, task))
                    runs += [row["run"] for s in (root, size) for row in sizes[s].values()]
    if not found:
        return not_shown("`gvc eval` has not judged runs of several group sizes, several seeds each, on real text")
    bodies = " or ".join(dict.fromkeys(s.model for s in sized_settings(claim, claims, evidence)))
    idle = sorted(set(chances) - able)
    if not able:
        return not_shown("no model is better than chance", dict.fromkeys(runs))
    found = [entry for entry in found if entry[3] in able]
    worst = min(found, key=lambda entry: entry[0] - entry[1])
    gap, reach = worst[0], worst[1]
    if all(g - r > -margin for g, r, _, _ in found):
        word = HOLDS_WHERE
    else:
        word = FAILS if any(g + r < -margin for g, r, _, _ in found) else NOT_SHOWN
    why = f"At {' and '.join(idle)} no model is better than chance. " if idle else ""
    return Verdict(
        word=word,
        where=("the task is " if word == HOLDS_WHERE else "at ") + " or ".join(sorted(able)) + f", {bodies}",
        figure=f"{gap:+.1%}",
        interval=f"{gap - reach:+.1%} to {gap + reach:+.1%} (95 %, questions)",
        why=f"{why}The least favourable, {worst[2]}.",
        value=gap,
        low=gap - reach,
        high=gap + reach,
        runs=tuple(dict.fromkeys(runs)),
    )


def _share(seeds: dict[int, Row], task: str) -> tuple[float, int] | None:
    """Return the mean share of right answers over seeds, and the questions of one run."""
    rows = [row for row in seeds.values() if row.get(f"task/{task}_accuracy") is not None]
    if not rows:
        return None
    count = {"choice": "task/choices", "cloze": "task/clozes"}[task]
    return sum(row[f"task/{task}_accuracy"] for row in rows) / len(rows), int(rows[0][count])


def _sd(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / n)
