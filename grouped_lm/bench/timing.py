"""The meter. Implementations take turns, A B B A, between calibrations; rounds with a drift are repeated.

Small shared machines change speed by a factor of two within minutes. What is interleaved drifts together, so ratios
hold where absolute figures do not. Slow implementations leave early, and are then held against rounds in which they had
no part: those are done again too where the machine is not as it was in the first. How many are is bounded; how far the
rounds of a figure drifted all the same stands in its row (`kept_drift`).
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from grouped_lm.bench.settings import MeterConfig
from grouped_lm.measure.throughput import measure_copy_bytes_per_sec, measure_gemm_flops_per_sec

CPU = torch.device("cpu")
Sampler = Callable[[], dict[str, float]]
"""A function that runs a pass once and returns milliseconds by name ("ms", "forward_ms", ...)."""

SLOW_MS = 2000.0
"""Options that take longer than this are tried once."""


@dataclass(frozen=True)
class Calibration:
    """The speed of the machine at one moment."""

    gemm_flops_per_sec: float
    copy_bytes_per_sec: float

    def drift_to(self, later: "Calibration") -> float:
        """Return the larger relative change of the two rates."""
        gemm = later.gemm_flops_per_sec / self.gemm_flops_per_sec
        copy = later.copy_bytes_per_sec / self.copy_bytes_per_sec
        return max(abs(gemm - 1), abs(copy - 1))


def calibrate(device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> Calibration:
    """Measure a matrix product of `dtype` and a copy, for a quarter of a second."""
    return Calibration(measure_gemm_flops_per_sec(device, dtype), measure_copy_bytes_per_sec(device))


@dataclass
class Timing:
    """The samples of one implementation."""

    samples: list[dict[str, float]] = field(default_factory=list)
    drift: float = 0.0
    """The largest drift of a kept round, within it or since the start of the cell."""

    def quartiles(self, key: str) -> tuple[float, float, float]:
        """Return first quartile, median and third quartile of a figure, in ms."""
        values = [sample[key] for sample in self.samples]
        if len(values) < 2:
            return values[0], values[0], values[0]
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return low, middle, high

    def columns(self, key: str) -> dict[str, float]:
        """Return median and quartiles as columns of a row."""
        low, middle, high = self.quartiles(key)
        return {key: middle, f"{key}_q1": low, f"{key}_q3": high}


@dataclass
class Session:
    """All timings of a cell, and the calibrations between them."""

    timings: dict[str, Timing]
    """Implementations that fit into the memory of the device."""
    calibrations: list[Calibration]
    dropped: int
    too_large: list[str] = field(default_factory=list)
    """Implementations that do not."""

    def gemm_flops_per_sec(self) -> float:
        """Return the median over the calibrations of the cell."""
        return statistics.median(c.gemm_flops_per_sec for c in self.calibrations)

    def copy_bytes_per_sec(self) -> float:
        """Return the median over the calibrations of the cell."""
        return statistics.median(c.copy_bytes_per_sec for c in self.calibrations)

    def columns(self, name: str) -> dict[str, float]:
        """Return the columns about the measurement itself."""
        return {
            "samples": len(self.timings[name].samples),
            "kept_drift": self.timings[name].drift,
            "rounds_dropped": self.dropped,
            "gemm_gflops_per_sec": self.gemm_flops_per_sec() / 1e9,
            "copy_gb_per_sec": self.copy_bytes_per_sec() / 1e9,
        }


def interleave(
    samplers: dict[str, Sampler],
    config: MeterConfig,
    calibrate: Callable[[], Calibration] = calibrate,
    clock: Callable[[], float] = time.perf_counter,
) -> Session:
    """Sample every implementation in rounds, forwards and then backwards, each round between two calibrations.

    A slow implementation leaves once it has had `min_rounds` and spent its budget; the fast ones go on among themselves
    until their own is spent. A round is dropped where its calibrations differ from each other, or from the first that
    was kept, by more than `max_drift`: those who left and those who stayed are compared at one speed of the machine.
    Rounds are dropped only as long as those dropped took less than all budgets together: where a round takes minutes,
    one is done again and no more. What is kept beyond that has its drift said. The warm-up sample of each counts
    towards nothing, but that one which runs out of a device's memory in it takes no part.
    """
    too_large = [name for name, sample in samplers.items() if not warm_up(sample)]
    samplers = {name: sample for name, sample in samplers.items() if name not in too_large}
    session = Session({name: Timing() for name in samplers}, [], 0, too_large)
    spent = dict.fromkeys(samplers, 0.0)
    done = dict.fromkeys(samplers, 0)
    wasted = 0.0
    while True:
        wanted = [
            name
            for name in samplers
            if done[name] < config.min_rounds or (spent[name] < config.budget_s and done[name] < config.max_rounds)
        ]
        if not wanted:
            return session
        before, round_started = calibrate(), clock()
        found: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
        for name in [*wanted, *reversed(wanted)]:
            started = clock()
            found[name].append(samplers[name]())
            spent[name] += clock() - started
        took, after = clock() - round_started, calibrate()
        first = session.calibrations[0] if session.calibrations else before
        drift = max(before.drift_to(after), first.drift_to(before), first.drift_to(after))
        may_drop = wasted < config.budget_s * len(samplers)
        if drift > config.max_drift and session.dropped < config.max_dropped and may_drop:
            session.dropped += 1
            wasted += took
            continue
        session.calibrations += [before, after]
        for name, samples in found.items():
            done[name] += 1
            session.timings[name].samples += samples
            session.timings[name].drift = max(session.timings[name].drift, drift)


def warm_up(sample: Sampler) -> bool:
    """Take a sample, and return False if the device had too little memory."""
    try:
        sample()
    except torch.OutOfMemoryError:
        return False
    return True


def timed(action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the milliseconds of `action`."""
    started = clock()
    action()
    return 1000 * (clock() - started)


def quickest(options: dict[str, Sampler], key: str, samples: int = 2) -> tuple[str, dict[str, float]]:
    """Return the fastest option, and the shortest time of every option in ms.

    Options take turns, so that a drift hits all of them. The first sample of each is a warm-up, but for one so slow
    that warmth is nothing to it: that is its only one. One option alone is not run.
    """
    if len(options) == 1:
        return next(iter(options)), {}
    best = {name: sample()[key] for name, sample in options.items()}
    quick = [name for name in options if best[name] < SLOW_MS]
    best |= dict.fromkeys(quick, float("inf"))
    for _ in range(samples):
        for name in quick:
            best[name] = min(best[name], options[name]()[key])
    return min(best, key=lambda name: best[name]), best
