"""The pages of `docs/extend`: each example is one module and one YAML, and trains without a change of the library."""

import csv
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grouped_lm.data import SOURCES
from grouped_lm.grouping import GROUPINGS
from grouped_lm.heads import HEADS
from grouped_lm.optim import OPTIMIZERS

PAGES = Path(__file__).parents[2] / "docs" / "extend"
BLOCK = re.compile(r"^`([\w/]+\.(?:py|yaml))`:\n\n```(?:python|yaml)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
STEPS = 3


def save_example(page: str, folder: Path) -> str:
    """Write the two files of a page into a folder, and return the name of the module."""
    files = BLOCK.findall((PAGES / page).read_text(encoding="utf-8"))
    assert [Path(name).suffix for name, _ in files] == [".py", ".yaml"]
    for name, text in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Path(files[0][0]).stem


def csv_files(texts: dict[str, str]) -> list[str]:
    """Write the stories as CSV, and return the overrides that name the files."""
    words = []
    for split, path in texts.items():
        with Path(f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["number", "story"])
            rows.writerows(enumerate(Path(path).read_text(encoding="utf-8").split("<|endoftext|>")))
        words.append(f"data.{split}={split}.csv")
    return [*words, "data.column=story"]


def result_of(gvc, *words: str) -> tuple[dict, dict]:
    """Train a few steps with a folder of own configs; return the config and the last metrics of the run."""
    run = gvc("train", "--config-dir", "conf", *words, f"train.max_steps={STEPS}", "hydra.run.dir=run")
    assert run.code == 0, run.err
    config = json.loads(Path("run/config.json").read_text(encoding="utf-8"))
    result = json.loads(Path("run/result.json").read_text(encoding="utf-8"))
    assert result["state"] == "complete"
    assert 0 < result["val/loss"] < 20
    return config, result


@pytest.fixture
def example(workdir, monkeypatch):
    """Return a function that saves and imports the example of a page; registries are as before afterwards."""
    registries: tuple[dict, ...] = (HEADS, GROUPINGS, OPTIMIZERS, SOURCES)
    before = [dict(registry) for registry in registries]
    monkeypatch.syspath_prepend(workdir)

    def load(page: str) -> None:
        importlib.import_module(save_example(page, workdir))

    yield load
    for registry, content in zip(registries, before, strict=True):
        registry.clear()
        registry.update(content)


@pytest.mark.parametrize(
    ("page", "module", "words"),
    [
        ("head.md", "cosine_head", ["head=cosine", "head.scale=8"]),
        ("grouping.md", "dealt_grouping", ["head=grouped", "grouping=dealt"]),
        ("optimizer.md", "sgd_optimizer", ["head=dense", "optim=sgd"]),
        ("data.md", "csv_source", ["head=dense", "data=csv"]),
    ],
)
def test_the_examples_work_from_a_shell(tiny, texts, workdir, page, module, words):
    assert save_example(page, workdir) == module
    if page == "data.md":
        words, tiny = [*words, *csv_files(texts)], [word for word in tiny if not word.startswith("data")]
    gvc = Path(sys.executable).with_name("gvc")
    command = [gvc, "train", "-m", "--config-dir", "conf", *tiny, *words, "train.max_steps=2", "seed=0,1"]
    command += ["hydra.sweep.dir=runs/plugin", "tracking=none"]  # each job is a process of its own
    environment = os.environ | {"GVC_PLUGINS": module}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(Path("runs/plugin").glob("*/result.json"))) == 2


def test_a_plugin_that_is_none_is_named(gvc, tiny, workdir, monkeypatch):
    monkeypatch.setenv("GVC_PLUGINS", "nowhere")
    outcome = gvc("train", *tiny)
    assert outcome.code == 2
    assert "GVC_PLUGINS=nowhere: nowhere cannot be imported" in outcome.err


def test_a_head(gvc, tiny, example):
    example("head.md")
    config, _ = result_of(gvc, *tiny, "head=cosine", "head.scale=8")
    assert config["head"] == {"name": "cosine", "scale": 8.0}
    assert gvc("sample", "run", "--prompt", "Once", "--max-new-tokens", "4").code == 0
    assert gvc("train", "--config-dir", "conf", *tiny, "head=cosine", "head.scale=0").code == 2
    words = ["train.max_steps=1", "train.device=cpu", "tracking=none", "hydra.run.dir=next"]
    Path("conf/sweep").mkdir()
    Path("conf/sweep/mine.yaml").write_text("# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: 0,1\n")
    swept = gvc("sweep", "mine", "init_from=run", "--config-dir", "conf", "--dry-run", *words[:3])
    assert swept.code == 0, swept.err
    assert "gvc: model, head, grouping, data, tokenizer as in run (init_from)" in swept.err
    onwards = gvc("train", "--config-dir", "conf", "init_from=run", *words)
    assert onwards.code == 0, onwards.err
    assert json.loads(Path("next/config.json").read_text(encoding="utf-8"))["head"] == config["head"]


def test_a_grouping(gvc, tiny, example):
    example("grouping.md")
    config, _ = result_of(gvc, *tiny, "head=grouped", "grouping=dealt", "grouping.first=3")
    assert config["grouping"] == {"name": "dealt", "first": 3}
    assert gvc("train", "--config-dir", "conf", *tiny, "head=grouped", "grouping=dealt", "grouping.first=-1").code == 2


def test_a_data_source(gvc, tiny, texts, example):
    example("data.md")
    words = [word for word in tiny if not word.startswith("data")]
    config, from_csv = result_of(gvc, *words, "data=csv", *csv_files(texts), "head=dense")
    assert config["data"]["source"] == "csv"
    run = gvc("train", *tiny, "head=dense", f"train.max_steps={STEPS}", "hydra.run.dir=text")
    same = json.loads((run.run_dir / "result.json").read_text(encoding="utf-8"))
    assert from_csv["val/loss"] == same["val/loss"]  # the same stories, so the same tokens
    assert gvc("train", "--config-dir", "conf", *words, "data=csv").code == 2


def test_an_optimizer(gvc, tiny, example):
    example("optimizer.md")
    config, _ = result_of(gvc, *tiny, "head=dense", "optim=sgd", "optim.momentum=0.8")
    assert (config["optim"]["name"], config["optim"]["momentum"]) == ("sgd", 0.8)
    assert gvc("train", "--config-dir", "conf", *tiny, "optim=sgd", "optim.momentum=2").code == 2
    schema, build = OPTIMIZERS["sgd"]
    model = torch.nn.Linear(200, 300)
    weight, optimizer = model.weight.detach().clone(), build(schema(), model)
    for step, found_inf in enumerate((1.0, 0.0)):  # the first step is left out
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.found_inf = torch.tensor(found_inf)
        optimizer.step()
        buffers = [state["momentum_buffer"] for state in optimizer.state.values()]
        assert all((buffer == step).all() for buffer in buffers)
    torch.testing.assert_close(model.weight, weight - 0.1)
