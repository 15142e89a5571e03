"""The workspace: its panels name what runs log, and nothing else; it is the same every time."""

import json
import sys
from pathlib import Path

import torch

from grouped_lm.measure.memory import StepMemory
from grouped_lm.report.dashboard import build_workspace, load_sections, workspace_json


def keys_in(node) -> set[str]:
    """Keys of x axes, y axes and metrics in a workspace's JSON, as panels have them."""
    found: set[str] = set()
    for panel in (panel for bank in node["spec"]["section"]["panelBankConfig"]["sections"] for panel in bank["panels"]):
        config = panel["config"]
        values = [config.get("xAxis"), config.get("yAxis"), *config.get("metrics", [])]
        found |= {value.removeprefix("summary:") for value in values if value}
    return found


def test_panels_name_only_keys_that_runs_log(gvc, tiny):
    run = gvc("train", *tiny, "head=grouped", "train.eval_every_steps=4").run_dir
    logged = {key for line in (run / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    summary = set(json.loads((run / "result.json").read_text()))
    model = torch.nn.Linear(2, 2)
    gpu = set(StepMemory(torch.device("cpu"), model, torch.optim.AdamW(model.parameters())).read())  # None on a CPU
    outcome = gvc("dashboard", "--offline", "--out", "d.json", "--project", "mine")
    assert outcome.out == "d.json\n"
    workspace = json.loads(Path("d.json").read_text())
    assert workspace["project"] == "mine"
    named = keys_in(workspace)
    assert named == {key for panels in load_sections().values() for panel in panels for key in (panel.x, *panel.y)}
    assert named <= logged | summary | gpu
    lines = {
        key
        for panels in load_sections().values()
        for panel in panels
        if not panel.points
        for key in (panel.x, *panel.y)
    }
    assert lines <= logged | gpu
    assert [bank["name"] for bank in workspace["spec"]["section"]["panelBankConfig"]["sections"]] == [
        "Quality",
        "Memory",
        "Speed",
        "Trade-off",
    ]


def test_the_same_workspace_every_time():
    first, again = (workspace_json(build_workspace("e", "p", "n")) for _ in range(2))
    assert first == again


def test_without_a_login_it_is_written_and_without_the_extra_that_is_said(gvc, workdir, monkeypatch):
    monkeypatch.setenv("HOME", str(workdir))
    monkeypatch.setenv("NETRC", "none")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    outcome = gvc("dashboard")
    assert (outcome.code, outcome.out) == (0, "runs/dashboard.json\n")
    assert "no W&B key here" in outcome.err
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)

    def refuse(_):
        raise ConnectionError("no such host\nsecond line")

    monkeypatch.setattr("wandb_workspaces.workspaces.internal.upsert_view2", refuse)  # the real one tries for 20 s
    failed = gvc("dashboard", "--entity", "me")
    assert (failed.code, failed.out) == (1, "")
    assert failed.err.splitlines()[-1].startswith("gvc: error: W&B did not take the dashboard")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    missing = gvc("dashboard", "--offline")
    assert missing.code == 2
    assert "pip install 'grouped-lm[dashboard]'" in missing.err
