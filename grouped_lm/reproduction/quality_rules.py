"""Rules about quality: losses over seeds, groups, rare tokens.

Losses are nats per token. Differences are second method minus first, with 90 % intervals over seeds (the two one-sided
tests of `evaluate.significance`). One seed decides nothing. Models that are no better than token frequencies neither.
"""

from dataclasses import replace

from grouped_lm.evaluate.significance import MethodDifference, compare_methods, compare_paired
from grouped_lm.reproduction.claims import Method
from grouped_lm.reproduction.evidence import Evidence
from grouped_lm.reproduction.verdicts import (
    FAILS,
    HOLDS,
    HOLDS_WHERE,
    NOT_SHOWN,
    Case,
    Pair,
    Verdict,
    best_setting,
    by_seed,
    is_text,
    not_shown,
    pair_runs,
    settings_of,
    untrained,
)


def no_worse(case: Case) -> Verdict:
    """Is the loss of the second method no higher than the first's, within the threshold?

    Options: first, second (methods), text, body, models (the claim's bodies; for others the word is "holds where").
    """
    first, second, text = case.named("first"), case.named("second"), case.options["text"]
    pair = pair_runs(case.evidence, first, second, text, case.options["body"])
    if pair is None:
        return not_shown(_what_is_missing(case.evidence, first, second, text))
    reason = untrained(case.evidence, pair.setting, pair.first.values())
    if reason:
        return not_shown(reason, pair.runs)
    return difference_verdict(compare_losses(pair, case.threshold), pair, case.options["models"])


def compare_losses(pair: Pair, margin: float) -> MethodDifference:
    """Return the difference of the two methods' losses."""
    first, second = ([row["val/loss"] for _, row in sorted(rows.items())] for rows in (pair.first, pair.second))
    return compare_methods(first, second, margin=margin)


def _what_is_missing(evidence: Evidence, first: Method, second: Method, text: str | None) -> str:
    if evidence["runs"] and not any(is_text(str(row.get("data")), text) for row in evidence["runs"]):
        return f"no run on {'real text' if text is None else 'such a text'}: embedded stories say nothing about quality"
    return f"no complete runs of {first.name} and of {second.name} in one setting"


def difference_verdict(gap: MethodDifference, pair: Pair, models: list[str]) -> Verdict:
    """Return the verdict about "no worse": the whole interval is below +margin, above it, or neither."""
    seeds, failed = f"{gap.seeds[0]} + {gap.seeds[1]} seeds", ""
    if pair.failed:
        failed = f"; {pair.failed} more {'run' if pair.failed == 1 else 'runs'} ended in failure"
    figure, setting = f"{gap.difference:+.3f} nats", pair.setting
    if gap.low is None or gap.high is None:
        why = f"One seed decides nothing; {setting.describe()}{failed}."
        return Verdict(word=NOT_SHOWN, figure=figure, why=why, value=gap.difference, runs=pair.runs)
    word, where, margin = word_of(gap), f"after {setting.describe()}", f"the margin of {gap.margin:g} nats"
    why = f"Neither within {margin} nor beyond it, after {setting.describe()}"
    if word == HOLDS:
        why = f"{'Better by more than' if gap.high < -gap.margin else 'No worse by'} {margin}"
        if setting.model not in models:
            word, where = HOLDS_WHERE, setting.condition()
    elif word == FAILS:
        why = f"Worse by more than {margin}"
    return Verdict(
        word=word,
        where=where,
        figure=figure,
        interval=f"{gap.low:+.3f} to {gap.high:+.3f} (90 %, {seeds})",
        why=f"{why}{failed}.",
        value=gap.difference,
        low=gap.low,
        high=gap.high,
        runs=pair.runs,
    )


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
        return not_shown(f"no complete run of {method.name} on real text that says how often the group is right")
    names = [row["run"] for row in known[setting]]
    reason = untrained(case.evidence, setting, known[setting])
    if reason:
        return not_shown(reason, names)
    values = [row["val/group_accuracy"] for row in known[setting]]
    if len(values) < 2:
        return not_shown(
            f"One seed decides nothing; {method.name}: {values[0]:.1%}, after {setting.describe()}.", names
        )
    low, high, mean = min(values), max(values), sum(values) / len(values)
    word = HOLDS_WHERE if low >= case.threshold else FAILS if high < case.threshold else NOT_SHOWN
    return Verdict(
        word=word,
        where=setting.condition() if word == HOLDS_WHERE else f"after {setting.describe()}",
        figure=f"{mean:.1%}",
        interval=f"{low:.1%} to {high:.1%} (range of {len(values)} seeds)",
        why=f"{method.name}, seed by seed: {', '.join(f'{value:.1%}' for value in values)}.",
        value=mean,
        low=low,
        high=high,
        runs=tuple(names),
    )


def accuracy_sign(case: Case) -> Verdict:
    """Is every head below the threshold in group accuracy worse than the full softmax? One that is not refutes it."""
    dense, margin = case.named("dense"), case.options["margin"]
    seen: list[tuple[Method, Pair, MethodDifference, float]] = []
    for method in (case.claims.methods[name] for name in case.options["methods"]):
        pair = pair_runs(case.evidence, dense, method)
        if pair is None or untrained(case.evidence, pair.setting, pair.first.values()) is not None:
            continue
        accuracies = [row.get("val/group_accuracy") for row in pair.second.values()]
        known = [value for value in accuracies if value is not None]
        gap = compare_losses(pair, margin)
        if known and max(known) < case.threshold and gap.low is not None:
            seen.append((method, pair, gap, max(known)))
    if not seen:
        return not_shown("no head with groups under the line, and trained dense runs beside it, with several seeds")
    best, pair, gap, accuracy = min(seen, key=lambda entry: entry[2].difference)
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
        return not_shown("no real text was counted")
    good = [row for row in rows if row["low"] >= case.threshold]
    bad = [row for row in rows if row["high"] < case.threshold]
    word = FAILS if len(bad) == len(rows) else HOLDS_WHERE if good else NOT_SHOWN
    if len(good) == len(rows) and len({row["data"] for row in rows}) > 1:
        word = HOLDS
    where = "on " + " and ".join(str(row["data"]) for row in rows)
    if word == HOLDS_WHERE:
        where = "the text is " + ", ".join(str(row["data"]) for row in good)
    parts = [
        f"{row['data']}: {row['rank_correlation']:.2f}; the first {row['first']:,} ids hold "
        f"{row['share_of_first']:.0%} of the tokens, the most frequent ones {row['share_of_top']:.0%}"
        for row in rows
    ]
    return Verdict(
        word=word,
        where=where,
        figure=" and ".join(f"{row['rank_correlation']:.2f}" for row in rows),
        interval="; ".join(f"{row['low']:.2f} to {row['high']:.2f}" for row in rows) + " (95 %)",
        why="; ".join(parts) + ".",
        value=rows[0]["rank_correlation"],
        low=rows[0]["low"],
        high=rows[0]["high"],
        runs=tuple(f"order of {row['data']}" for row in rows),
    )


def rare_tokens(case: Case) -> Verdict:
    """Is the loss minus the first method's no higher for the rarest tenth than for the most frequent, by seed?"""
    first, second = case.named("first"), case.named("second")
    losses: dict[str, dict[str, float]] = {}
    for row in case.evidence["deciles"]:
        losses.setdefault(row["run"], {})[row["decile"].split(" (")[0]] = row["loss"]
    evaluated = [row for row in case.evidence["runs"] if row["run"] in losses]
    pair = pair_runs({**case.evidence, "runs": evaluated}, first, second)
    if pair is None:
        return not_shown(f"no runs of {first.name} and of {second.name} on real text that `gvc eval` has judged")
    reason = untrained(case.evidence, pair.setting, pair.first.values())
    if reason:
        return not_shown(reason, pair.runs)
    gaps: dict[str, list[float]] = {"decile 1": [], "decile 10": []}
    used: list[str] = []
    for seed in sorted(pair.first.keys() & pair.second.keys()):
        names = [rows[seed]["run"] for rows in (pair.first, pair.second)]
        if all(losses.get(name, {}).keys() >= gaps.keys() for name in names):
            used += names
            for decile, values in gaps.items():
                values.append(losses[names[1]][decile] - losses[names[0]][decile])
    if not used:
        return not_shown(f"no seed with a judged run of {first.name} and one of {second.name}")
    worse = [rare - frequent for frequent, rare in zip(*gaps.values(), strict=True)]
    gap = compare_paired(worse, margin=case.threshold)
    verdict = difference_verdict(gap, pair, [])
    if gap.low is not None:
        verdict = replace(verdict, interval=f"{gap.low:+.3f} to {gap.high:+.3f} (90 %, {len(worse)} seeds, paired)")
    frequent, rare = (sum(values) / len(values) for values in gaps.values())
    why = f"Over dense: {frequent:+.3f} nats in the most frequent tenth, {rare:+.3f} in the rarest"
    if gap.low is None:
        why += "; one seed decides nothing"
    return replace(verdict, why=f"{why}.", runs=tuple(used))
