"""What a screen validates on, which losses it compares, and which heads go on."""

import json

import numpy as np
import pytest

from grouped_lm.advise.screen import Track, spread_windows, survivors
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


@pytest.mark.parametrize(("whole", "steps"), [(None, {8}), (1_000, {8, 16, 32})])
def test_a_loss_of_gvc_train_counts_where_the_screen_takes_the_whole_text(tmp_path, whole, steps):
    rows = [{"trainer/step": 8, "val/loss": 5.0, "val/tokens": 100}]
    rows += [{"trainer/step": 16, "val/loss": 4.0}, {"trainer/step": 24, "val/loss": 3.0, "val/tokens": 500}]
    rows.append({"trainer/step": 32, "val/loss": 2.0, "val/tokens": 1_000})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"trainer/step": 40, "v')
    track = Track(next(iter(load_variants().values())), 0, tmp_path, whole)
    track.keep_loss(8, 5.5)
    assert set(track.losses()) == steps
    assert track.losses()[8] == 5.5


def test_a_run_beyond_the_step_is_left_alone(tmp_path):
    track = Track(next(iter(load_variants().values())), 0, tmp_path)
    assert track.left_alone(16) is None
    (tmp_path / "checkpoints" / "step-00000016").mkdir(parents=True)
    assert track.left_alone(16) is None
    assert track.left_alone(8) == "its run is at step 16, beyond 8"
    (tmp_path / "result.json").write_text('{"state": "complete"}')
    assert track.left_alone(16) == "its run is complete, and has no loss of the screen at step 16"
