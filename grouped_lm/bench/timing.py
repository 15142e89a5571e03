"""The meter: implementations take turns, A B B A, between calibrations, and rounds with a drift are repeated.

Small shared machines change speed by a factor of two within minutes. Implementations that take turns drift together, so
their ratios hold where absolute times do not. Slow implementations leave early. A later round is compared with the
first one, so that they and the others are measured at one speed of the machine. The number of repeated rounds is
bounded. Each row has the drift of the rounds that were kept (`kept_drift`).
"""

import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from grouped_lm.bench.settings import MeterConfig
from grouped_lm.measure.throughput import measure_copy_bytes_per_sec, measure_gemm_flops_per_sec, synchronize
from grouped_lm.system.runtime import autocast

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


@dataclass(frozen=True)
class Place:
    """A device, the dtype of matrix products on it, and the number of passes in one sample.

    A GPU runs asynchronously. Only the last of several passes is waited for, as in training.
    """

    device: torch.device
    dtype: str
    repeats: int

    def autocast(self) -> Any:
        """Return the context of a forward pass."""
        return autocast(self.device, self.dtype)

    def calibrate(self) -> Calibration:
        """Measure a matrix product and a copy on the device, for a quarter of a second."""
        flops = measure_gemm_flops_per_sec(self.device, getattr(torch, self.dtype))
        return Calibration(flops, measure_copy_bytes_per_sec(self.device))

    def timed(self, action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
        """Return the milliseconds of one `action`, the mean of `repeats` between two synchronizations."""

        def several() -> None:
            for _ in range(self.repeats):
                action()
            synchronize(self.device)

        synchronize(self.device)
        return timed(several, clock) / self.repeats


@dataclass
class Timing:
    """The samples of one implementation."""

    samples: list[dict[str, float]] = field(default_factory=list)
    drift: float = 0.0
    """The largest drift of a kept round, within it or since the start of the cell."""

    def columns(self, key: str) -> dict[str, float]:
        """Return the median and the quartiles of a figure, in ms, as columns of a row."""
        low, middle, high = np.quantile([sample[key] for sample in self.samples], (0.25, 0.5, 0.75)).tolist()
        return {key: middle, f"{key}_q1": low, f"{key}_q3": high}


@dataclass
class Session:
    """All timings of a cell, and the calibrations between them."""

    timings: dict[str, Timing] = field(default_factory=dict)
    """Implementations that fit into the memory of the device."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Implementations that do not, or that fail and may, and why."""
    calibrations: list[Calibration] = field(default_factory=list)
    dropped: int = 0
    """The number of dropped rounds."""

    def gemm_flops_per_sec(self) -> float:
        """Return the median over the calibrations of the cell."""
        return statistics.median(c.gemm_flops_per_sec for c in self.calibrations)

    def columns(self, name: str) -> dict[str, float]:
        """Return the columns about the measurement itself."""
        return {
            "samples": len(self.timings[name].samples),
            "kept_drift": self.timings[name].drift,
            "rounds_dropped": self.dropped,
            "gemm_gflops_per_sec": self.gemm_flops_per_sec() / 1e9,
            "copy_gb_per_sec": statistics.median(c.copy_bytes_per_sec for c in self.calibrations) / 1e9,
        }


def interleave(
    samplers: dict[str, Sampler],
    config: MeterConfig,
    calibrate: Callable[[], Calibration],
    clock: Callable[[], float] = time.perf_counter,
    may_fail: Collection[str] = (),
) -> Session:
    """Sample every implementation in rounds, forwards and then backwards, each round between two calibrations.

    An implementation leaves once it has had `min_rounds` and spent its budget. A round is dropped and repeated if its
    calibrations differ from each other, or from the first kept one, by more than `max_drift`. Rounds are dropped only
    while the dropped ones together took less time than all budgets: if a round takes minutes, one round is repeated.
    The first sample of each implementation is a warm-up. One that runs out of the device's memory there is left out,
    and so is one of `may_fail` that raises anything.
    """
    session = Session()
    for name, sample in samplers.items():
        try:
            sample()
        except torch.OutOfMemoryError:
            session.left_out[name] = "it does not fit into the memory of the device"
        except Exception as error:
            if name not in may_fail:
                raise
            session.left_out[name] = first_line(error)
        else:
            session.timings[name] = Timing()
    samplers = {name: samplers[name] for name in session.timings}
    spent, done = dict.fromkeys(samplers, 0.0), dict.fromkeys(samplers, 0)
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
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
        for name in [*wanted, *reversed(wanted)]:
            started = clock()
            samples[name].append(samplers[name]())
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
        for name in wanted:
            done[name] += 1
            session.timings[name].samples += samples[name]
            session.timings[name].drift = max(session.timings[name].drift, drift)


def first_line(error: Exception) -> str:
    """Return the kind and the first line of an error, at most 200 characters."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]


def timed(action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the milliseconds of `action`."""
    started = clock()
    action()
    return 1000 * (clock() - started)


def quickest(options: dict[str, Sampler], samples: int) -> tuple[str, dict[str, float]]:
    """Return the fastest option, and the shortest time of every option in ms.

    Options take turns, so that a drift hits all of them. The first sample of each is a warm-up, except for an option
    that is too slow for a warm-up to matter: it is tried once.
    """
    best = {name: sample()["ms"] for name, sample in options.items()}
    quick = [name for name in options if best[name] < SLOW_MS]
    best |= dict.fromkeys(quick, float("inf"))
    for _ in range(samples):
        for name in quick:
            best[name] = min(best[name], options[name]()["ms"])
    return min(best, key=lambda name: best[name]), best
