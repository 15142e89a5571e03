"""The heads that advice is about: variants of `conf/variant` with a run's own tokenizer, and what each one costs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from grouped_lm.bench.variants import Variant, load_variants
from grouped_lm.config import Config, TrackingConfig, check_choice
from grouped_lm.errors import ConfigError
from grouped_lm.grouping import parse_grouping
from grouped_lm.heads import HEADS
from grouped_lm.measure.devices import Device
from grouped_lm.models.lm import check_head
from grouped_lm.plan.fake_step import UNKNOWN_SIZES, fake_step
from grouped_lm.plan.heads import estimate_speed
from grouped_lm.plan.launches import kernel_mode

REFERENCE = "trim-bias"
"""The cheapest exact softmax: over the types that the text has. Every other head is compared with it."""


@dataclass(frozen=True, kw_only=True)
class HeadCost:
    """Memory and speed of a variant by the predictor of `gvc plan`; None where its sizes depend on a batch."""

    variant: Variant
    peak_bytes: int | None = None
    """Of a training step."""
    tokens_per_sec: float | None = None
    head_flops_per_token: float | None = None
    """Forward pass."""


def variant_config(config: Config, variant: Variant, seed: int = 0) -> Config:
    """Return the config of a run with a variant's head and with that seed, without a copy of its metrics in W&B.

    The head has weights of its own where the input embedding has no row per token to share. One process has whole
    tables.
    """
    head = variant.head_config()
    if config.model.embedding != "table" and hasattr(head, "tied"):
        head = replace(head, tied=False)
    return replace(
        config,
        name=variant.name,
        seed=seed,
        head=head,
        grouping=parse_grouping(variant.grouping),
        train=replace(config.train, vocab_parallel=False),
        tracking=TrackingConfig(mode="disabled"),
    )


def fitting_variants(config: Config) -> list[Variant]:
    """Return the variants that the body of a config can have and train, with the config's own tokenizer."""
    fitting = []
    for variant in load_variants().values():
        if variant.tokenizer is None and variant.head["name"] in HEADS:
            try:
                check_head(variant_config(config, variant))
            except ConfigError:
                continue
            fitting.append(variant)
    return fitting


def choose_variants(config: Config, names: Sequence[str] = ()) -> list[Variant]:
    """Return the named variants, or those that a screen takes by default, and always the reference.

    Raises:
        ConfigError: a name is no variant that the config can have.
    """
    known = {variant.name: variant for variant in fitting_variants(config)}
    for name in names:
        check_choice("--heads", name, tuple(known))
    chosen = list(dict.fromkeys(names)) or [name for name, variant in known.items() if variant.screen]
    return [known[name] for name in chosen] + [known[REFERENCE]] * (REFERENCE not in chosen)


def estimate_cost(config: Config, variant: Variant, device: Device, counts: np.ndarray) -> HeadCost:
    """Return what a variant costs with the body, batch and dtype of a config. (V,) `counts` are those of the text."""
    own = variant_config(config, variant)
    try:
        with kernel_mode(device):
            step = fake_step(own, counts=counts)
            rate, flops = estimate_speed(own, step, device, counts)
    except UNKNOWN_SIZES:
        return HeadCost(variant=variant)
    peak = int(step.live.sum(1).max())
    return HeadCost(variant=variant, peak_bytes=peak, tokens_per_sec=rate, head_flops_per_token=flops)
