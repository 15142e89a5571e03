"""Verdicts, and the choice of runs that can be compared: the parts that all rules share.

Each rule is a function of a `Case`. No rule says "holds" where there is no evidence for it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from grouped_lm.grouping import default_group_size
from grouped_lm.report.series import settings_of as run_settings
from grouped_lm.reproduction.claims import Claim, Claims, Method
from grouped_lm.reproduction.evidence import Evidence, Row, head_options
from grouped_lm.reproduction.steps import STORIES
from grouped_lm.runs.folder import COMPLETE
from grouped_lm.runs.query import text_of
from grouped_lm.runs.table import COST_SETTINGS
from grouped_lm.system.tables import group_rows

HOLDS, HOLDS_WHERE, FAILS, NOT_SHOWN = "holds", "holds where", "does not hold", "not shown at this scale"
WORDS = (HOLDS, HOLDS_WHERE, FAILS, NOT_SHOWN)
SMOKE = "smoke"
"""The scale that only tests whether the steps run."""
SYNTHETIC = "tinytales"
"""The embedded stories. They say nothing about quality."""
ANY_TEXT = "any"
"""For results that do not depend on the text."""


@dataclass(frozen=True)
class Verdict:
    """The answer to one claim."""

    word: str
    """One of `WORDS`."""
    where: str = ""
    """The condition of "holds where". For other words: the setting, "" where there is none to name."""
    figure: str = "-"
    """The number that decides, with its unit."""
    interval: str = ""
    """The interval or range of the figure, with its kind in brackets."""
    why: str = ""
    """One sentence."""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    runs: tuple[str, ...] = ()
    """The runs, or the rows of a bench, that it comes from."""

    @property
    def text(self) -> str:
        """The verdict in words."""
        if not self.where or self.word == NOT_SHOWN:
            return self.word
        return f"{self.word} {self.where}" if self.word == HOLDS_WHERE else f"{self.word}, {self.where}"


class Case:
    """A claim, the method that it is asked about, and the evidence.

    Args:
        options: the options that claims.yaml gives to the rule.
    """

    def __init__(self, claim: Claim, options: dict[str, Any], method: str, claims: Claims, evidence: Evidence) -> None:
        self.options, self.claims, self.evidence = options, claims, evidence
        self.method, self.dense = claims.methods[method], claims.methods["dense"]
        self.threshold = float(claim.threshold or 0.0)

    def named(self, option: str) -> Method:
        """Return the method that an option names."""
        return self.claims.methods[self.options[option]]


Rule = Callable[[Case], Verdict]
Span = tuple[float | None, float | None, float | None]


class NoEvidenceError(Exception):
    """Raised by a rule for a claim about which the evidence says nothing; `runs` were looked at."""

    def __init__(self, why: str, runs: Iterable[str] = ()) -> None:
        super().__init__(why)
        self.runs = tuple(dict.fromkeys(runs))


def interval_verdict(word: str, where: str, span: Span, form: str, kind: str, why: str, runs: Iterable[str]) -> Verdict:
    """Return a verdict about a number that has an interval.

    Args:
        word: one of `WORDS`.
        where: the condition, or the setting.
        span: the number, and the ends of its interval.
        form: format of all three; the figure alone has the unit behind a space.
        kind: of the interval.
        why: one sentence.
        runs: the runs that it comes from; repeated ones count once.
    """
    low, high = (form.split()[0].format(end) for end in span[1:])
    figure, interval = form.format(span[0]), f"{low} to {high} ({kind})"
    return Verdict(word, where, figure, interval, why, *span, tuple(dict.fromkeys(runs)))


def word_over(spans: list[tuple[float, float]], threshold: float, general: bool = False) -> str:
    """Return the word for "at least `threshold`" from intervals: all, some or none of them are above it.

    Args:
        spans: low and high, one or more.
        threshold: the number that decides.
        general: whether "holds" needs no condition if all intervals are above.
    """
    reached = [low >= threshold for low, _ in spans]
    if general and all(reached):
        return HOLDS
    return HOLDS_WHERE if any(reached) else FAILS if all(high < threshold for _, high in spans) else NOT_SHOWN


@dataclass(frozen=True, order=True)
class Setting:
    """The settings that two runs must share to be compared. The learning rate is not among them: see `best_runs`."""

    data: str
    model: str
    tokenizer: str
    max_steps: int
    micro_batch_size: int
    grad_accum_steps: int
    block_size: int
    text: tuple[str, ...]
    """Tells texts of one label apart: see `text_of`."""

    @property
    def tokens(self) -> int:
        """Tokens of the whole training."""
        return self.max_steps * self.micro_batch_size * self.grad_accum_steps * self.block_size

    def describe(self) -> str:
        """Return budget, text and body in words."""
        return f"{self.tokens / 1e6:.3g} million tokens of {self.data}, {self.model}"

    def condition(self) -> str:
        """Return budget, text and body as the condition of "holds where"."""
        return f"the body is {self.model}, after {self.tokens / 1e6:.3g} million tokens of {self.data}"


def setting_of(row: Row) -> Setting | None:
    """Return the setting of a run; None if its config lacks a part of it."""
    keys = ("data", "model", "tokenizer", "train.max_steps", "train.micro_batch_size", "train.grad_accum_steps")
    values = [*(row.get(key) for key in (*keys, "model.block_size")), text_of(row)]
    return None if None in values else Setting(*values)  # type: ignore[arg-type]


ADDED = {"head.inner_scale": False, "head.second_order": False}
"""Options of heads that older tables lack, and what they had instead."""


def matches(row: Row, method: Method) -> bool:
    """Return whether a run is one of `method`, without counts of n-grams beside the network."""
    if row.get("prior"):
        return False
    known = ADDED | head_options(row) | row
    root = default_group_size(row["vocab_size"]) if row.get("vocab_size") else None
    return all(known.get(key) == (root if value == "sqrt" else value) for key, value in method.match.items())


def is_text(data: str, wanted: str | None) -> bool:
    """Return whether runs on `data` can decide a claim about `wanted`: tinystories, other, any, or None (real text)."""
    if wanted == ANY_TEXT or data == SYNTHETIC:
        return wanted == ANY_TEXT
    return wanted is None or data.startswith(STORIES) == (wanted == STORIES)


def best_setting(seeds: dict[Setting, int]) -> Setting | None:
    """Return the setting with the most evidence: several seeds before one, then most tokens, then most seeds.

    Of several, that of the claims' text and of a GPT-2 body.
    """

    def rank(setting: Setting) -> tuple[Any, ...]:
        ours = setting.data.startswith(STORIES), setting.model.startswith("gpt2")
        return (min(seeds[setting], 2), setting.tokens, seeds[setting], *ours, setting)

    return max((setting for setting, count in seeds.items() if count), key=rank, default=None)


def by_seed(rows: Iterable[Row]) -> dict[int, Row]:
    """Return one complete run per seed, the first by name."""
    runs: dict[int, Row] = {}
    for row in sorted(rows, key=lambda row: str(row["run"])):
        if row.get("state") == COMPLETE and isinstance(row.get("val/loss"), float | int) and "seed" in row:
            runs.setdefault(row["seed"], row)
    return runs


def settings_of(evidence: Evidence, method: Method, text: str | None, body: str | None) -> dict[Setting, list[Row]]:
    """Return the runs of a method at its best learning rate by setting, failed ones too."""
    settings: dict[Setting, list[Row]] = {}
    for row in evidence["runs"]:
        setting = setting_of(row)
        if setting and is_text(setting.data, text) and matches(row, method) and body in (None, row.get("model.body")):
            settings.setdefault(setting, []).append(row)
    return {setting: best_runs(rows) for setting, rows in settings.items()}


def chosen_in(row: Row) -> tuple[Any, ...]:
    """Return all settings that decide what a run computes, but for its seed: runs of a method share all of them."""
    settings = {key: value for key, value in run_settings(row).items() if key not in (*COST_SETTINGS, "device")}
    return row.get("head_options"), row.get("grouping"), *sorted(settings.items())


def best_runs(rows: list[Row]) -> list[Row]:
    """Return, for each group size, the runs of the best learning rate, and of one set of other options.

    The best has most complete seeds; of several, the least mean loss. A contest tries every rate with one seed, and the
    best one with the others.
    """

    def rank(own: list[Row]) -> tuple[int, float]:
        losses = [row["val/loss"] for row in by_seed(own).values()]
        return -len(losses), sum(losses) / len(losses) if losses else 0.0

    best: list[Row] = []
    for own in group_rows(rows, lambda row: (row.get("group_size"),)).values():
        chosen: list[Row] = min(group_rows(own, chosen_in).values(), key=rank)
        best += chosen
    return best


def runs_in(evidence: Evidence, method: Method, setting: Setting) -> dict[int, Row]:
    """Return the complete runs of a method in a setting, by seed."""
    return by_seed(settings_of(evidence, method, ANY_TEXT, None).get(setting, []))


@dataclass(frozen=True)
class Pair:
    """The runs of two methods in one setting, by seed."""

    setting: Setting
    first: dict[int, Row]
    second: dict[int, Row]
    failed: int
    """Runs of both methods that failed."""

    @property
    def runs(self) -> tuple[str, ...]:
        """The names of all runs."""
        return tuple(row["run"] for rows in (self.first, self.second) for _, row in sorted(rows.items()))


def pair_runs(
    evidence: Evidence, first: Method, second: Method, text: str | None = None, body: str | None = None
) -> Pair | None:
    """Return the runs of both methods in the best setting that both have; None if there is none."""
    pairs: dict[Setting, Pair] = {}
    others = settings_of(evidence, second, text, body)
    for setting, rows in settings_of(evidence, first, text, body).items():
        seeds = by_seed(rows), by_seed(others.get(setting, []))
        if all(seeds):
            failed = sum(row.get("state") == "failed" for row in [*rows, *others[setting]])
            pairs[setting] = Pair(setting, *seeds, failed)
    best = best_setting({setting: min(len(pair.first), len(pair.second)) for setting, pair in pairs.items()})
    return None if best is None else pairs[best]


VALID_TOKENS = "data.max_valid_tokens"
"""Runs that differ in it alone have one training text, and two keys of `text_of`."""


def check_trained(evidence: Evidence, setting: Setting, rows: Iterable[Row], runs: Iterable[str] = ()) -> None:
    """Check that runs can decide something: that they know more than how frequent tokens are.

    Raises:
        NoEvidenceError: their mean loss is not below the unigram entropy of the training text (nats per token), or
            that entropy is not known. Of several texts with one label, all must be counted, and the least entropy
            decides.
    """
    own = list(rows)
    known = [row for row in evidence["runs"] if row.get(VALID_TOKENS) == own[0].get(VALID_TOKENS)]
    texts = {text_of(row) for row in _labelled(known, setting)}
    floors = [row["unigram_nats"] for row in _labelled(evidence["order"], setting) if row.get("unigram_nats")]
    why = f"nobody counted {setting.data}, which says what models must beat: `gvc data order` of its training text"
    if floors and len(floors) < len(texts):
        why = f"{len(texts)} texts are called {setting.data}, and not all were counted: give each its data.name"
    elif floors:
        loss, floor = sum(row["val/loss"] for row in own) / len(own), min(floors)
        if loss < floor:
            return
        why = (
            f"models that lose {loss:.2f} nats, no less than the {floor:.2f} of token frequencies alone, are untrained"
        )
    raise NoEvidenceError(why, runs)


def _labelled(rows: Iterable[Row], setting: Setting) -> list[Row]:
    """Return the rows with the label and the tokenizer of a setting."""
    return [row for row in rows if (row.get("data"), row.get("tokenizer")) == (setting.data, setting.tokenizer)]


Sizes = dict[int, dict[int, Row]]
"""Group size -> seed -> run."""


def sizes_in(rows: list[Row]) -> Sizes:
    """Return complete runs by group size and seed."""
    known = [row for row in rows if row.get("group_size") and row.get("vocab_size")]
    ordered = sorted(known, key=lambda row: (row["group_size"], row["run"]))
    sizes = {size: by_seed(group) for size, group in groupby(ordered, key=lambda row: row["group_size"])}
    return {size: seeds for size, seeds in sizes.items() if seeds}


def root_of(sizes: Sizes) -> int:
    """Return round(sqrt V) of runs by size."""
    return default_group_size(next(row["vocab_size"] for seeds in sizes.values() for row in seeds.values()))
