"""The meter of `gvc bench`, on a fake clock and fake calibrations."""

import itertools

import pytest
import torch

from grouped_lm.bench.implementations import tune
from grouped_lm.bench.settings import MeterConfig
from grouped_lm.bench.timing import SLOW_MS, Calibration, Place, Timing, interleave, quickest, timed

STEADY = Calibration(100.0, 10.0)


class FakeMachine:
    """A clock that competitors move on by what they cost."""

    def __init__(self):
        self.now, self.calls = 50.0, []

    def clock(self):
        return self.now

    def competitor(self, name, seconds):
        def sample():
            self.calls.append(name)
            return {"ms": timed(self.work(seconds), self.clock)}

        return sample

    def work(self, seconds):
        def run():
            self.now += seconds

        return run


def meter(**values):
    return MeterConfig(**{"min_rounds": 1, "max_rounds": 2, "budget_s": 100.0} | values)


def test_competitors_take_turns_forwards_and_back_after_a_warm_up():
    machine = FakeMachine()
    samplers = {"a": machine.competitor("a", 1.0), "b": machine.competitor("b", 2.0)}
    session = interleave(samplers, meter(), lambda: STEADY, machine.clock)
    assert "".join(machine.calls) == "ab" + "abba" * 2
    assert [s["ms"] for s in session.timings["b"].samples] == [2000.0] * 4
    assert session.columns("a")["samples"] == 4


def test_a_slow_competitor_leaves_when_its_budget_is_spent():
    machine = FakeMachine()
    samplers = {"slow": machine.competitor("s", 10.0), "fast": machine.competitor("f", 0.5)}
    interleave(samplers, meter(max_rounds=4, budget_s=5.0), lambda: STEADY, machine.clock)
    assert "".join(machine.calls) == "sf" + "sffs" + "ff" * 3


def test_who_does_not_fit_into_memory_takes_no_part():
    machine = FakeMachine()

    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory")

    samplers = {"a": machine.competitor("a", 1.0), "large": too_large}
    session = interleave(samplers, meter(), lambda: STEADY, machine.clock)
    assert session.left_out == {"large": "it does not fit into the memory of the device"}
    assert list(session.timings) == ["a"]


def test_only_the_last_of_several_passes_is_waited_for(monkeypatch):
    machine, waits = FakeMachine(), []
    monkeypatch.setattr("grouped_lm.bench.timing.synchronize", lambda device: waits.append(machine.now))
    place = Place(torch.device("cpu"), "float32", 5)
    assert place.timed(machine.work(0.25), machine.clock) == 250
    assert waits == [50, 51.25]


def test_rounds_in_which_the_machine_drifted_are_done_again():
    machine = FakeMachine()
    rates = itertools.chain([100.0, 120.0, 100.0, 101.0], itertools.repeat(100.0))
    session = interleave(
        {"a": machine.competitor("a", 1.0)},
        meter(max_rounds=1, max_drift=0.1),
        lambda: Calibration(next(rates), 10.0),
        machine.clock,
    )
    assert session.dropped == 1
    assert len(session.timings["a"].samples) == 2
    assert session.timings["a"].drift == pytest.approx(0.01)
    assert session.gemm_flops_per_sec() == pytest.approx(100.5)


def test_fast_ones_are_not_measured_on_a_machine_that_has_slowed_down_since_the_slow_ones_left():
    machine = FakeMachine()
    rates = itertools.chain([100.0] * 4, [50.0] * 6, itertools.repeat(98.0))
    session = interleave(
        {"slow": machine.competitor("s", 10.0), "fast": machine.competitor("f", 1.0)},
        meter(max_rounds=4, budget_s=12.0, max_dropped=3),
        lambda: Calibration(next(rates), 10.0),
        machine.clock,
    )
    assert session.dropped == 3
    assert "".join(machine.calls) == "sf" + "sffs" + "ff" * (3 + 2)
    assert session.gemm_flops_per_sec() > 97
    assert session.columns("fast")["kept_drift"] == pytest.approx(0.02)


def test_a_machine_that_stays_slow_has_its_drift_said_beside_those_who_went_on():
    machine = FakeMachine()
    rates = itertools.chain([100.0] * 2, itertools.repeat(50.0))
    session = interleave(
        {"slow": machine.competitor("s", 10.0), "fast": machine.competitor("f", 1.0)},
        meter(max_rounds=3, budget_s=12.0, max_dropped=2),
        lambda: Calibration(next(rates), 10.0),
        machine.clock,
    )
    assert (session.dropped, session.columns("fast")["samples"]) == (2, 6)
    assert [session.columns(name)["kept_drift"] for name in ("slow", "fast")] == [0, 0.5]


def test_a_machine_that_never_settles_ends_with_its_drift_said():
    machine = FakeMachine()
    copies = itertools.cycle([10.0, 5.0])
    session = interleave(
        {"a": machine.competitor("a", 1.0)},
        meter(max_rounds=1, max_dropped=3),
        lambda: Calibration(100.0, next(copies)),
        machine.clock,
    )
    assert session.dropped == 3
    assert session.columns("a")["kept_drift"] == pytest.approx(0.5)


def test_rounds_that_take_minutes_are_not_done_again_and_again():
    machine = FakeMachine()
    copies = itertools.cycle([10.0, 5.0])
    config = meter(max_rounds=1, max_dropped=9, budget_s=60.0)
    samplers = {"a": machine.competitor("a", 50.0)}
    session = interleave(samplers, config, lambda: Calibration(100.0, next(copies)), machine.clock)
    assert session.dropped == 1
    assert len(session.timings["a"].samples) == 2


def test_quartiles_do_not_move_with_one_stutter():
    timing = Timing([{"ms": ms} for ms in (1.0, 2.0, 3.0, 4.0, 500.0)])
    assert timing.columns("ms") == {"ms": 3.0, "ms_q1": 2.0, "ms_q3": 4.0}
    assert Timing([{"ms": 7.0}]).columns("ms") == {"ms": 7.0, "ms_q1": 7.0, "ms_q3": 7.0}


def test_tuning_warms_up_takes_the_least_and_tries_slow_ones_once():
    first = {"a": iter([900.0, 5.0, 4.0]), "b": iter([1.0, 6.0, 5.5]), "c": iter([SLOW_MS])}
    samplers = {name: lambda values=values: {"ms": next(values)} for name, values in first.items()}
    assert quickest(samplers, 2) == ("a", {"a": 4.0, "b": 5.5, "c": SLOW_MS})
    nothing = {"option": "", "tried": ""}
    assert tune([{}], lambda option: pytest.fail("run for nothing"), 2) == ({}, nothing)


def test_what_may_fail_is_left_out_with_its_reason_and_nothing_else_is():
    machine = FakeMachine()

    def broken():
        raise RuntimeError("no such kernel\nand a long explanation")

    samplers = {"a": machine.competitor("a", 1.0), "peer": broken}
    session = interleave(samplers, meter(), lambda: STEADY, machine.clock, may_fail={"peer"})
    assert session.left_out == {"peer": "RuntimeError: no such kernel"}
    assert list(session.timings) == ["a"]
    with pytest.raises(RuntimeError, match="no such kernel"):
        interleave(samplers, meter(), lambda: STEADY, machine.clock)
