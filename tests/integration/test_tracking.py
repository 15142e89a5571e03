"""W&B, for real: a run written offline, read back with W&B's own reader; and a W&B that fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WANDB = str(Path(sys.executable).parent / "wandb")
TRACKED = ["tracking=wandb", "tracking.mode=offline", "tracking.group=my-sweep", "tracking.tags=[mine]"]


def inspect(run: Path, *flags: str) -> str:
    """What W&B's own reader says of the one offline run in a run folder."""
    (folder,) = (run / "wandb").glob("offline-run-*")
    command = [WANDB, "leet", "inspect", "--json", *flags, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_an_offline_run_reads_back(workdir, tiny):
    # in a process of its own, as a user runs it: a run that another test broke would still hold W&B's service here
    words = [Path(sys.executable).parent / "gvc", "train", *tiny, *TRACKED, "train.eval_every_steps=4"]
    outcome = subprocess.run(words, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    run = Path(outcome.stdout.splitlines()[-1])
    result = json.loads((run / "result.json").read_text())
    records = [json.loads(line) for line in inspect(run).splitlines()]
    by_type = {kind: [r[kind] for r in records if r["type"] == kind] for kind in {r["type"] for r in records}}

    (start,) = by_type["run"]
    assert start["project"] == "gvc"
    assert start["run_group"] == "my-sweep"
    assert start["job_type"] == "train"
    assert start["run_id"] == (run / "wandb_id").read_text()
    assert set(start["tags"]) == {"debug", "shortlist", "text", "paper-repro", "mine"}
    config = start["config"]["update"]
    assert config["config_hash"] == result["config_hash"]
    assert config["optim"]["lr"] == 1e-3

    axes = {m["glob_name"]: m["step_metric"] for m in by_type["metric"] if m.get("glob_name")}
    assert axes == {f"{family}/*": "trainer/step" for family in ("train", "val", "throughput", "time", "memory")}

    def without_private(row: dict) -> dict:
        return {key: value for key, value in row.items() if not key.startswith("_")}

    logged = [without_private(h["item"]) for h in by_type["history"]]
    written = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert logged == [{key: value for key, value in row.items() if value is not None} for row in written]
    assert set().union(*logged) >= {
        *("train/loss", "train/loss_group", "train/loss_token", "train/grad_norm", "train/lr"),
        *("val/loss", "val/perplexity", "val/bits_per_byte", "val/group_accuracy"),
        *("throughput/tokens_per_sec", "throughput/mfu", "time/step_ms"),
        *("memory/peak_tensor_gib", "memory/peak_rss_gib", "trainer/step", "trainer/tokens"),
    }

    summary = json.loads(inspect(run, "--summary"))
    assert summary["state"] == "finished"
    final = summary["summary"]
    for key, value in result.items():
        if value is not None:
            assert final[key] == value, key


def test_a_resumed_run_keeps_its_id(gvc, tiny):
    words = ["train", *tiny, *TRACKED, "train.checkpoint_every_steps=2", "hydra.run.dir=run"]
    run = gvc(*words).run_dir
    first = (run / "wandb_id").read_text()
    (run / "result.json").unlink()
    assert gvc(*words).code == 0
    assert (run / "wandb_id").read_text() == first
    assert all(first in folder.name for folder in (run / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_a_failing_wandb_changes_nothing(gvc, tiny, monkeypatch, failing):
    import wandb

    def broken(*args, **kwargs):
        raise ConnectionError("no such host\nsecond line")

    if failing == "init":
        monkeypatch.setattr(wandb, "init", broken)
    else:
        monkeypatch.setattr(wandb.sdk.wandb_run.Run, failing, broken)
    outcome = gvc("train", *tiny, *TRACKED)
    plain = gvc("train", *tiny)
    assert outcome.code == 0
    assert outcome.err.count("gvc: warning: W&B could not") == 1
    losses = [json.loads((o.run_dir / "result.json").read_text())["val/loss"] for o in (outcome, plain)]
    assert losses[0] == losses[1]


def test_disabled_imports_no_wandb(gvc, tiny):
    run = gvc("train", *tiny, "tracking=none").run_dir
    assert not (run / "wandb").exists()
