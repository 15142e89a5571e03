"""Costs and losses of heads as tables for people."""

from collections.abc import Sequence

from grouped_lm.advise.heads import REFERENCE, HeadCost
from grouped_lm.advise.verdict import ONE_SEED_NOISE, Trial, Verdict, common_step, gap
from grouped_lm.config import Config
from grouped_lm.measure.devices import Device
from grouped_lm.plan.heads import WORTH
from grouped_lm.system.tables import GIB, MIB, Column, Table


def cost_of(costs: Sequence[HeadCost], name: str) -> HeadCost:
    """Return the cost of a variant."""
    return next(cost for cost in costs if cost.variant.name == name)


def cost_table(config: Config, costs: Sequence[HeadCost], device: Device) -> Table:
    """Return memory and speed of every head by the plan, the fastest first."""
    known = [cost.peak_bytes for cost in costs if cost.peak_bytes]
    unit, size = ("GiB", GIB) if known and min(known) >= GIB else ("MiB", MIB)
    rate = cost_of(costs, REFERENCE).tokens_per_sec
    rows = [
        {
            "variant": cost.variant.name,
            "memory": cost.peak_bytes and cost.peak_bytes / size,
            "speed": cost.tokens_per_sec,
            "times": cost.tokens_per_sec / rate if cost.tokens_per_sec and rate else None,
        }
        for cost in sorted(costs, key=lambda cost: -(cost.tokens_per_sec or 0))
    ]
    shown = (
        Column("variant", "variant"),
        Column(f"memory, {unit}", "memory", "{:,.2f}" if unit == "GiB" else "{:,.1f}"),
        Column("tokens/s, planned", "speed", "{:,.0f}"),
        Column(f"times {REFERENCE}", "times", "{:.2f}"),
    )
    title = f"Costs of a training step: {config.model.name}, {config.train.dtype}, {device.name}"
    note = f"{REFERENCE} is the full softmax over the types of the text. - is not planned: it depends on the batch."
    return Table(columns=shown, rows=rows, title=title, note=note)


def screen_table(trials: Sequence[Trial], verdict: Verdict, full_steps: int, device: Device) -> Table:
    """Return the losses and speeds of the heads that were screened, in the order of the verdict."""
    by_name = {trial.name: trial for trial in trials}
    lead = min((by_name[name] for name in verdict.ranking), key=lambda trial: trial.losses[0][verdict.step])
    others = sorted((t for t in trials if t.name not in verdict.ranking), key=lambda t: -t.step)
    reference = by_name[REFERENCE].tokens_per_sec
    rows = []
    for trial in [*(by_name[name] for name in verdict.ranking), *others]:
        step, rate = common_step(lead, trial), trial.tokens_per_sec
        rows.append(
            {
                "variant": trial.name,
                "steps": trial.step or None,
                "loss": trial.losses[0][trial.step] if trial.step else None,
                "behind": gap(lead, trial, step) if step else None,
                "speed": rate,
                "times": rate / reference if rate and reference else None,
            }
        )
    shown = (
        Column("variant", "variant"),
        Column("steps", "steps", "{:,}"),
        Column("loss", "loss", "{:.3f}"),
        Column("behind", "behind", "{:+.3f}"),
        Column("tokens/s" if device.name == "cpu" else f"on {device.name}", "speed", "{:,.0f}"),
        Column(f"times {REFERENCE}", "times", "{:.2f}"),
    )
    noise = f"taken as {ONE_SEED_NOISE} nats" if verdict.noise is None else f"{verdict.noise:.3f} nats"
    note = (
        "loss: nats per token on a part of the validation text. behind: loss above the lowest one, at the same step. "
        f"Heads within the noise ({noise}) are tied, and the fastest of them is first."
    )
    note += "".join(f" {line}." for line in missing_heads(trials, verdict.step))
    return Table(columns=shown, rows=rows, title=f"Screen, of {full_steps:,} steps of a full run", note=note)


def missing_heads(trials: Sequence[Trial], step: int) -> list[str]:
    """Return which heads could not be trained, and which have no loss at a step though they were not cut, and why."""
    lines = []
    for trial in trials:
        if trial.problem:
            lines.append(f"{trial.name} is out: {trial.problem.rstrip('.')}")
        elif trial.note and step not in trial.losses.get(0, {}):
            lines.append(f"{trial.name} is left out: {trial.note}")
    return lines


def planned_sentence(costs: Sequence[HeadCost]) -> str:
    """Return what memory and speed alone say, where no screen was made."""
    reference = cost_of(costs, REFERENCE).tokens_per_sec or 1.0
    tried = [cost for cost in costs if cost.variant.screen and cost.tokens_per_sec]
    best = max(tried, key=lambda cost: cost.tokens_per_sec or 0.0)
    times = (best.tokens_per_sec or 0.0) / reference
    if times < WORTH:
        return (
            f"By the plan no head trains {WORTH} times as fast as {REFERENCE} with this body, so do not bother for "
            "speed; --minutes 5 says whether one has a lower loss."
        )
    return (
        f"By the plan {best.variant.name} trains {times:.1f} times as fast as {REFERENCE}; what it costs or gains in "
        "loss is not known without a screen: --minutes 5."
    )
