"""What a screen validates on, and which heads go on."""

import numpy as np

from grouped_lm.advise.screen import spread_windows, survivors
from grouped_lm.advise.verdict import Trial
from grouped_lm.bench.variants import load_variants


def test_windows_are_spread_over_the_whole_text():
    tokens = np.arange(1001)
    part = spread_windows(tokens, 10, 50)
    assert part.tolist() == [start + place for start in (0, 200, 400, 600, 800) for place in range(10)]


def test_a_short_text_is_taken_whole():
    assert spread_windows(np.arange(40), 10, 50).tolist() == list(range(40))


def test_the_better_half_goes_on_and_two_at_least():
    variants = list(load_variants().values())[:5]
    trials = [Trial(name=v.name, losses={0: {50: loss}}) for v, loss in zip(variants, (3, 1, 5, 2, 4), strict=True)]
    going = survivors(trials, variants, 50)
    assert going == [variants[1], variants[3], variants[0]]
    assert survivors(trials, going, 50) == [variants[1], variants[3]]
    assert survivors(trials, going[:2], 50) == [variants[1], variants[3]]


def test_a_head_without_a_loss_is_out():
    variants = list(load_variants().values())[:3]
    trials = [Trial(name=v.name, losses={0: {50: 1.0} if v is not variants[0] else {}}) for v in variants]
    assert survivors(trials, variants, 50) == variants[1:]
