"""Rules about what models know: losses over seeds, groups, rare tokens, tasks.

Losses are nats per token. Differences are second less first, with 90 % intervals over seeds: the two one-sided tests of
`evaluate.significance`. One seed decides nothing, and neither do models that lose as much as the frequencies of tokens.
"""

from dataclasses import replace

from grouped_lm.evaluate.significance import MethodDifference, compare_methods, compare_paired
from grouped_lm.reproduction.claims import Claim, Claims, Method
from grouped_lm.reproduction.evidence import Evidence
from grouped_lm.reproduction.verdicts import (
    FAILS,
    HOLDS,
    HOLDS_WHERE,
    NOT_SHOWN,
    Pair,
    Verdict,
    by_seed,
    heaviest,
    is_text,
    not_shown,
    pair_runs,
    settings_of,
    untrained,
)


def no_worse(claim: Claim, method: Method, claims: Claims, evidence: Evidence) -> Verdict:
    """Is the second method's loss no higher than the first's, within the threshold?

    Options: first, second (methods), text, body, models (bodies that the claim is about: on others it "holds where").
    """
    o, methods = claim.options, claims.methods
    pair = pair_runs(evidence, methods[o["first"]], methods[o["second"]], o["text"], o["body"])
    if pair is None:
        return not_shown(_lacking(evidence, methods[o["first"]], methods[o["second"]], o["text"]))
    lacking = untrained(evidence, pair.setting, pair.first.values())
    if lacking:
        return not_shown(lacking, pair.runs)
    return difference_verdict(compare_losses(pair, float(claim.threshold or 0.0)), pair, o["models"])


def compare_losses(pair: Pair, margin: float) -> MethodDifference:
    """Return how the second method's losses differ from the first's."""
    first, second = ([row["val/loss"] for _, row in sorted(rows.items())] for rows in (pair.first, pair.second))
    return compare_methods(first, second, margin=margin)


def _lacking(evidence: Evidence, first: Method, second: Method, text: str | None) -> str:
    real = [row for row in evidence["runs"] if is_text(str(row.get("data")), text)]
    if evidence["runs"] and not real:
        return f"no run on {'real text' if text is None else 'such a text'}: embedded stories say nothing about quality"
    return f"no complete runs of {first.name} and of {second.name} in one setting"


def difference_verdict(found: MethodDifference, pair: Pair, models: list[str]) -> Verdict:
    """Return a verdict about "no worse": the whole interval below +margin, or above it, or neither."""
    seeds, broken = f"{found.seeds[0]} + {found.seeds[1]} seeds", ""
    if pair.broken:
        broken = f"; {pair.broken} more {'run' if pair.broken == 1 else 'runs'} ended in failure"
    figure, setting = f"{found.difference:+.3f} nats", pair.setting
    if found.low is None or found.high is None:
        why = f"One seed decides nothing; {setting.describe()}{broken}."
        return Verdict(word=NOT_SHOWN, figure=figure, why=why, value=found.difference, runs=pair.runs)
    word, where, margin = place_of(found), f"after {setting.describe()}", f"the margin of {found.margin:g} nats"
    why = f"Neither within {margin} nor beyond it, after {setting.describe()}"
    if word == HOLDS:
        why = f"{'Better by more than' if found.high < -found.margin else 'No worse by'} {margin}"
        if setting.model not in models:
            word, where = HOLDS_WHERE, setting.condition()
    elif word == FAILS:
        why = f"Worse by more than {margin}"
    return Verdict(
        word=word,
        where=where,
        figure=figure,
        interval=f"{found.low:+.3f} to {found.high:+.3f} (90 %, {seeds})",
        why=f"{why}{broken}.",
        value=found.difference,
        low=found.low,
        high=found.high,
        runs=pair.runs,
    )


def place_of(found: MethodDifference) -> str:
    assert found.low is not None
    assert found.high is not None
    if found.high < found.margin:
        return HOLDS
    return FAILS if found.low > found.margin else NOT_SHOWN


def group_accuracy(claim: Claim, method: Method, claims: Claims, evidence: Evidence) -> Verdict:
    """Is the group right in at least `threshold` of all cases, in every run (two or more) of the longest budget?"""
    chosen = claims.methods[claim.options["method"]]
    settings = settings_of(evidence, chosen, None, None)
    known = {
        s: [r for r in by_seed(rows).values() if r.get("val/group_accuracy") is not None]
        for s, rows in settings.items()
    }
    setting = heaviest({s: len(rows) for s, rows in known.items()})
    if setting is None:
        return not_shown(f"no complete run of {chosen.name} on real text that says how often the group is right")
    names = [row["run"] for row in known[setting]]
    lacking = untrained(evidence, setting, known[setting])
    if lacking:
        return not_shown(lacking, names)
    values = [row["val/group_accuracy"] for row in known[setting]]
    if len(values) < 2:
        return not_shown(
            f"One seed decides nothing; {chosen.name}: {values[0]:.1%}, after {setting.describe()}.", names
        )
    low, high, line = min(values), max(values), float(claim.threshold or 0.0)
    word = HOLDS_WHERE if low >= line else FAILS if high < line else NOT_SHOWN
    return Verdict(
        word=word,
        where=setting.condition() if word == HOLDS_WHERE else f"after {setting.describe()}",
        figure=f"{sum(values) / len(values):.1%}",
        interval=f"{low:.1%} to {high:.1%} (range of {len(values)} seeds)",
        why=f"{chosen.name}, seed by seed: {', '.join(f'{value:.1%}' for value in values)}.",
        value=sum(values) / len(values),
        low=low,
        high=high,
        runs=tuple(names),
    )


def accuracy_sign(claim: Claim, method: Method, claims: Claims, evidence: Evidence) -> Verdict:
    """Is there no head that stays under the line and is no worse than the full softmax? One such head refutes it."""
    line, dense = float(claim.threshold or 0.0), claims.methods[claim.options["dense"]]
    seen: list[tuple[Method, Pair, MethodDifference, float]] = []
    for name in claim.options["methods"]:
        pair = pair_runs(evidence, dense, claims.methods[name])
        accuracies = [row.get("val/group_accuracy") for row in pair.second.values()] if pair else []
        known = [value for value in accuracies if value is not None]
        trained = pair is not None and untrained(evidence, pair.setting, pair.first.values()) is None
        if pair is not None and trained and known and max(known) < line:
            found = compare_losses(pair, claim.options["margin"])
            if found.low is not None:
                seen.append((claims.methods[name], pair, found, max(known)))
    if not seen:
        return not_shown("no head with groups under the line, and trained dense runs beside it, with several seeds")
    best, pair, found, accuracy = min(seen, key=lambda entry: entry[2].difference)
    refuted = place_of(found) == HOLDS
    how = "no worse than" if refuted else "not shown as good as"
    why = f"{best.name} is right in {accuracy:.1%} at most, and {how} dense"
    return replace(
        difference_verdict(found, pair, []),
        word=FAILS if refuted else NOT_SHOWN,
        where=f"after {pair.setting.describe()}",
        figure=f"{found.difference:+.3f} nats at {accuracy:.1%}",
        why=f"{why}.",
    )


def order_follows_frequency(claim: Claim, method: Method, claims: Claims, evidence: Evidence) -> Verdict:
    """Is the rank correlation of id and count at least `threshold`, on every text? One text is not every one."""
    line = float(claim.threshold or 0.0)
    rows = [row for row in evidence["order"] if is_text(str(row["data"]), None)]
    if not rows:
        return not_shown("no real text was counted")
    good = [row for row in rows if row["low"] >= line]
    bad = [row for row in rows if row["high"] < line]
    whole = len(good) == len(rows) and len({row["data"] for row in rows}) > 1
    word = HOLDS if whole else FAILS if len(bad) == len(rows) else HOLDS_WHERE if good else NOT_SHOWN
    where = {HOLDS_WHERE: "the text is " + ", ".join(str(row["data"]) for row in good)}.get(
        word, "on " + " and ".join(str(row["data"]) for row in rows)
    )
    first = rows[0]
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
        value=first["rank_correlation"],
        low=first["low"],
        high=first["high"],
        runs=tuple(f"order of {row['data']}" for row in rows),
    )


def rare_tokens(claim: Claim, method: Method, claims: Claims, evidence: Evidence) -> Verdict:
    """Is the loss over the first method in the rarest tenth no higher than in the most frequent one, seed by seed?"""
    first, second = (claims.methods[claim.options[key]] for key in ("first", "second"))
    losses: dict[str, dict[str, float]] = {}
    for row in evidence["deciles"]:
        losses.setdefault(row["run"], {})[row["decile"].split(" (")[0]] = row["loss"]
    judged = [row for row in evidence["runs"] if row["run"] in losses]
    pair = pair_runs({**evidence, "runs": judged}, first, second)
    if pair is None:
        return not_shown(f"no runs of {first.name} and of {second.name} on real text that `gvc eval` has judged")
    lacking = untrained(evidence, pair.setting, pair.first.values())
    if lacking:
        return not_shown(lacking, pair.runs)
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
    worse = [rare - often for often, rare in zip(*gaps.values(), strict=True)]
    found = compare_paired(worse, margin=float(claim.threshold or 0.0))
    verdict = difference_verdict(found, pair, [])
    if found.low is not None:
        verdict = replace(verdict, interval=f"{found.low:+.3f} to {found.high:+.3f} (90 %, {len(worse)} seeds, paired)")
    means = [sum(values) / len(values) for values in gaps.values()]
    why = f"Over dense: {means[0]:+.3f} nats in the most frequent tenth, {means[1]:+.3f} in the rarest"
    if found.low is None:
        why += "; one seed decides nothing"
    return replace(verdict, why=f"{why}.", runs=tuple(used))
