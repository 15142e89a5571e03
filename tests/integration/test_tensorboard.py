"""`tracking=tensorboard`: event files, read back with TensorBoard's own reader."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

STEP = "trainer/step"


def read(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = read(run)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def curves_of_record(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves that metrics.jsonl has, in the fp32 of an event."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for key, value in row.items():
            if value is not None and key != STEP:
                found.setdefault(key, []).append((row[STEP], float(np.float32(value))))
    return found


def text(run: Path, name: str) -> str:
    (event,) = read(run).Tensors(f"{name}/text_summary")
    return event.tensor_proto.string_val[0].decode()


@pytest.fixture
def words(tiny):
    return ["train", *tiny, "tracking=tensorboard", "train.log_every_steps=1", "train.checkpoint_every_steps=2"]


def test_event_files_have_the_metrics_the_config_and_the_result(gvc, words):
    run = gvc(*words, "train.eval_every_steps=4").run_dir
    assert curves(run) == curves_of_record(run)
    assert {"train/loss", "val/loss", "train/lr", "trainer/tokens"} <= curves(run).keys()
    config = json.loads(text(run, "config").removeprefix("```json\n").removesuffix("\n```"))
    saved = json.loads((run / "config.json").read_text())
    assert {key: config[key] for key in saved} == saved
    table = plugin_data_pb2.HParamsPluginData.FromString(
        read(run).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    )
    hparams = table.session_start_info.hparams
    assert hparams["optim.lr"].number_value == saved["optim"]["lr"]
    assert hparams["head.name"].string_value == "shortlist"
    result = json.loads((run / "result.json").read_text())
    assert f"| val/loss | {result['val/loss']} |" in text(run, "result").splitlines()
    assert gvc("eval", str(run), "--samples", "0").code == 0
    assert "| eval/loss | " in text(run, "eval")


def test_a_resumed_run_goes_on_without_doubled_steps(gvc, words, monkeypatch):
    """It is killed after a validation and steps that its last checkpoint does not have."""
    from grouped_lm.train.session import TrainingRun

    count = TrainingRun.count_step

    def count_step(self):
        if self.progress.step == 5:
            raise KeyboardInterrupt
        return count(self)

    words = [*words, "train.eval_every_steps=4", "train.checkpoint_every_steps=4", "hydra.run.dir=run"]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "count_step", count_step)
        assert gvc(*words).code == 130
    run = Path("run")
    assert [step for step, _ in curves(run)["train/loss"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in curves(run)["val/loss"]] == [4]  # its checkpoint is older than that
    assert gvc(*words).code == 0
    assert [step for step, _ in curves(run)["train/loss"]] == list(range(1, 9))
    assert [step for step, _ in curves(run)["val/loss"]] == [4, 8]
    assert curves(run) == curves_of_record(run)


def test_a_rollback_draws_each_step_once(gvc, words, monkeypatch):
    from grouped_lm.heads.losses.functional import HeadLoss

    objective, calls = HeadLoss.objective, []

    def poisoned(self):
        calls.append(0)
        if len(calls) == 6:
            self.nll = self.nll * float("nan")
        return objective(self)

    monkeypatch.setattr(HeadLoss, "objective", poisoned)
    run = gvc(*words, "train.on_nonfinite=rollback").run_dir
    assert [step for step, _ in curves(run)["train/loss"]] == list(range(1, 9))
    assert curves(run) == curves_of_record(run)


def test_a_missing_package_is_one_line_and_leaves_no_folder(gvc, words, workdir, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else find(name))
    outcome = gvc(*words)
    assert outcome.code == 2
    assert outcome.err == (
        "gvc: error: tracking=tensorboard needs tensorboard: pip install 'grouped-lm[tensorboard]'\n"
    )
    assert list(workdir.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_warning(gvc, words):
    Path("run").mkdir()
    Path("run/tensorboard").write_text("a file where the folder should be")
    outcome = gvc(*words, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("gvc: warning: TensorBoard could not start") == 1
    assert json.loads(Path("run/result.json").read_text())["state"] == "complete"
