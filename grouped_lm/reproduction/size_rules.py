"""Rules about group sizes: where memory is smallest, and what a size costs in loss and in tasks."""

import math
from itertools import groupby

from scipy import stats

from grouped_lm.evaluate.significance import LEVEL, compare_methods
from grouped_lm.grouping import default_group_size
from grouped_lm.heads.losses.chunked import DEFAULT_CHUNK_ROWS
from grouped_lm.reproduction.evidence import Row
from grouped_lm.reproduction.quality_rules import word_of
from grouped_lm.reproduction.verdicts import (
    ANY_TEXT,
    FAILS,
    HOLDS,
    HOLDS_WHERE,
    NOT_SHOWN,
    Case,
    Setting,
    Verdict,
    by_seed,
    not_shown,
    settings_of,
    untrained,
)

HEAD_MEMORY = "memory/peak_head_gib"
MIN_SIZES, MIN_SIZES_BESIDE = 5, 2
"""Fewest sizes, and fewest on each side of sqrt V, that show where memory is smallest."""
Sizes = dict[int, dict[int, Row]]
"""Group size -> seed -> run."""


def least_memory_size(case: Case) -> Verdict:
    """Is the peak memory of the head smallest at sqrt V, among the sizes tried?

    The paper keeps the logits of all rows; our loss keeps one chunk of rows at a time. Sizes weigh differently then
    (`grouped_lm.plan.theory`), so the word is never more than "holds where".
    """
    best: tuple[Setting, dict[int, float], int, list[str]] | None = None
    for setting, rows in settings_of(case.evidence, case.named("method"), ANY_TEXT, None).items():
        known = {
            size: {seed: row for seed, row in seeds.items() if row.get(HEAD_MEMORY)}
            for size, seeds in sizes_in(rows).items()
        }
        known = {size: seeds for size, seeds in known.items() if seeds}
        if known and (best is None or len(known) > len(best[1])):
            peaks = {size: sum(row[HEAD_MEMORY] for row in own.values()) / len(own) for size, own in known.items()}
            names = [row["run"] for own in known.values() for row in own.values()]
            best = setting, peaks, root_of(known), names
    if best is None:
        return not_shown("no sweep of group sizes")
    setting, peaks, root, names = best
    sizes = sorted(peaks)
    beside = min(sum(size < root for size in sizes), sum(size > root for size in sizes))
    if len(sizes) < MIN_SIZES or beside < MIN_SIZES_BESIDE or root not in peaks:
        return not_shown(f"only sizes {', '.join(map(str, sizes))}: too few on both sides of sqrt V = {root}", names)
    least = min(sizes, key=lambda size: peaks[size])
    at = sizes.index(least)
    low, high = sizes[max(0, at - 1)], sizes[min(len(sizes) - 1, at + 1)]
    chunked = f"the loss is in chunks of {DEFAULT_CHUNK_ROWS} rows"
    shape = f"{setting.model}, {setting.micro_batch_size} windows of {setting.block_size} tokens"
    result = f"{peaks[root] * 1024:.2f} MiB at S = {root} = sqrt(V), the least"
    if least != root:
        more = peaks[root] / peaks[least] - 1
        result = f"sqrt(V) = {root} takes {peaks[root] * 1024:.2f} MiB, {more:.1%} more than S = {least:,}"
    return Verdict(
        word=HOLDS_WHERE if least == root else FAILS,
        where=chunked if least == root else f"where {chunked}",
        figure=f"S = {least:,}",
        interval=f"between S = {low:,} and {high:,} (the sizes beside it)",
        why=f"{result}; {shape}. Where the logits of all N rows are kept, N (V / S + S) numbers are, least at sqrt(V).",
        value=float(least),
        low=float(low),
        high=float(high),
        runs=tuple(names),
    )


def sizes_in(rows: list[Row]) -> Sizes:
    """Return complete runs by group size and seed."""
    known = [row for row in rows if row.get("group_size") and row.get("vocab_size")]
    ordered = sorted(known, key=lambda row: (row["group_size"], row["run"]))
    return {size: by_seed(group) for size, group in groupby(ordered, key=lambda row: row["group_size"])}


def sized_settings(case: Case) -> dict[Setting, Sizes]:
    """Return the settings of real text in which sqrt V and another size have complete runs, in order."""
    settings = {}
    for setting, rows in sorted(settings_of(case.evidence, case.named("method"), None, None).items()):
        sizes = {size: seeds for size, seeds in sizes_in(rows).items() if seeds}
        if len(sizes) > 1 and root_of(sizes) in sizes:
            settings[setting] = sizes
    return settings


def root_of(sizes: Sizes) -> int:
    """Return round(sqrt V) of runs by size."""
    return default_group_size(next(iter(next(iter(sizes.values())).values()))["vocab_size"])


def size_no_worse(case: Case) -> Verdict:
    """Is the loss at sqrt V no higher than at any other size, on every text, body and budget that was tried?"""
    words: dict[Setting, str] = {}
    parts, runs, worst = [], list[str](), None
    for setting, sizes in sized_settings(case).items():
        root = root_of(sizes)
        if len(sizes[root]) < 2 or untrained(case.evidence, setting, sizes[root].values()):
            continue
        losses = {size: [row["val/loss"] for row in seeds.values()] for size, seeds in sizes.items()}
        gaps = {
            size: compare_methods(own, losses[root], margin=case.threshold)
            for size, own in losses.items()
            if size != root and len(own) > 1
        }
        if not gaps:
            continue
        own_words = {word_of(gap) for gap in gaps.values()}
        words[setting] = FAILS if FAILS in own_words else HOLDS if own_words == {HOLDS} else NOT_SHOWN
        size, gap = max(gaps.items(), key=lambda item: item[1].difference)
        parts.append(f"{setting.data}: S = {root} {gap.difference:+.3f} nats over S = {size:,}, {setting.describe()}")
        runs += [row["run"] for seeds in sizes.values() for row in seeds.values()]
        if worst is None or gap.difference > worst.difference:
            worst = gap
    if worst is None:
        return not_shown("no text with several group sizes, several seeds each, and models that beat its frequencies")
    held, failed = ([s for s, word in words.items() if word == wanted] for wanted in (HOLDS, FAILS))
    word = HOLDS_WHERE if held else FAILS if failed else NOT_SHOWN
    where = "; ".join(f"after {setting.describe()}" for setting in (failed or words))
    if len(held) == len(words) and len({setting.data for setting in held}) > 1:
        word = HOLDS
    elif held:
        texts = (f"{s.data} ({s.model}, {s.tokens / 1e6:.3g} million tokens)" for s in held)
        where = "the text is " + "; ".join(texts)
    return Verdict(
        word=word,
        where=where,
        figure=f"{worst.difference:+.3f} nats",
        interval=f"{worst.low:+.3f} to {worst.high:+.3f} (90 %, {worst.seeds[1]} + {worst.seeds[0]} seeds)",
        why="Over the best other size, " + "; ".join(parts) + ".",
        value=worst.difference,
        low=worst.low,
        high=worst.high,
        runs=tuple(dict.fromkeys(runs)),
    )


def size_tasks(case: Case) -> Verdict:
    """Are the shares of right answers at sqrt V no lower than at the other sizes, within the threshold?

    The interval (normal, 95 %) is that of two shares over the questions of one run. Seeds answer the same questions,
    so they add none. A task at which no model is better than chance is left out.
    """
    chances, z = case.options["chance"], float(stats.norm.ppf(1 - LEVEL / 2))
    gaps: list[tuple[float, float, str, str]] = []
    runs: list[str] = []
    able: set[str] = set()
    settings = sized_settings(case)
    for setting, sizes in settings.items():
        root = root_of(sizes)
        for task, chance in chances.items():
            shares = {size: share for size, seeds in sizes.items() if (share := _share(seeds, task))}
            for size, (other, m) in shares.items() if root in shares else ():
                if size != root:
                    own, n = shares[root]
                    if max(own - chance - z * _sd(own, n), other - chance - z * _sd(other, m)) > 0:
                        able.add(task)
                    where = f"{task} on {setting.data}: {own:.1%} at S = {root}, {other:.1%} at S = {size:,}"
                    gaps.append((own - other, z * math.hypot(_sd(own, n), _sd(other, m)), where, task))
                    runs += [row["run"] for s in (root, size) for row in sizes[s].values()]
    if not gaps:
        return not_shown("`gvc eval` has not judged runs of several group sizes, several seeds each, on real text")
    if not able:
        return not_shown("no model is better than chance", dict.fromkeys(runs))
    gaps = [entry for entry in gaps if entry[3] in able]
    gap, reach, least, _ = min(gaps, key=lambda entry: entry[0] - entry[1])
    word = FAILS if any(g + r < -case.threshold for g, r, _, _ in gaps) else NOT_SHOWN
    if all(g - r > -case.threshold for g, r, _, _ in gaps):
        word = HOLDS_WHERE
    bodies = " or ".join(dict.fromkeys(setting.model for setting in settings))
    idle = sorted(set(chances) - able)
    why = f"At {' and '.join(idle)} no model is better than chance. " if idle else ""
    return Verdict(
        word=word,
        where=("the task is " if word == HOLDS_WHERE else "at ") + " or ".join(sorted(able)) + f", {bodies}",
        figure=f"{gap:+.1%}",
        interval=f"{gap - reach:+.1%} to {gap + reach:+.1%} (95 %, questions)",
        why=f"{why}The least favourable, {least}.",
        value=gap,
        low=gap - reach,
        high=gap + reach,
        runs=tuple(dict.fromkeys(runs)),
    )


def _share(seeds: dict[int, Row], task: str) -> tuple[float, int] | None:
    """Return the mean share of right answers over two or more seeds, and the number of questions of one run."""
    rows = [row for row in seeds.values() if row.get(f"task/{task}_accuracy") is not None]
    if not rows or len(seeds) < 2:
        return None
    count = {"choice": "task/choices", "cloze": "task/clozes"}[task]
    return sum(row[f"task/{task}_accuracy"] for row in rows) / len(rows), int(rows[0][count])


def _sd(share: float, n: int) -> float:
    """Return the standard error of a share of n answers."""
    return math.sqrt(share * (1 - share) / n)
