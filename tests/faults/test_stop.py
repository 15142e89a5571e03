"""SIGTERM and Ctrl-C in every phase; a disk that is full; a folder or a cache that is in use; a run that hangs."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from fault_tools import assert_same, fork, fork_train, nothing_measured, replay, train_to_end, trials, wait
from run_outputs import curve

from grouped_lm.data import prepare_data
from grouped_lm.errors import BusyError, DiskError
from grouped_lm.runs.checkpoint import list_checkpoints, verify
from grouped_lm.runs.folder import RunFolder
from grouped_lm.system.watchdog import STACKS
from grouped_lm.train.loop import train

PHASES = ("training", "evaluation in training", "gvc eval", "gvc sample", "gvc data prepare")


@contextlib.contextmanager
def slow(pipe: int, phase: str):
    """A slow machine: 10 ms a batch; the first piece of the phase is reported."""
    from grouped_lm.data.loader import TrainBatches, ValidWindows
    from grouped_lm.models.lm import LanguageModel

    train_batch, valid_batch, hidden = TrainBatches.batch, ValidWindows._batch, LanguageModel.hidden

    def reading(self, *args, **kwargs):
        if phase in ("gvc eval", "gvc sample"):
            time.sleep(0.05)
            os.write(pipe, b".")
        return hidden(self, *args, **kwargs)

    def one(self, index):
        time.sleep(0.01)
        if phase == "training":
            os.write(pipe, b".")
        return train_batch(self, index)

    def other(self, index):
        if phase == "evaluation in training":
            time.sleep(0.05)
            os.write(pipe, b".")
        return valid_batch(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainBatches, "batch", one)
        patch.setattr(ValidWindows, "_batch", other)
        patch.setattr(LanguageModel, "hidden", reading)
        yield


@contextlib.contextmanager
def stories_reported(pipe: int):
    """Report when stories begin to be written."""
    from grouped_lm.data.sources import tinytales

    original = tinytales.generate_stories

    def generate(*args, **kwargs):
        os.write(pipe, b".")
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tinytales, "generate_stories", generate)
        yield


def start(phase: str, config, folder: Path, trained: Path, pipe: int) -> int:
    """Fork a process that is in `phase` for seconds."""
    from grouped_lm.cli.main import main

    if phase in ("training", "evaluation in training"):
        return fork_train(config, folder, lambda: slow(pipe, phase))

    def command() -> None:
        os.chdir(folder.parent)
        if phase == "gvc eval":
            with slow(pipe, phase):
                main(["eval", str(trained)])
        elif phase == "gvc sample":
            with slow(pipe, phase):
                main(["sample", str(trained), "--max-new-tokens", "100000", "--num-samples", "100"])
        else:
            os.environ["GVC_CACHE_DIR"] = str(folder / "cache")
            with stories_reported(pipe):
                main(["data", "prepare", "tokenizer=bytes", "data.num_train_stories=400000"])

    folder.mkdir(parents=True)
    return fork(command, folder.with_suffix(".log"))


def stop_one(phase: str, number: int, config, reference: Path, folder: Path, rng) -> float:
    """Stop a process that is in `phase`; return how long that took, in seconds."""
    reading, writing = os.pipe()
    pid = start(phase, config, folder, reference, writing)
    os.close(writing)
    for _ in range(rng.randint(1, 20 if phase == "training" else 3 if phase != "gvc data prepare" else 1)):
        assert os.read(reading, 1), folder.with_suffix(".log").read_text()
    time.sleep(rng.uniform(0, 0.05))
    sent = time.monotonic()
    os.killpg(pid, number)
    code = wait(pid)
    took = time.monotonic() - sent
    os.close(reading)
    said = folder.with_suffix(".log").read_text()
    assert code == (75 if number == signal.SIGTERM else 130), (phase, code, said)
    assert "Traceback" not in said, said
    return took


def stop_trials(number: int, count: int, config, tmp_path: Path) -> tuple[int, float]:
    suite = signal.Signals(number).name
    made = config("grouped", eval_every_steps=4)
    reference = tmp_path / "whole"
    train_to_end(made, reference)
    slowest, done = 0.0, 0
    for seed, rng in trials(suite, count):
        phase, folder = PHASES[seed % len(PHASES)], tmp_path / str(seed)
        took = stop_one(phase, number, made, reference, folder, rng)
        assert took < 2.5, (phase, took, replay(suite, seed))
        slowest, done = max(slowest, took), done + 1
        if "training" in phase:
            newest = list_checkpoints(folder / "checkpoints")[-1]
            verify(newest)
            said = json.loads((folder / "result.json").read_text())
            assert said == {"state": "interrupted", "trainer/step": int(newest.name[5:])}, replay(suite, seed)
            train_to_end(made, folder)
            assert_same(folder, reference, suite, seed)
        elif phase == "gvc data prepare":
            assert all(p.name.endswith(".lock") for p in (folder / "cache").iterdir()), replay(suite, seed)
    return done, slowest


def test_sigterm_in_each_phase(config, tmp_path):
    stop_trials(signal.SIGTERM, len(PHASES), config, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize(("number", "count"), [(signal.SIGTERM, 40), (signal.SIGINT, 20)], ids=["SIGTERM", "SIGINT"])
def test_stopped_in_every_phase(config, tmp_path, figure, number, count):
    done, slowest = stop_trials(number, count, config, tmp_path)
    code = 75 if number == signal.SIGTERM else 130
    figure(
        f"{signal.Signals(number).name} in training, evaluation, sampling, data preparation",
        f"{done} of {done}: exit {code}, slowest {slowest:.2f} s, saved at the current step, end byte-equal",
    )


@contextlib.contextmanager
def small_files(limit: int):
    """Let no file grow beyond `limit` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def full_from(step: int, limit: int):
    """A disk that is full from the save of `step` on."""
    from grouped_lm.train import checkpoints as module

    original = module.write_checkpoint

    def save(parent, at, files, keep):
        with small_files(limit) if at >= step else contextlib.nullcontext():
            return original(parent, at, files, keep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_checkpoint", save)
        yield


def whole_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, each of which must be whole; nothing else may lie beside them."""
    found = list_checkpoints(run / "checkpoints")
    assert {*found} == {*(run / "checkpoints").iterdir()}
    for folder in found:
        verify(folder)
    return found


def test_a_full_disk_ends_with_4_and_the_run_goes_on_when_there_is_room(config, tmp_path, figure):
    made = config()
    train_to_end(made, tmp_path / "whole")
    limits = (0, 100, 5_000, 60_000)
    for limit in limits:
        run = tmp_path / str(limit)
        assert wait(fork_train(made, run, lambda limit=limit: full_from(6, limit))) == 4
        said = run.with_suffix(".log").read_text()
        assert "gvc: error: checkpoint of step 6 could not be written" in said
        assert "Traceback" not in said
        assert [p.name for p in whole_checkpoints(run)] == ["step-00000002", "step-00000004"]
        train_to_end(made, run)
        assert_same(run, tmp_path / "whole", "disk", limit)
    figure("disk full in a save (RLIMIT_FSIZE)", f"{len(limits)} of {len(limits)}: exit 4, older ones whole, goes on")


@pytest.mark.faults
def test_a_small_disk_that_fills_up(config, tmp_path, figure):
    """A file system of 256 KiB, which takes two or three checkpoints and then no more."""
    made, disk = config(keep_checkpoints=100), tmp_path / "disk"
    train_to_end(made, tmp_path / "whole")
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        assert wait(fork_train(made, disk / "run")) == 4
        kept = whole_checkpoints(disk / "run")
        assert 1 <= len(kept) < len(whole_checkpoints(tmp_path / "whole"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        train_to_end(made, disk / "run")
        assert_same(disk / "run", tmp_path / "whole", "disk", 0)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    figure("disk full for good (a tmpfs of 256 KiB)", f"exit 4 after {len(kept)} whole checkpoints, goes on with room")


def test_a_record_or_a_cache_that_cannot_be_written_ends_with_4(config, tmp_path, figure):
    made = config(checkpoint_every_steps=100)
    code = wait(fork_train(made, tmp_path / "run", lambda: small_files(2_000)))
    assert code == 4, (tmp_path / "run.log").read_text()
    assert "untouched: make room, then " in (tmp_path / "run.log").read_text()
    made.data.cache_dir = str(tmp_path / "cache")
    with pytest.raises(DiskError, match=r"data\.cache_dir names another place"), small_files(1_000):
        prepare_data(made.data, made.tokenizer)
    assert not list((tmp_path / "cache").glob("[!.]*"))
    figure("disk full in the record, in the token cache", "2 of 2: exit 4, nothing half-written under its name")


def test_one_of_eight_trains(config, tmp_path, figure):
    made = config(max_steps=200)  # at 10 ms a step long enough for all eight to come
    reading, writing = os.pipe()
    pids = [fork_train(made, tmp_path / "run", lambda: slow(writing, "none")) for _ in range(8)]
    codes = sorted(wait(pid) for pid in pids)
    os.close(reading)
    os.close(writing)
    assert codes == [0] + 7 * [3], codes
    assert (tmp_path / "run.log").read_text().count("in use by another gvc") == 7
    figure("one run folder, 8 processes", "1 trained, 7 exit 3")


def test_a_dead_holder_lets_go(config, tmp_path):
    def hold() -> None:
        with RunFolder(tmp_path / "run").lock():
            os.write(writing, b".")
            time.sleep(5)

    reading, writing = os.pipe()
    pid = fork(hold, tmp_path / "hold.log")
    os.read(reading, 1)
    with pytest.raises(BusyError), RunFolder(tmp_path / "run").lock():
        pass
    os.kill(pid, signal.SIGKILL)
    wait(pid)
    with RunFolder(tmp_path / "run").lock():
        pass


def build_caches(config, tmp_path: Path, rounds: int) -> int:
    """Eight builders of one cache, two of them killed, round after round; return the reads that saw a whole one."""
    made, whole = config(), 0
    expected = prepare_data(made.data, made.tokenizer).train.manifest["sha256"]
    for seed, rng in trials("cache", rounds):
        made.data.cache_dir = str(tmp_path / str(seed))

        def build() -> None:
            corpus = prepare_data(made.data, made.tokenizer)
            assert corpus.train.manifest["sha256"] == expected
            assert int(corpus.train.tokens()[-1]) == 256

        pids = [fork(build, tmp_path / f"{seed}.log") for _ in range(8)]
        time.sleep(rng.uniform(0, 0.03))
        for pid in (doomed := rng.sample(pids, 2)):
            os.kill(pid, signal.SIGKILL)
        codes = {pid: wait(pid) for pid in pids}
        assert all(code == 0 or pid in doomed for pid, code in codes.items()), (tmp_path / f"{seed}.log").read_text()
        folders = [p for p in Path(made.data.cache_dir).iterdir() if not p.name.startswith(".")]
        assert len(folders) == 2, replay("cache", seed)
        whole += sum(code == 0 for code in codes.values())
    return whole


def test_builders_of_one_cache(config, tmp_path):
    build_caches(config, tmp_path, 1)


@pytest.mark.faults
def test_builders_of_one_cache_again_and_again(config, tmp_path, figure):
    whole = build_caches(config, tmp_path, 10)
    figure("one token cache, 8 builders x 10 rounds, 2 killed in each", f"{whole} whole reads, 0 partial, one cache")


@contextlib.contextmanager
def poisoned(at: dict[int, float]):
    """Make the loss of the given micro-batches NaN or infinite."""
    from grouped_lm.models.lm import LanguageModel

    original, calls = LanguageModel.forward, []

    def forward(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        if self.training:
            calls.append(None)
            loss.nll = loss.nll * at.get(len(calls) - 1, 1.0)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "forward", forward)
        yield


def nonfinite_values(run_dir: Path) -> int:
    import numpy as np
    from safetensors.numpy import load_file

    states = [load_file(path) for path in run_dir.rglob("state.safetensors")]
    assert states
    return sum(int((~np.isfinite(v)).sum()) for state in states for v in state.values() if v.dtype == np.float32)


def test_nan_is_seen_before_the_update(config, tmp_path, figure):
    nan, inf = float("nan"), float("inf")
    raised = tmp_path / "raise"
    assert wait(fork_train(config(), raised, lambda: poisoned({10: nan}))) == 7
    assert "diverged at step 5: loss nan" in raised.with_suffix(".log").read_text()
    for policy in ("skip", "rollback"):
        run = tmp_path / policy
        code = wait(fork_train(config(on_nonfinite=policy), run, lambda: poisoned({10: nan, 15: inf})))
        assert code == 0, run.with_suffix(".log").read_text()
        assert curve(run)[-2]["train/nonfinite_steps"] == 2
        assert curve(run)[-2]["trainer/step"] == 12
        over = tmp_path / f"{policy}-over"
        made = config(on_nonfinite=policy, max_nonfinite=1)
        assert wait(fork_train(made, over, lambda: poisoned({10: nan, 15: inf}))) == 7
    assert sum(nonfinite_values(run.with_suffix("")) for run in tmp_path.glob("*.log")) == 0
    figure("NaN, infinity in the loss", "raise, skip, roll back as configured, limits kept; 0 in any checkpoint")


@pytest.mark.parametrize("first", [0, 9])
def test_a_run_that_skipped_its_last_steps_has_them_in_its_result(config, tmp_path, gvc, first):
    made, run = config(on_nonfinite="skip", max_nonfinite=100), tmp_path / "run"
    bad = dict.fromkeys(range(2 * first, 24), float("nan"))
    assert wait(fork_train(made, run, lambda: poisoned(bad))) == 0, run.with_suffix(".log").read_text()
    result = json.loads((run / "result.json").read_text())
    assert (result["trainer/step"], result["trainer/tokens"]) == (12, 12 * 4 * 32)
    assert "12 steps are done" in gvc("resume", str(run)).err


def test_weights_that_are_not_finite_are_not_saved(config, tmp_path):
    made = config(max_steps=2, checkpoint_every_steps=1)

    @contextlib.contextmanager
    def bad_update():
        import torch

        original = torch.optim.AdamW.step

        def step(self, *args, **kwargs):
            original(self, *args, **kwargs)
            self.param_groups[0]["params"][0].data.view(-1)[0] = float("inf")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", step)
            yield

    assert wait(fork_train(made, tmp_path / "run", bad_update)) == 7
    assert "nothing was saved" in (tmp_path / "run.log").read_text()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_step_that_will_not_fit_says_which_batch_would(config, tmp_path, monkeypatch, figure):
    from grouped_lm.errors import MemoryShortError
    from grouped_lm.plan import memory_check

    made = config(micro_batch_size=64)
    needed = [memory_check.peak_bytes(made, batch) for batch in (64, 16, 17)]
    monkeypatch.setattr(memory_check, "available_bytes", lambda *_: (needed[1] + needed[2]) // 2)
    with pytest.raises(MemoryShortError, match=r"train\.micro_batch_size=16 fits") as error, nothing_measured():
        train(made, tmp_path / "run")
    assert error.value.exit_code == 8
    assert not (tmp_path / "run" / "checkpoints").exists()
    figure("a step that does not fit into memory", "exit 8 before it runs, with the largest batch that fits")


def test_an_allocator_that_says_no_in_the_middle(config, tmp_path, monkeypatch):
    from grouped_lm.plan import memory_check

    @contextlib.contextmanager
    def no_memory():
        from grouped_lm.models.lm import LanguageModel

        def forward(self, *args, **kwargs):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LanguageModel, "forward", forward)
            patch.setattr(memory_check, "upper_bound_bytes", lambda config: 0)
            yield

    assert wait(fork_train(config(), tmp_path / "run", no_memory)) == 8
    said = (tmp_path / "run.log").read_text().splitlines()[-1]
    assert said.startswith("gvc: error: out of memory with train.micro_batch_size=2")


def test_a_hang_ends_with_its_stacks_and_the_run_goes_on(config, tmp_path, figure):
    @contextlib.contextmanager
    def hanging():
        from grouped_lm.data.loader import TrainBatches

        original = TrainBatches.batch

        def batch(self, index):
            if index == 10:
                reached.touch()
                threading.Event().wait()
            return original(self, index)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainBatches, "batch", batch)
            yield

    made = config(hang_minutes=8.0 / 60)  # no step takes that long on a busy machine
    reached = tmp_path / "reached"
    train_to_end(config(), tmp_path / "whole")
    assert wait(fork_train(made, tmp_path / "run", hanging)) == 1
    took = time.time() - reached.stat().st_mtime
    assert "in batch" in (tmp_path / "run" / STACKS).read_text()
    assert "nothing happened for" in json.loads((tmp_path / "run" / "result.json").read_text())["reason"]
    train_to_end(made, tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole", "hang", 0)
    figure("a step that hangs (limit 8 s)", f"ended after {took:.1f} s with every stack, exit 1, went on byte-equal")
