"""kill -9 at any moment: the run goes on, and ends to the byte as one that was never stopped."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from fault_tools import assert_same, fork_train, replay, train_to_end, trials, wait

from grouped_lm.runs.checkpoint import verify


@contextlib.contextmanager
def saves_reported(pipe: int):
    """Write `(` into a pipe when a save begins and `)` when it is over, in the child."""
    from grouped_lm.train import checkpoints as train

    original = train.write_checkpoint

    def reported(*args):
        os.write(pipe, b"(")
        try:
            return original(*args)
        finally:
            os.write(pipe, b")")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "write_checkpoint", reported)
        yield


def kill_once(config, run_dir: Path, rng, whole_s: float, save_s: float) -> str:
    """Kill a training at a random moment, of the whole or of one save; return `finished`, `outside` or `inside`."""
    reading, writing = os.pipe()
    pid = fork_train(config, run_dir, lambda: saves_reported(writing))
    os.close(writing)
    seen = b""
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0, whole_s))
    else:
        for _ in range(rng.randint(1, 4)):
            while (byte := os.read(reading, 1)) not in (b"(", b""):
                seen += byte
            seen += byte
        time.sleep(rng.uniform(0, save_s))
    os.killpg(pid, signal.SIGKILL)
    code = wait(pid)
    while byte := os.read(reading, 4096):
        seen += byte
    os.close(reading)
    assert code in (0, -9), run_dir.with_suffix(".log").read_text()
    return "finished" if code == 0 else "inside" if seen.count(b"(") > seen.count(b")") else "outside"


def run_trials(config, head: str, count: int, tmp_path: Path) -> dict[str, int]:
    suite, made = f"kill-{head}", config(head)
    started = time.monotonic()
    train_to_end(made, tmp_path / "whole")
    whole_s = time.monotonic() - started
    kills = {"inside": 0, "outside": 0, "finished": 0, "trials": 0}
    for seed, rng in trials(suite, count):
        run_dir = tmp_path / str(seed)
        for _ in range(rng.randint(1, 2)):
            kills[kill_once(made, run_dir, rng, whole_s, 0.006)] += 1
        train_to_end(made, run_dir)
        assert_same(run_dir, tmp_path / "whole", suite, seed)
        for folder in (run_dir / "checkpoints").iterdir():
            assert folder.name.startswith("step-"), replay(suite, seed)
            verify(folder)
        kills["trials"] += 1
    return kills


def test_a_few_kills(config, tmp_path):
    assert run_trials(config, "grouped", 3, tmp_path)["trials"] >= 1


@pytest.mark.faults
@pytest.mark.parametrize("head", ["dense", "grouped"])
def test_killed_at_random_moments(config, tmp_path, figure, head):
    kills = run_trials(config, head, 75, tmp_path)
    assert kills["inside"] >= 15 or kills["trials"] == 1
    figure(
        f"kill -9, {head} head",
        f"{kills['trials']} runs, {kills['inside'] + kills['outside']} kills, {kills['inside']} inside a save: "
        "0 lost, curves and weights byte-equal",
    )
