"""Trials of faults: seeds that are logged and can be replayed, and trainings forked from a process that is warm.

A training in a fresh process takes 7 s to import torch; a forked one starts in milliseconds. What only measures
(clocks, allocators) is left out of forked trainings: it is no part of what is promised.
"""

import contextlib
import faulthandler
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_outputs import curve, newest_checkpoint, saved_tensors

from grouped_lm.config import AdamWConfig, Config, ModelConfig, TokenizerConfig, TrackingConfig, TrainConfig
from grouped_lm.data import TextConfig
from grouped_lm.errors import GvcError
from grouped_lm.heads import HEADS

LOG = Path(os.environ.get("FAULT_LOG", Path(__file__).parents[2] / "runs" / "faults.jsonl"))
BASE_SEED = int(os.environ.get("FAULT_SEED", "0"))
"""`make test-faults` draws another one each time; `make test` does the same trials every time."""

SUITES = {
    "kill-dense": "test_killed_at_random_moments[dense]",
    "kill-grouped": "test_killed_at_random_moments[grouped]",
    "corrupt": "test_all_damage_is_found",
    "SIGTERM": "test_stopped_in_every_phase[SIGTERM]",
    "SIGINT": "test_stopped_in_every_phase[SIGINT]",
    "cache": "test_builders_of_one_cache_again_and_again",
    "malformed": "test_malformed_overrides_and_files",
}
"""Trials by suite, and the test that runs them."""


def trials(suite: str, count: int) -> Iterator[tuple[int, random.Random]]:
    """Yield (seed, generator) of every trial; a failure says how to run that one again.

    `FAULT_SEED` sets the first seed, `FAULT_TRIAL=suite:seed` runs one trial alone.
    """
    asked, _, only = os.environ.get("FAULT_TRIAL", "").partition(":")
    for seed in [int(only)] if asked else range(BASE_SEED, BASE_SEED + count):
        started = time.monotonic()
        try:
            yield seed, random.Random(f"{suite}:{seed}")
        finally:
            outcome = "failed" if sys.exc_info()[0] else "ok"
            log_trial(suite, seed, outcome, time.monotonic() - started)


def log_trial(suite: str, seed: int, outcome: str, seconds: float) -> None:
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("a") as file:
        row = {
            "suite": suite,
            "seed": seed,
            "outcome": outcome,
            "seconds": round(seconds, 3),
            "replay": replay(suite, seed),
        }
        file.write(json.dumps(row) + "\n")


def replay(suite: str, seed: int) -> str:
    return f"make test-faults TRIAL={suite}:{seed}"


def small_config(texts: dict[str, str], cache_dir: Path, head: str = "grouped", **train: Any) -> Config:
    """A training of 12 steps of 2 micro-steps, 22 windows an epoch at most, 30 ms in all."""
    values: dict[str, Any] = {
        "max_steps": 12,
        "micro_batch_size": 2,
        "grad_accum_steps": 2,
        "log_every_steps": 3,
        "eval_every_steps": 5,
        "checkpoint_every_steps": 2,
        "device": "cpu",
        "threads": 1,
    }
    model = ModelConfig(name="tiny", n_layer=1, n_head=2, n_embd=16, block_size=32, dropout=train.pop("dropout", 0.1))
    return Config(
        model=model,
        head=HEADS[head].schema(),
        tokenizer=TokenizerConfig(name="bytes"),
        data=TextConfig(name="text", cache_dir=str(cache_dir), **texts),
        optim=AdamWConfig(warmup_steps=3),
        train=TrainConfig(**(values | train)),
        tracking=TrackingConfig(mode="disabled"),
    )


@contextlib.contextmanager
def nothing_measured() -> Iterator[None]:
    """Leave out what a clock or an allocator says, so that a training takes as long as its steps."""
    from grouped_lm.measure import memory
    from grouped_lm.train import meters as train

    class NoPeak:
        def __init__(self, baseline: int) -> None: ...
        def __enter__(self) -> "NoPeak":
            return self

        def __exit__(self, *exception: object) -> None: ...
        def gib(self) -> float:
            return 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "measure_gemm_flops_per_sec", lambda device, dtype: 1e9)
        patch.setattr(train, "measure_head_peak_gib", lambda *args: 0.0)
        patch.setattr(memory, "PeakTensorMemory", NoPeak)
        yield


def fork(action: Callable[[], Any], log: Path) -> int:
    """Run `action` in a forked process group and return its pid; exit codes are those of `gvc`."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)  # not pytest's own
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        faulthandler.dump_traceback_later(50, file=sys.stderr)  # `wait` gives up at 60
        action()
        code = 0
    except GvcError as error:
        kept = error  # as a worker does: what its traceback holds is not taken apart
        print(f"gvc: error: {kept}", file=sys.stderr, flush=True)
        code = kept.exit_code
    except KeyboardInterrupt:
        code = 130
    except SystemExit as leave:
        code = int(leave.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def fork_train(config: Config, run_dir: Path, around: Callable[[], Any] = contextlib.nullcontext) -> int:
    """Fork a training; `around` gives a context that is entered in the child alone."""
    from grouped_lm.system.signals import exit_on_sigterm
    from grouped_lm.train.loop import train

    def action() -> None:
        with nothing_measured(), around(), exit_on_sigterm():
            train(config, run_dir)

    run_dir.parent.mkdir(parents=True, exist_ok=True)
    return fork(action, run_dir.with_suffix(".log"))


def wait(pid: int, timeout_s: float = 60.0) -> int:
    """Return the exit code, negative for a signal, of a forked process."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"still running after {timeout_s} s")


def train_to_end(config: Config, run_dir: Path) -> None:
    code = wait(fork_train(config, run_dir))
    assert code == 0, run_dir.with_suffix(".log").read_text()[-2000:]


def final_state(run_dir: Path) -> dict[str, bytes]:
    """Weights, moments and random state of the last checkpoint, as bytes."""
    progress = json.loads((newest_checkpoint(run_dir) / "state.json").read_text())["progress"]
    counted = {k: progress[k] for k in ("step", "loss_sums", "loss_steps", "eval_due", "nonfinite", "skipped_steps")}
    return saved_tensors(run_dir) | {"progress": json.dumps(counted, sort_keys=True).encode()}


def assert_same(run_dir: Path, reference: Path, suite: str, seed: int) -> None:
    assert curve(run_dir) == curve(reference), replay(suite, seed)
    assert final_state(run_dir) == final_state(reference), replay(suite, seed)
