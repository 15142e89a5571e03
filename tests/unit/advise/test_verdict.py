"""Which head is first on given losses and speeds, and the sentence about it."""

import pytest

from grouped_lm.advise.verdict import Trial, decide, largest_body, measure_noise, sentence

REFERENCE = Trial(name="trim-bias", losses={0: {50: 5.1, 400: 4.08}}, tokens_per_sec=3_000.0)


def trial(name, *losses, speed=6_000.0, steps=(50, 400), second=()):
    """A head with losses at steps, and with those of a second seed."""
    seeds = {0: dict(zip(steps, losses, strict=False))}
    if second:
        seeds[1] = dict(zip(steps, second, strict=False))
    return Trial(name=name, losses=seeds, tokens_per_sec=speed)


def test_the_lowest_loss_is_first_whatever_the_speed():
    heads = [trial("fast", 5.0, 4.05, speed=9_000.0), trial("good", 5.1, 4.00, speed=4_500.0), REFERENCE]
    verdict = decide(heads, 400)
    assert verdict.ranking == ["good", "fast", "trim-bias"]
    assert (verdict.gain, verdict.gain_step, verdict.speedup) == (pytest.approx(0.08), 400, 1.5)


def test_within_the_noise_of_the_seeds_the_fastest_is_first():
    good = trial("good", 5.10, 4.000, speed=4_500.0, second=[5.12])
    fast = trial("fast", 5.12, 4.015, speed=9_000.0, second=[5.12])
    assert measure_noise(good, fast) == pytest.approx(0.02)  # a lead of 0.02 with one seed and of 0 with the other
    verdict = decide([good, fast, REFERENCE], 400)
    assert (verdict.head, verdict.tied) == ("fast", ["good", "fast"])
    assert verdict.gain == pytest.approx(0.065)


def test_the_noise_is_the_root_mean_square_over_steps():
    first = trial("a", 5.0, 4.0, second=[5.0, 4.0])
    second = trial("b", 5.1, 4.1, second=[5.13, 4.14])
    assert measure_noise(first, second) == pytest.approx(((0.03**2 + 0.04**2) / 2) ** 0.5)
    assert measure_noise(first, REFERENCE) is None


def test_a_head_that_was_cut_does_not_win_by_its_early_loss():
    cut = trial("cut", 4.9)
    verdict = decide([cut, trial("good", 5.0, 4.0), REFERENCE], 400)
    assert verdict.ranking == ["good", "trim-bias"]


def test_there_is_no_verdict_before_the_first_comparison():
    assert decide([trial("a"), trial("b", 5.0)], 0) is None


def test_the_reference_is_compared_at_the_last_common_step():
    cut = Trial(name="trim-bias", losses={0: {50: 5.3}}, tokens_per_sec=3_000.0)
    verdict = decide([trial("good", 5.1, 4.0), trial("next", 5.2, 4.1), cut], 400)
    assert (verdict.gain, verdict.gain_step) == (pytest.approx(0.2), 50)
    assert "0.200 nats below that of trim-bias after 50 of 400 steps" in sentence(verdict, 400)


def test_the_sentence_says_what_is_gained_and_when_not_to_bother():
    verdict = decide([trial("good", 5.1, 4.0), REFERENCE], 400)
    assert sentence(verdict, 400, 12e6) == (
        "Take variant=good: its loss is 0.080 nats below that of trim-bias after 400 of 400 steps and it trains at "
        "2.00 times the speed; do not bother but for the loss with a body of more than 12 MFLOPs per token, where it "
        "is less than 1.1 times as fast."
    )
    slow = decide([trial("good", 5.1, 4.0, speed=3_100.0), REFERENCE], 400)
    assert sentence(slow, 400, 12e6).endswith("; do not bother where speed is all that you need.")


def test_where_nothing_is_gained_the_sentence_says_so():
    reference = trial("trim-bias", 5.1, 4.08, speed=3_000.0, second=[5.1])  # its gap changes by 0.1 with the seed
    same = decide([trial("other", 5.1, 4.075, speed=3_000.0, second=[5.0]), reference], 400)
    assert (same.head, same.worth_it) == ("other", False)
    assert sentence(same, 400).startswith("Do not bother: variant=other is first, but ")
    first = decide([trial("other", 5.1, 4.2, speed=9_000.0), REFERENCE], 400)
    assert sentence(first, 400).startswith("Take variant=trim-bias")
    assert not first.worth_it


def test_a_reference_that_could_not_be_trained_is_not_said_to_do_as_well():
    short = Trial(name="trim-bias", losses={0: {}}, problem="this step needs 9 GiB, and 8 GiB are free")
    verdict = decide([trial("good", 5.1, 4.0), trial("next", 5.2, 4.1), short], 400)
    said = "Take variant=good: variant=trim-bias could not be trained (this step needs 9 GiB, and 8 GiB are free)."
    assert (sentence(verdict, 400), verdict.worth_it) == (said, True)
    diverged = Trial(name="trim-bias", losses={0: {50: 5.0}}, tokens_per_sec=3_000.0, problem="diverged at step 60")
    late = decide([trial("good", 5.1, 4.0), diverged], 400)
    assert "could not be trained (diverged at step 60)" in sentence(late, 400)
    cut = Trial(name="trim-bias", losses={0: {50: 5.3}}, tokens_per_sec=3_000.0)
    assert "could not be trained" not in sentence(decide([trial("good", 5.1, 4.0), cut], 400), 400)


def test_with_one_seed_a_hair_is_no_gain():
    verdict = decide([trial("other", 5.1, 4.0799, speed=1_500.0), REFERENCE], 400)
    assert verdict.noise is None
    assert sentence(verdict, 400).startswith("Take variant=trim-bias")
    fast = decide([trial("other", 5.1, 4.0799), REFERENCE], 400)
    assert (fast.head, fast.lower, fast.worth_it) == ("other", False, True)  # for its speed
    slow = decide([trial("other", 5.1, 4.07, speed=1_500.0), REFERENCE], 400)
    assert sentence(slow, 400).startswith("Take variant=other: its loss is 0.010 nats below")


def test_a_lower_loss_within_the_noise_is_not_denied():
    reference = trial("trim-bias", 5.1, 4.005, second=[5.1])
    verdict = decide([trial("other", 5.1, 4.0, speed=3_000.0, second=[5.2]), reference], 400)
    assert verdict.ranking == ["trim-bias", "other"]
    assert "no head that was screened has a loss that is lower beyond the noise" in sentence(verdict, 400)


def test_a_limit_below_the_body_that_was_screened_is_not_named():
    verdict = decide([trial("good", 5.1, 4.0), REFERENCE], 400)
    assert "more than 12 MFLOPs" in sentence(verdict, 400, 12e6, 11e6)
    assert sentence(verdict, 400, 12e6, 50e6).endswith("do not bother where the body takes nearly all of the time.")


def test_the_largest_body_has_the_smallest_gain_in_speed():
    body = largest_body(1e6, 12e6)
    assert (body + 12e6) / (body + 1e6) == pytest.approx(1.1)
    assert largest_body(12e6, 12e6) == 0.0
