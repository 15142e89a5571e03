"""All rules by the names that `conf/reproduction/claims.yaml` uses, and the answers that they give."""

from dataclasses import dataclass, replace

from grouped_lm.reproduction import cost_rules, quality_rules, size_rules
from grouped_lm.reproduction.claims import Claim, Claims
from grouped_lm.reproduction.evidence import Evidence
from grouped_lm.reproduction.verdicts import NOT_SHOWN, SMOKE, Case, Rule, Verdict

RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        cost_rules.flops_ratio,
        cost_rules.gain_by_vocabulary,
        cost_rules.memory_grid,
        cost_rules.memory_ratio,
        cost_rules.speed_ratio,
        quality_rules.accuracy_sign,
        quality_rules.group_accuracy,
        quality_rules.no_worse,
        quality_rules.order_follows_frequency,
        quality_rules.rare_tokens,
        size_rules.least_memory_size,
        size_rules.size_no_worse,
        size_rules.size_tasks,
    )
}


@dataclass(frozen=True)
class Answer:
    """A claim, its verdict, and the verdict for our best head (None where the claim is not about a head)."""

    claim: Claim
    verdict: Verdict
    ours: Verdict | None


def answer_claims(claims: Claims, evidence: Evidence) -> list[Answer]:
    """Return the answer to every claim, in the order of the file."""
    answers = []
    for claim in claims.claims:
        rule, ours = RULES[claim.rule], None
        verdict = rule(Case(claim, claims.methods["paper"], claims, evidence))
        if claim.ours:
            options = {key: "ours" if value == "paper" else value for key, value in claim.options.items()}
            ours = rule(Case(replace(claim, options=options), claims.methods["ours"], claims, evidence))
        answers.append(Answer(claim, verdict, ours))
    if any(row.get("scale") == SMOKE for row in evidence["steps"]):
        return [
            Answer(answer.claim, _unanswered(answer.verdict), answer.ours and _unanswered(answer.ours))
            for answer in answers
        ]
    return answers


def _unanswered(verdict: Verdict) -> Verdict:
    """Return a verdict of the smoke test: it keeps its figures, and answers nothing."""
    return replace(verdict, word=NOT_SHOWN)
