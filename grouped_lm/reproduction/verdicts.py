"""From tables to verdicts: what a verdict is, which runs speak for a method, and the list of all answers.

The rules stand in `quality_rules` and `cost_rules`. Each is a function of a claim, a method and the evidence; none
of them says "holds" where there is nothing to say it from.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from grouped_lm.grouping import default_group_size
from grouped_lm.reproduction.claims import Claim, Claims, Method
from grouped_lm.reproduction.evidence import Evidence, Row, head_options
from grouped_lm.reproduction.steps import STORIES
from grouped_lm.runs.folder import COMPLETE

HOLDS, HOLDS_WHERE, FAILS, NOT_SHOWN = "holds", "holds where", "does not hold", "not shown at this scale"
WORDS = (HOLDS, HOLDS_WHERE, FAILS, NOT_SHOWN)
SYNTHETIC = "tinytales"
"""The embedded stories: nothing about quality follows from them."""
ANY_TEXT = "any"
"""For what does not depend on the text."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One answer."""

    word: str
    """One of `WORDS`."""
    where: str = ""
    """The condition of "holds where"; else in which setting this was seen, "" where there is none to name."""
    figure: str = "-"
    """The number that decides, with its unit."""
    interval: str = ""
    """Its interval, or the range that it comes from, and which of them."""
    why: str = ""
    """One sentence."""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    runs: tuple[str, ...] = ()
    """The runs, or rows of a bench, behind it."""

    @property
    def text(self) -> str:
        """The verdict in words."""
        if not self.where or self.word == NOT_SHOWN:
            return self.word
        return f"{self.word} {self.where}" if self.word == HOLDS_WHERE else f"{self.word}, {self.where}"


Rule = Callable[[Claim, Method, Claims, Evidence], Verdict]


def not_shown(why: str, runs: Iterable[str] = ()) -> Verdict:
    """Return the verdict of whoever lacks data."""
    return Verdict(word=NOT_SHOWN, why=why, runs=tuple(runs))


@dataclass(frozen=True, order=True)
class Setting:
    """What two runs must share to be compared."""

    data: str
    model: str
    tokenizer: str
    max_steps: int
    micro_batch_size: int
    grad_accum_steps: int
    block_size: int
    lr: float

    @property
    def tokens(self) -> int:
        """Of the whole training."""
        return self.max_steps * self.micro_batch_size * self.grad_accum_steps * self.block_size

    def describe(self) -> str:
        """Return budget, text and body in words."""
        return f"{self.tokens / 1e6:.3g} million tokens of {self.data}, {self.model}"

    def condition(self) -> str:
        """Return the same behind "holds where"."""
        return f"the body is {self.model}, after {self.tokens / 1e6:.3g} million tokens of {self.data}"


def setting_of(row: Row) -> Setting | None:
    """Return a run's setting, None where its config says too little."""
    keys = ("data", "model", "tokenizer", "train.max_steps", "train.micro_batch_size", "train.grad_accum_steps")
    values = [row.get(key) for key in (*keys, "model.block_size", "optim.lr")]
    return None if None in values else Setting(*values)  # type: ignore[arg-type]


def matches(row: Row, method: Method) -> bool:
    """Return whether a run is one of `method`."""
    known = head_options(row) | row
    for key, wanted in method.match.items():
        value = known.get(key)
        if wanted == "sqrt":
            wanted = default_group_size(row["vocab_size"]) if row.get("vocab_size") else None
        if value not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def is_text(data: str, wanted: str | None) -> bool:
    """Return whether runs on `data` may decide a claim about `wanted`: tinystories, other, None (real text) or any."""
    if wanted == ANY_TEXT or data == SYNTHETIC:
        return wanted == ANY_TEXT
    return wanted is None or data.startswith(STORIES) == (wanted == STORIES)


def heaviest(seeds: dict[Setting, int]) -> Setting | None:
    """Return the setting that says most: several seeds before one, then the longest budget, then the most seeds."""
    known = [setting for setting, count in seeds.items() if count]
    return max(known, key=lambda s: (min(seeds[s], 2), s.tokens, seeds[s], s), default=None)


def by_seed(rows: Iterable[Row]) -> dict[int, Row]:
    """Return one complete run per seed, the first by name."""
    found: dict[int, Row] = {}
    for row in sorted(rows, key=lambda row: str(row["run"])):
        if row.get("state") == COMPLETE and isinstance(row.get("val/loss"), float | int) and "seed" in row:
            found.setdefault(row["seed"], row)
    return found


def settings_of(evidence: Evidence, method: Method, text: str | None, body: str | None) -> dict[Setting, list[Row]]:
    """Return the runs of a method, broken ones too, by setting."""
    found: dict[Setting, list[Row]] = {}
    for row in evidence["runs"]:
        setting = setting_of(row)
        if setting is None or not is_text(setting.data, text) or not matches(row, method):
            continue
        if body is None or row.get("model.body") == body:
            found.setdefault(setting, []).append(row)
    return found


@dataclass(frozen=True)
class Pair:
    """Two methods in one setting, by seed."""

    setting: Setting
    first: dict[int, Row]
    second: dict[int, Row]
    broken: int
    """Runs of either that did not end well."""

    @property
    def runs(self) -> tuple[str, ...]:
        """The names of all runs."""
        return tuple(row["run"] for rows in (self.first, self.second) for _, row in sorted(rows.items()))


def pair_runs(
    evidence: Evidence, first: Method, second: Method, text: str | None = None, body: str | None = None
) -> Pair | None:
    """Return both methods' runs in the heaviest setting that both have."""
    pairs: dict[Setting, Pair] = {}
    others = settings_of(evidence, second, text, body)
    for setting, rows in settings_of(evidence, first, text, body).items():
        seeds = by_seed(rows), by_seed(others.get(setting, []))
        if all(seeds):
            broken = sum(row.get("state") == "failed" for row in [*rows, *others[setting]])
            pairs[setting] = Pair(setting, *seeds, broken)
    best = heaviest({setting: min(len(pair.first), len(pair.second)) for setting, pair in pairs.items()})
    return None if best is None else pairs[best]


def floor_of(evidence: Evidence, setting: Setting) -> float | None:
    """Return the unigram entropy of a setting's training text in nats per token, None where nobody counted it."""
    rows = [row for row in evidence["order"] if row.get("unigram_nats") is not None]
    rows = [row for row in rows if (row.get("data"), row.get("tokenizer")) == (setting.data, setting.tokenizer)]
    return next((row["unigram_nats"] for row in rows), None)


def untrained(evidence: Evidence, setting: Setting, rows: Iterable[Row]) -> str | None:
    """Return why these runs decide nothing: they know no more than how frequent tokens are. None where they do."""
    losses, floor = [row["val/loss"] for row in rows], floor_of(evidence, setting)
    if floor is None:
        return f"nobody counted {setting.data}, which says what models must beat: `gvc data order` of its training text"
    loss = sum(losses) / len(losses)
    if loss < floor:
        return None
    return f"models that lose {loss:.2f} nats, no less than the {floor:.2f} of token frequencies alone, are untrained"


@dataclass(frozen=True)
class Answer:
    """A claim, what came of it, and what comes of it with our best head (None where that makes no sense)."""

    claim: Claim
    verdict: Verdict
    ours: Verdict | None


def judge(claims: Claims, evidence: Evidence) -> list[Answer]:
    """Return the answer to every claim, in the order of the file."""
    from grouped_lm.reproduction.rules import RULES

    answers = []
    for claim in claims.claims:
        rule, ours = RULES[claim.rule], None
        verdict = rule(claim, claims.methods["paper"], claims, evidence)
        if claim.ours:
            ours = rule(with_ours(claim), claims.methods["ours"], claims, evidence)
        answers.append(Answer(claim, verdict, ours))
    return answers


def with_ours(claim: Claim) -> Claim:
    """Return the claim with our best head where its options name the paper's."""
    return replace(claim, options={k: "ours" if v == "paper" else v for k, v in claim.options.items()})
