"""Rules about quality: losses over seeds, groups, rare tokens, and what a group size costs in loss and in tasks.

Losses are nats per token. Differences are second method minus first, with 90 % intervals over seeds (the two one-sided
tests of `evaluate.significance`). One seed decides nothing. Models that are no better than token frequencies neither.
"""

import contextlib
import math
from dataclasses import replace

from scipy import stats

from grouped_lm.evaluate.significance import LEVEL, MethodDifference, compare_methods, compare_paired
from grouped_lm.reproduction.claims import Method
from grouped_lm.reproduction.evidence import Row
from grouped_lm.reproduction.verdicts import (
    FAILS,
    HOLDS,
    HOLDS_WHERE,
    NOT_SHOWN,
    Case,
    NoEvidenceError,
    Pair,
    Setting,
    Sizes,
    Verdict,
    best_setting,
    by_seed,
    check_trained,
    interval_verdict,
    is_text,
    pair_runs,
    root_of,
    settings_of,
    sizes_in,
    word_over,
)


def no_worse(case: Case) -> Verdict:
    """Is the loss of the second method no higher than the first's, within the threshold?

    Options: first, second (methods), text, body, models (the claim's bodies; for others the word is "holds where").
    """
    first, second, text = case.named("first"), case.named("second"), case.options["text"]
    missing = f"no complete runs of {first.name} and of {second.name} in one setting"
    runs = case.evidence["runs"]
    if runs and not any(is_text(str(row.get("data")), text) for row in runs):
        wanted = "real text" if text is None else "such a text"
        missing = f"no run on {wanted}: embedded stories say nothing about quality"
    pair = trained_pair(case, first, second, missing, text, case.options["body"])
    return difference_verdict(compare_losses(pair, case.threshold), pair, case.options["models"])


def trained_pair(
    case: Case, first: Method, second: Method, missing: str, text: str | None = None, body: str | None = None
) -> Pair:
    """Return the runs of both methods, as `pair_runs` chooses them.

    Raises:
        NoEvidenceError: there are none, for the reason `missing`, or those of the first method are not trained.
    """
    pair = pair_runs(case.evidence, first, second, text, body)
    if pair is None:
        raise NoEvidenceError(missing)
    check_trained(case.evidence, pair.setting, pair.first.values(), pair.runs)
    return pair


def compare_losses(pair: Pair, margin: float) -> MethodDifference:
    """Return the difference of the two methods' losses."""
    first, second = ([row["val/loss"] for _, row in sorted(rows.items())] for rows in (pair.first, pair.second))
    return compare_methods(first, second, margin=margin)


def difference_verdict(gap: MethodDifference, pair: Pair, models: list[str]) -> Verdict:
    """Return the verdict about "no worse": the whole interval is below +margin, above it, or neither."""
    failed = f"; {pair.failed} more {'run' if pair.failed == 1 else 'runs'} ended in failure" if pair.failed else ""
    figure, setting = f"{gap.difference:+.3f} nats", pair.setting
    if gap.low is None or gap.high is None:
        why = f"One seed decides nothing; {setting.describe()}{failed}."
        return Verdict(NOT_SHOWN, figure=figure, why=why, value=gap.difference, runs=pair.runs)
    word, where, margin = word_of(gap), f"after {setting.describe()}", f"the margin of {gap.margin:g} nats"
    why = f"Neither within {margin} nor beyond it, after {setting.describe()}"
    if word == HOLDS:
        why = f"{'Better by more than' if gap.high < -gap.margin else 'No worse by'} {margin}"
        if setting.model not in models:
            word, where = HOLDS_WHERE, setting.condition()
    elif word == FAILS:
        why = f"Worse by more than {margin}"
    span, kind = (gap.difference, gap.low, gap.high), f"90 %, {gap.seeds[0]} + {gap.seeds[1]} seeds"
    return interval_verdict(word, where, span, "{:+.3f} nats", kind, f"{why}{failed}.", pair.runs)


def word_of(gap: MethodDifference) -> str:
    """Return the word for "no worse", from a difference that has an interval."""
    if gap.low is None or gap.high is None:
        return NOT_SHOWN
    return HOLDS if gap.high < gap.margin else FAILS if gap.low > gap.margin else NOT_SHOWN


def group_accuracy(case: Case) -> Verdict:
    """Is the group right in at least `threshold` of all cases, in every run (two or more) of the longest budget?"""
    method = case.named("method")
    known = {
        setting: [row for row in by_seed(rows).values() if row.get("val/group_accuracy") is not None]
        for setting, rows in settings_of(case.evidence, method, None, None).items()
    }
    setting = best_setting({setting: len(rows) for setting, rows in known.items()})
    if setting is None:
        raise NoEvidenceError(f"no complete run of {method.name} on real text that says how often the group is right")
    names = tuple(row["run"] for row in known[setting])
    check_trained(case.evidence, setting, known[setting], names)
    values = [row["val/group_accuracy"] for row in known[setting]]
    if len(values) < 2:
        one = f"One seed decides nothing; {method.name}: {values[0]:.1%}, after {setting.describe()}."
        raise NoEvidenceError(one, names)
    low, high, mean = min(values), max(values), sum(values) / len(values)
    word = word_over([(low, high)], case.threshold)
    where = setting.condition() if word == HOLDS_WHERE else f"after {setting.describe()}"
    why = f"{method.name}, seed by seed: {', '.join(f'{value:.1%}' for value in values)}."
    return interval_verdict(word, where, (mean, low, high), "{:.1%}", f"range of {len(values)} seeds", why, names)


def accuracy_sign(case: Case) -> Verdict:
    """Is every head below the threshold in group accuracy worse than the full softmax? One that is not refutes it."""
    dense, margin = case.named("dense"), case.options["margin"]
    seen: list[tuple[Method, Pair, MethodDifference, float]] = []
    for method in (case.claims.methods[name] for name in case.options["methods"]):
        with contextlib.suppress(NoEvidenceError):
            pair = trained_pair(case, dense, method, "")
            values = (row.get("val/group_accuracy") for row in pair.second.values())
            known = [value for value in values if value is not None]
            gap = compare_losses(pair, margin)
            if known and max(known) < case.threshold and gap.low is not None:
                seen.append((method, pair, gap, max(known)))
    if not seen:
        why = "no head with groups under the line, and trained dense runs beside it, with several seeds"
        raise NoEvidenceError(why)
    best, pair, gap, accuracy = min(seen, key=lambda entry: (word_of(entry[2]) != HOLDS, entry[2].difference))
    refuted = word_of(gap) == HOLDS
    how = "no worse than" if refuted else "not shown as good as"
    return replace(
        difference_verdict(gap, pair, []),
        word=FAILS if refuted else NOT_SHOWN,
        where=f"after {pair.setting.describe()}",
        figure=f"{gap.difference:+.3f} nats at {accuracy:.1%}",
        why=f"{best.name} is right in {accuracy:.1%} at most, and {how} dense.",
    )


def order_follows_frequency(case: Case) -> Verdict:
    """Is the rank correlation of id and count at least `threshold` on every text? "Holds" needs two texts."""
    rows = [row for row in case.evidence["order"] if is_text(str(row["data"]), None)]
    if not rows:
        raise NoEvidenceError("no real text was counted")
    texts = [str(row["data"]) for row in rows]
    word = word_over([(row["low"], row["high"]) for row in rows], case.threshold, len(set(texts)) > 1)
    where = "on " + " and ".join(texts)
    if word == HOLDS_WHERE:
        where = "the text is " + ", ".join(str(row["data"]) for row in rows if row["low"] >= case.threshold)
    parts = [
        f"{row['data']}: {row['rank_correlation']:.2f}; the first {row['first']:,} ids hold "
        f"{row['share_of_first']:.0%} of the tokens, the most frequent ones {row['share_of_top']:.0%}"
        for row in rows
    ]
    figure = " and ".join(f"{row['rank_correlation']:.2f}" for row in rows)
    interval = "; ".join(f"{row['low']:.2f} to {row['high']:.2f}" for row in rows) + " (95 %)"
    span = rows[0]["rank_correlation"], rows[0]["low"], rows[0]["high"]
    runs = tuple(f"order of {text}" for text in texts)
    return Verdict(word, where, figure, interval, "; ".join(parts) + ".", *span, runs=runs)


def rare_tokens(case: Case) -> Verdict:
    """Is the loss minus the first method's no higher for the rarest tenth than for the most frequent, by seed?"""
    first, second = case.named("first"), case.named("second")
    losses: dict[str, dict[str, float]] = {}
    for row in case.evidence["deciles"]:
        losses.setdefault(row["run"], {})[row["decile"].split(" (")[0]] = row["loss"]
    case.evidence = {**case.evidence, "runs": [row for row in case.evidence["runs"] if row["run"] in losses]}
    missing = f"no runs of {first.name} and of {second.name} on real text that `gvc eval` has evaluated"
    pair = trained_pair(case, first, second, missing)
    gaps: dict[str, list[float]] = {"decile 1": [], "decile 10": []}
    used: list[str] = []
    for seed in sorted(pair.first.keys() & pair.second.keys()):
        names = [rows[seed]["run"] for rows in (pair.first, pair.second)]
        if all(losses.get(name, {}).keys() >= gaps.keys() for name in names):
            used += names
            for decile, values in gaps.items():
                values.append(losses[names[1]][decile] - losses[names[0]][decile])
    if not used:
        raise NoEvidenceError(f"no seed with an evaluated run of {first.name} and one of {second.name}")
    worse = [rare - frequent for frequent, rare in zip(*gaps.values(), strict=True)]
    gap = compare_paired(worse, margin=case.threshold)
    frequent, rare = (sum(values) / len(values) for values in gaps.values())
    why = f"Over dense: {frequent:+.3f} nats in the most frequent tenth, {rare:+.3f} in the rarest"
    verdict = replace(difference_verdict(gap, pair, []), why=f"{why}.", runs=tuple(used))
    if gap.low is None:
        return replace(verdict, why=f"{why}; one seed decides nothing.")
    return replace(verdict, interval=f"{gap.low:+.3f} to {gap.high:+.3f} (90 %, {len(worse)} seeds, paired)")


def sized_settings(case: Case) -> dict[Setting, Sizes]:
    """Return the settings of real text in which sqrt V and another size have complete runs, in order."""
    settings = sorted(settings_of(case.evidence, case.named("method"), None, None).items())
    known = {setting: sizes_in(rows) for setting, rows in settings}
    return {setting: sizes for setting, sizes in known.items() if len(sizes) > 1 and root_of(sizes) in sizes}


def size_no_worse(case: Case) -> Verdict:
    """Is the loss at sqrt V no higher than at any other size, on every text, body and budget that was tried?"""
    words: dict[Setting, str] = {}
    parts, runs, worst = [], list[str](), None
    for setting, sizes in sized_settings(case).items():
        root, gaps = root_of(sizes), dict[int, MethodDifference]()
        losses = {size: [row["val/loss"] for row in seeds.values()] for size, seeds in sizes.items() if len(seeds) > 1}
        with contextlib.suppress(NoEvidenceError):
            check_trained(case.evidence, setting, sizes[root].values())
            others = {size: own for size, own in losses.items() if size != root and root in losses}
            gaps = {size: compare_methods(own, losses[root], case.threshold) for size, own in others.items()}
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
        why = "no text with several group sizes, several seeds each, and models that beat its frequencies"
        raise NoEvidenceError(why)
    held, failed = ([s for s, word in words.items() if word == wanted] for wanted in (HOLDS, FAILS))
    word = HOLDS_WHERE if held else FAILS if failed else NOT_SHOWN
    where = "; ".join(f"after {setting.describe()}" for setting in (failed or words))
    if len(held) == len(words) and len({setting.data for setting in held}) > 1:
        word = HOLDS
    elif held:
        texts = (f"{s.data} ({s.model}, {s.tokens / 1e6:.3g} million tokens)" for s in held)
        where = "the text is " + "; ".join(texts)
    why = "Over the best other size, " + "; ".join(parts) + "."
    kind, span = f"90 %, {worst.seeds[1]} + {worst.seeds[0]} seeds", (worst.difference, worst.low, worst.high)
    return interval_verdict(word, where, span, "{:+.3f} nats", kind, why, runs)


def size_tasks(case: Case) -> Verdict:
    """Are the shares of right answers at sqrt V no lower than at the other sizes, within the threshold?

    The interval (normal, 95 %) is that of two shares over the questions of one run. Seeds answer the same questions,
    so they add none. A task at which no model is better than chance is left out.
    """
    chances, z = case.options["chance"], float(stats.norm.ppf(1 - LEVEL / 2))
    gaps: list[tuple[float, float, str, str]] = []
    runs, able = list[str](), set[str]()
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
        raise NoEvidenceError(
            "`gvc eval` has not evaluated runs of several group sizes, several seeds each, on real text"
        )
    if not able:
        raise NoEvidenceError("no model is better than chance", runs)
    gaps = [entry for entry in gaps if entry[3] in able]
    gap, reach, least, _ = min(gaps, key=lambda entry: entry[0] - entry[1])
    word = FAILS if any(g + r < -case.threshold for g, r, _, _ in gaps) else NOT_SHOWN
    if all(g - r > -case.threshold for g, r, _, _ in gaps):
        word = HOLDS_WHERE
    bodies = " or ".join(dict.fromkeys(setting.model for setting in settings))
    idle = sorted(set(chances) - able)
    why = f"At {' and '.join(idle)} no model is better than chance. " if idle else ""
    where = ("the task is " if word == HOLDS_WHERE else "at ") + " or ".join(sorted(able)) + f", {bodies}"
    span, why = (gap, gap - reach, gap + reach), f"{why}The least favourable, {least}."
    return interval_verdict(word, where, span, "{:+.1%}", "95 %, questions", why, runs)


def _share(seeds: dict[int, Row], task: str) -> tuple[float, int] | None:
    """Return the mean share of right answers over two or more seeds, and the number of questions of one run."""
    rows = [row for row in seeds.values() if row.get(f"task/{task}_accuracy") is not None]
    if len(rows) < 2:
        return None
    count = {"choice": "task/choices", "cloze": "task/clozes"}[task]
    return sum(row[f"task/{task}_accuracy"] for row in rows) / len(rows), int(rows[0][count])


def _sd(share: float, n: int) -> float:
    """Return the standard error of a share of n answers."""
    return math.sqrt(share * (1 - share) / n)
