"""How much of a training step the output layer is, at the sizes of published small models, with every head.

No exact kernel makes the multiplication of states and weights go away: a kernel for the dense head at the peak of the
device leaves the share that is given here.

Letters: D width, V vocabulary.
"""

import dataclasses
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml
from rich.table import Table

from grouped_lm.config import Config
from grouped_lm.heads import HEADS
from grouped_lm.measure.devices import Device
from grouped_lm.models.lm import estimate_body_flops_per_token
from grouped_lm.plan.fake_step import UNKNOWN_SIZES, fake_model, faking, with_train
from grouped_lm.plan.launches import count_launches


@dataclass(frozen=True)
class PublishedPlan:
    """One head at the sizes of one model."""

    model: str
    n_embd: int
    vocab_size: int
    source: str
    head: str
    head_share: float
    """Share of the step's FLOPs that the head has."""
    flops_ratio: float
    """FLOPs of a step with the dense head over those with this one."""
    head_launches: int
    """Operators and kernels that the loss and its gradients launch on a GPU."""


def published_sizes() -> list[dict[str, Any]]:
    """Return name, n_embd, n_layer, n_head, vocab_size and source of each model."""
    text = files("grouped_lm.plan").joinpath("published.yaml").read_text(encoding="utf-8")
    sizes: list[dict[str, Any]] = yaml.safe_load(text)
    return sizes


def plan_published(config: Config, device: Device) -> list[PublishedPlan]:
    """Return the plans of every model and of every head whose sizes do not depend on text or batch, dense first."""
    plans = []
    config = with_train(config, vocab_parallel=False)  # one process has whole tables
    heads = [schema() for schema, head in HEADS.values() if not head.sizes_follow_text]
    if config.model.embedding != "table":  # it has no row per token to share
        heads = [dataclasses.replace(head, tied=False) if hasattr(head, "tied") else head for head in heads]
    for size in published_sizes():
        body = {key: size[key] for key in ("n_embd", "n_layer", "n_head")}
        model = dataclasses.replace(config.model, **body)
        own = estimate_body_flops_per_token(model, model.block_size)
        dense = own + 2.0 * size["n_embd"] * size["vocab_size"]
        for head in heads:
            one = dataclasses.replace(config, model=dataclasses.replace(model, n_layer=1), head=head)
            try:
                launches = count_launches(one, device, size["vocab_size"])
            except UNKNOWN_SIZES:
                continue
            with faking():
                flops = fake_model(one, size["vocab_size"]).head.flops_per_token()
            shares = flops / (own + flops), dense / (own + flops)
            named = size["name"], size["n_embd"], size["vocab_size"], size["source"]
            plans.append(PublishedPlan(*named, head.name, *shares, launches))
    return plans


def published_table(config: Config, plans: list[PublishedPlan]) -> Table:
    """Return a column for each model; a cell has the head's share, and how many times fewer FLOPs a step has."""
    title = f"Share of a training step's FLOPs in the head, predicted; block_size {config.model.block_size}"
    table = Table(title=title, title_justify="left")
    table.add_column("head")
    models = {plan.model: plan for plan in plans}
    for plan in models.values():
        header = f"{plan.model}\nD {plan.n_embd}\nV {plan.vocab_size:,}"
        table.add_column(header, justify="right", overflow="fold")
    for head in dict.fromkeys(plan.head for plan in plans):
        own = [plan for plan in plans if plan.head == head]
        table.add_row(head, *(f"{plan.head_share:.1%} ({plan.flops_ratio:.1f}x)" for plan in own))
    return table


def published_notes() -> list[str]:
    """Return what the table assumes."""
    return [
        "(2.0x): a whole step has so many times fewer FLOPs than with the dense head; speed was not measured",
        "bodies are GPT-2 blocks of the model's width and depth",
    ]
