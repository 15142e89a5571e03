"""Which head to take, from the losses and speeds of a screen, and why, in one sentence.

Full runs are ranked by validation loss, lowest first. Heads within the noise of the lowest loss are tied with it, and
of these the fastest is the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from grouped_lm.advise.heads import REFERENCE
from grouped_lm.plan.heads import WORTH

Losses = Mapping[int, float]
"""Validation losses in nats per token, by step."""
ONE_SEED_NOISE = 0.003
"""Nats that stand for the noise where one seed leaves it unknown. Two seeds of one head often differ by more."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a screen knows of one head."""

    name: str
    losses: Mapping[int, Losses]
    """By seed. The first seed is 0, and every trial has it."""
    tokens_per_sec: float | None = None
    """Measured while training; None before the first measurement."""
    problem: str | None = None
    """Why it could not be trained, if it could not."""
    note: str | None = None
    """Why its run was left as it is, if it was: it is complete, or beyond the step of a comparison."""

    @property
    def step(self) -> int:
        """The last step with a loss, 0 if there is none."""
        return max(self.losses.get(0, {}), default=0)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The head to take, and what it gains over the cheapest exact softmax."""

    head: str
    step: int
    """Step at which the heads that were not cut were compared."""
    ranking: list[str]
    """Heads that reached that step, best first."""
    tied: list[str] = field(default_factory=list)
    """Heads whose loss is within the noise of the lowest one, that one included."""
    noise: float | None = None
    """Nats. How much the lead of the lowest loss over the next one changes with the seed; None with one seed."""
    untrained: str | None = None
    """Why the reference has no loss at this step, if it could not be trained."""
    gain: float | None = None
    """Loss of the reference minus that of the head at `gain_step`, nats."""
    gain_step: int = 0
    speedup: float | None = None
    """Tokens per second of the head over those of the reference."""

    @property
    def lower(self) -> bool:
        """Whether the loss of the head is below that of the reference by more than the noise."""
        return self.gain is not None and self.gain > known_noise(self.noise)

    @property
    def worth_it(self) -> bool:
        """Whether the head has a lower loss than the reference, or is `WORTH` times as fast, or there is no other."""
        better = self.lower or (self.speedup or 0.0) >= WORTH or self.untrained is not None
        return self.head != REFERENCE and better


def known_noise(noise: float | None) -> float:
    """Return the noise, or `ONE_SEED_NOISE` where it is not known."""
    return ONE_SEED_NOISE if noise is None else noise


def common_step(first: Trial, second: Trial, seed: int = 0) -> int:
    """Return the last step at which both have a loss with that seed, 0 if there is none."""
    return max(first.losses.get(seed, {}).keys() & second.losses.get(seed, {}).keys(), default=0)


def gap(first: Trial, second: Trial, step: int, seed: int = 0) -> float:
    """Return the loss of the second minus that of the first at a step."""
    return second.losses[seed][step] - first.losses[seed][step]


def measure_noise(first: Trial, second: Trial) -> float | None:
    """Return how much the gap between two heads changes with the seed, in nats; None if they share one seed only.

    It is the root mean square, over steps and further seeds, of the change of the gap against that of seed 0.
    """
    changes = [
        gap(first, second, step, seed) - gap(first, second, step)
        for seed in first.losses.keys() & second.losses.keys() - {0}
        for step in first.losses[seed].keys() & second.losses[seed].keys()
        if step in first.losses[0] and step in second.losses[0]
    ]
    return (sum(change**2 for change in changes) / len(changes)) ** 0.5 if changes else None


def decide(trials: Sequence[Trial], step: int) -> Verdict | None:
    """Return the verdict of a screen; None where no head has a loss at the step.

    Heads with a loss at the step are compared there. The others were cut at an earlier step, where they were behind.
    """
    ranked = sorted((t for t in trials if step in t.losses.get(0, {})), key=lambda t: t.losses[0][step])
    if not ranked:
        return None
    lead, *others = ranked
    noise = measure_noise(lead, others[0]) if others else None
    tied = [lead, *(t for t in others if gap(lead, t, step) <= known_noise(noise))]
    head = max(tied, key=lambda t: t.tokens_per_sec or 0.0)
    reference = next((t for t in trials if t.name == REFERENCE and t.step), None)
    gain_step = 0 if reference is None else common_step(head, reference)
    speeds = (head.tokens_per_sec, reference.tokens_per_sec if reference else None)
    return Verdict(
        head=head.name,
        step=step,
        ranking=[head.name, *(t.name for t in ranked if t is not head)],
        tied=[trial.name for trial in tied],
        noise=noise,
        untrained=reference_problem(trials, step),
        gain=gap(head, reference, gain_step) if reference and gain_step else None,
        gain_step=gain_step,
        speedup=speeds[0] / speeds[1] if speeds[0] and speeds[1] else None,
    )


def reference_problem(trials: Sequence[Trial], step: int) -> str | None:
    """Return why the reference has no loss at a step, None if it has one or was only cut."""
    reference = next((trial for trial in trials if trial.name == REFERENCE), None)
    return reference.problem if reference and step not in reference.losses.get(0, {}) else None


def largest_body(head_flops: float, reference_flops: float) -> float:
    """Return the body's FLOPs per token above which a head is less than `WORTH` times as fast as the reference.

    All are FLOPs of the forward pass. It is 0 where the head is never so fast.
    """
    return max(0.0, (reference_flops - WORTH * head_flops) / (WORTH - 1))


def sentence(verdict: Verdict, full_steps: int, body_limit: float | None = None, body: float = 0.0) -> str:
    """Return which head to take, what it gains over the reference, and when not to bother, in one sentence.

    Args:
        verdict: that of the screen.
        full_steps: the length of a full run.
        body_limit: that of `largest_body`, None where it is not known.
        body: FLOPs per token of the body that was screened.
    """
    if verdict.untrained is not None and verdict.head != REFERENCE:
        return f"Take variant={verdict.head}: variant={REFERENCE} could not be trained ({verdict.untrained})."
    when = f"after {verdict.gain_step:,} of {full_steps:,} steps"
    if verdict.head == REFERENCE:
        return (
            f"Take variant={REFERENCE}, the softmax over the types of the text: {when} no head that was screened has "
            "a loss that is lower beyond the noise, so do not bother with another one."
        )
    gains = []
    if verdict.gain is not None:
        side = "below" if verdict.gain >= 0 else "above"
        gains.append(f"its loss is {abs(verdict.gain):.3f} nats {side} that of {REFERENCE} {when}")
    if verdict.speedup is not None:
        gains.append(f"it trains at {verdict.speedup:.2f} times the speed")
    gained = " and ".join(gains) or f"{REFERENCE} has no loss yet"
    if not verdict.worth_it:
        return (
            f"Do not bother: variant={verdict.head} is first, but {gained}, and variant={REFERENCE} is simpler and "
            "does as well."
        )
    return f"Take variant={verdict.head}: {gained}; {_when_not(verdict, body_limit, body)}."


def _when_not(verdict: Verdict, body_limit: float | None, body: float) -> str:
    if (verdict.speedup or 0.0) < WORTH:
        return "do not bother where speed is all that you need"
    if not body_limit or body_limit <= body:  # the measured speed of this body says more than its FLOPs
        return "do not bother where the body takes nearly all of the time"
    only = " but for the loss" if verdict.lower else ""
    return (
        f"do not bother{only} with a body of more than {body_limit / 1e6:,.0f} MFLOPs per token, where it is less than "
        f"{WORTH} times as fast"
    )
