"""All that `gvc advise` says about a text: its figures, what heads cost, a screen, and a sentence."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from grouped_lm.advise.heads import REFERENCE, choose_variants, estimate_cost, fitting_variants
from grouped_lm.advise.screen import Screen, run_screen
from grouped_lm.advise.tables import cost_of, cost_table, planned_sentence, screen_table
from grouped_lm.advise.text import measure_text
from grouped_lm.advise.verdict import Trial, Verdict, decide, largest_body, sentence
from grouped_lm.config import Config
from grouped_lm.data import prepare_data
from grouped_lm.measure.devices import find_device
from grouped_lm.models import estimate_body_flops_per_token
from grouped_lm.plan.heads import step_tokens
from grouped_lm.runs.identity import config_hash
from grouped_lm.system.phases import phase, track
from grouped_lm.system.tables import Table


class Advice:
    """Advice for the text, body and training of a config. Making it prepares the text and plans every head.

    Raises:
        ConfigError: an unknown device or variant, or one that does not go with the config.
        DataError: the text is missing, unreadable or too short.
    """

    def __init__(self, config: Config, device: str, names: Sequence[str], say: Callable[[str], None]) -> None:
        self.config, self.say = config, say
        self.variants = choose_variants(config, names)
        if config.model.embedding != "table":
            say(f"model.embedding={config.model.embedding}: all heads have head.tied=false; give it to gvc train too")
        self.device = find_device(device, config.train.dtype)
        self.corpus = prepare_data(config.data, config.tokenizer)
        with phase("counting tokens and types"):
            self.figures = measure_text(self.corpus, config.train.max_steps * step_tokens(config))
        counts, fitting = self.corpus.train.counts(), fitting_variants(config)
        planned = track(fitting, "planning the heads", len(fitting))
        self.costs = [estimate_cost(config, variant, self.device, counts) for variant in planned]
        self.trials: list[Trial] = []
        self.verdict: Verdict | None = None

    def screen(self, folder: Path | None, deadline: float | None, steps: int | None) -> None:
        """Run or continue the screen in a folder, and keep what is known however it ends (`screen.run_screen`)."""
        folder = folder or Path("runs") / f"advise-{self.config.data.name}-{self.identity()[:8]}"
        self.say(f"screening {', '.join(variant.name for variant in self.variants)} in {folder}")
        with Screen(self.config, self.corpus, self.variants, folder, self.say) as screen:
            try:
                run_screen(screen, deadline, min(steps or screen.steps, screen.steps))
            finally:
                self.trials = [self._on_device(trial) for trial in screen.trials()]
                self.verdict = decide(self.trials, screen.compared)

    def _on_device(self, trial: Trial) -> Trial:
        """Return a trial with its speed on the device of the plan: measured here, or planned."""
        planned = cost_of(self.costs, trial.name).tokens_per_sec
        return trial if self.device.name == "cpu" else replace(trial, tokens_per_sec=planned)

    def identity(self) -> str:
        """Return a hash of the config and of the tokens: the same advice continues in the same folder."""
        parts = [config_hash(self.config), self.corpus.train.manifest["sha256"], self.corpus.valid.manifest["sha256"]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def costs_table(self) -> Table:
        """Return memory and speed of every head by the plan."""
        return cost_table(self.config, self.costs, self.device)

    def screen_table(self) -> Table:
        """Return the losses and speeds that the screen has found."""
        assert self.verdict is not None
        return screen_table(self.trials, self.verdict, self.config.train.max_steps, self.device)

    def sentence(self) -> str:
        """Return which head to take, and what it gains."""
        if self.verdict is None:
            return planned_sentence(self.costs)
        own, reference = (cost_of(self.costs, n).head_flops_per_token for n in (self.verdict.head, REFERENCE))
        limit, full = largest_body(own, reference) if own and reference else None, self.config.train.max_steps
        body = estimate_body_flops_per_token(self.config.model, self.config.model.block_size)
        advice = sentence(self.verdict, full, limit, body)
        if self.verdict.step < full / 2:
            advice += f" The heads were compared at step {self.verdict.step:,}: more --minutes go on from there."
        return advice

    def values(self) -> dict[str, Any]:
        """Return everything ready for JSON: bytes, FLOPs per token and forward pass, nats."""
        costs = [asdict(cost) | {"variant": cost.variant.name} for cost in self.costs]
        verdict = None if self.verdict is None else asdict(self.verdict) | {"worth_it": self.verdict.worth_it}
        found = {"trials": [asdict(trial) for trial in self.trials], "verdict": verdict}
        return {
            "text": self.figures.values(),
            "device": self.device.name,
            "costs": costs,
            "full_steps": self.config.train.max_steps,
            "screen": found if self.trials else None,
            "sentence": self.sentence(),
        }
