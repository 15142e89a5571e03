"""What tells runs of a leaderboard apart."""

from dataclasses import replace

import pytest

from grouped_lm.config import AdamWConfig, Config, ModelConfig, PriorConfig, TrainConfig
from grouped_lm.heads import DenseConfig
from grouped_lm.report.contest import Place
from grouped_lm.report.leaderboard import options_of
from grouped_lm.report.leaderboard_plot import write_minutes_plots

PLAIN = Config(head=DenseConfig())


def test_a_run_that_differs_in_any_setting_is_another_run():
    optim = {"warmup_steps": 400, "min_lr_ratio": 1.0, "grad_clip": 0.0, "table_weight_decay": 0.0, "sparse_rows": True}
    model = {"n_head": 1, "ln_f_gain": 5.0, "embedding": "factorised"}
    own = replace(PLAIN, optim=AdamWConfig(**optim), model=ModelConfig(**model), init_from="runs/x")
    added = options_of(own).removeprefix(options_of(PLAIN)).split()
    assert [option.split("=")[0] for option in added] == [
        "init_from",
        *(f"model.{key}" for key in model),
        *(f"optim.{key}" for key in optim),
    ]
    assert added[0].startswith("init_from=x-")
    assert added[1:3] == ["model.n_head=1", "model.ln_f_gain=5.0"]


@pytest.mark.parametrize(
    "own",
    [
        replace(PLAIN, seed=3, name="mine", optim=AdamWConfig(lr=0.5)),
        replace(PLAIN, train=TrainConfig(max_steps=7, threads=2, eval_every_steps=3)),
        replace(PLAIN, model=ModelConfig(name="mine", n_layer=3, n_head=4, n_embd=128, ln_f_gain=3.0)),
        replace(PLAIN, prior=PriorConfig(order=3)),  # there is none
    ],
)
def test_what_has_a_column_or_changes_nothing_is_no_option(own):
    assert options_of(own) == options_of(PLAIN)


def test_each_machine_has_its_own_figure_of_minutes(tmp_path):
    timed = [
        (Place("", "", [{"data": "stories", "threads": "1", "machine": machine, "minutes": "10"}], True, (), ""), [])
        for machine in ("AMD EPYC, 2 cores", "NVIDIA H200")
    ]
    assert "minutes-stories-1.svg" in [path.name for path in write_minutes_plots(timed[:1], tmp_path)]
    drawn = [path for path in write_minutes_plots(timed, tmp_path) if path.suffix == ".svg"]
    assert [path.name for path in drawn] == ["minutes-stories-1-1.svg", "minutes-stories-1-2.svg"]
    assert "stories, one core, NVIDIA H200" in drawn[1].read_text()
