"""All rules by the names that `conf/reproduction/claims.yaml` uses, and the answers that they give."""

from dataclasses import dataclass, replace

from grouped_lm.reproduction import cost_rules, quality_rules
from grouped_lm.reproduction.claims import Claim, Claims
from grouped_lm.reproduction.evidence import Evidence
from grouped_lm.reproduction.verdicts import NOT_SHOWN, SMOKE, Case, NoEvidenceError, Rule, Verdict

RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        cost_rules.flops_ratio,
        cost_rules.gain_by_vocabulary,
        cost_rules.least_memory_size,
        cost_rules.memory_grid,
        cost_rules.memory_ratio,
        cost_rules.speed_ratio,
        quality_rules.accuracy_sign,
        quality_rules.group_accuracy,
        quality_rules.no_worse,
        quality_rules.order_follows_frequency,
        quality_rules.rare_tokens,
        quality_rules.size_no_worse,
        quality_rules.size_tasks,
    )
}


@dataclass(frozen=True)
class Answer:
    """A claim, its verdict, and the verdict for our best head (None where the claim is not about a head)."""

    claim: Claim
    verdict: Verdict
    ours: Verdict | None


def answer_claims(claims: Claims, evidence: Evidence) -> list[Answer]:
    """Return the answer to every claim, in the order of the file. A smoke test keeps figures, and answers nothing."""
    smoke = any(row.get("scale") == SMOKE for row in evidence["steps"])

    def ask(claim: Claim, method: str) -> Verdict:
        options = {key: method if value == "paper" else value for key, value in claim.options.items()}
        try:
            verdict = RULES[claim.rule](Case(claim, options, method, claims, evidence))
        except NoEvidenceError as error:
            return Verdict(NOT_SHOWN, why=str(error), runs=error.runs)
        return replace(verdict, word=NOT_SHOWN) if smoke else verdict

    return [Answer(claim, ask(claim, "paper"), ask(claim, "ours") if claim.ours else None) for claim in claims.claims]
