"""Tables on narrow terminals, and the state of a job that is being trained."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_report import HOLD, make_run

from grouped_lm.config import Config, config_to_dict
from grouped_lm.heads import DenseConfig, GroupedConfig
from grouped_lm.jobs.sweep import SweepDisplay, driver_lock, job_state
from grouped_lm.plan.tables import time_unit
from grouped_lm.report.figures import draw_pareto
from grouped_lm.report.series import Point
from grouped_lm.report.style import make_figure, styled_matplotlib
from grouped_lm.report.tables import comparison_table
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.query import SPEED
from grouped_lm.runs.table import collect_runs
from grouped_lm.system.console import natural_width
from grouped_lm.system.files import shared_lock, write_json
from grouped_lm.system.tables import Column, Table, columns, csv_text, shorten_middle


@pytest.fixture
def eight_runs(tmp_path) -> list[dict]:
    for number in range(8):
        name = f"train-2026-11-29/head=grouped,group_size={64 * (number + 1)},optim.lr=0.003,seed={number}"
        head = DenseConfig() if number == 7 else GroupedConfig(group_size=64 * (number + 1))
        figures = {"val/loss": 4.0, "val/perplexity": 1234.5, "throughput/tokens_per_sec": 12345.0 + number}
        figures |= {"memory/peak_tensor_gib": 0.5, "params/total": 10**6, "val/bits_per_byte": 1.25}
        text = {"data.name": ("tinytales", "tinystories")[number % 2]}
        make_run(tmp_path / name, head, (), text, state="complete", **figures, **{"trainer/step": 1000})
    return collect_runs([tmp_path])


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_case_U3_eight_runs_are_one_table_that_fits(eight_runs, width):
    table = comparison_table(eight_runs, wide=False, width=width)
    assert natural_width(table) <= width
    headers = [str(column.header) for column in table.columns]
    assert set(headers) >= {"run", "head", "perplexity"}
    assert width < 80 or {"data", "tokens/s"} <= set(headers)
    assert len(table.rows) == 8


@pytest.mark.parametrize("width", [44, 80])
def test_case_U3_few_runs_with_long_names_are_one_table_that_fits(eight_runs, width):
    table = comparison_table(eight_runs[:2], wide=False, width=width)
    assert natural_width(table) <= width
    shown = {str(column.header) for column in table.columns} | {str(cell) for cell in table.columns[0].cells}
    assert "perplexity" in shown


def test_case_U3_runs_of_several_tokenizers_show_bits_per_byte(eight_runs):
    headers = [str(column.header) for column in comparison_table(eight_runs, wide=False, width=80).columns]
    assert not {"tokenizer", "bits/byte"} & set(headers)
    eight_runs[0]["tokenizer"] = "bytes"
    mixed = comparison_table(eight_runs, wide=False, width=80)
    assert natural_width(mixed) <= 80
    assert {"tokenizer", "bits/byte", "perplexity"} <= {str(column.header) for column in mixed.columns}


def test_case_U3_wide_has_every_column_and_the_default_at_most_eight_beside_the_name(eight_runs):
    wide, narrow = comparison_table(eight_runs), comparison_table(eight_runs, wide=False)
    assert len(narrow.columns) <= 9 < len(wide.columns)
    assert {str(c.header) for c in narrow.columns} < {str(c.header) for c in wide.columns}


def test_case_U3_ls_has_the_option(gvc, eight_runs):
    folder = str(Path(eight_runs[0]["run"]).parent)
    assert "parameters" not in gvc("ls", folder).out
    assert "parameters" in gvc("ls", folder, "--wide").out


def test_case_U6_long_names_lose_their_middle(eight_runs):
    names = [str(cell) for cell in comparison_table(eight_runs, wide=False, width=80).columns[0].cells]
    assert len(set(names)) == 8
    assert all("…" in name and name.startswith("head=") and name[-6:].startswith("seed=") for name in names)
    assert shorten_middle("abcdefghij", 5) == "ab…ij"
    assert shorten_middle("abcde", 5) == "abcde"


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the kernel lists no locks here")
def test_case_U4_a_job_in_training_is_called_running(tmp_path):
    config = Config(head=GroupedConfig(group_size=64))
    run = make_run(tmp_path / "job", metrics=())
    write_json(run / "job.json", config_to_dict(config))
    write_json(run / "config.json", config_to_dict(config))
    assert job_state(config, run) == "unfinished"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, run / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert job_state(config, run) == "running"
        table = SweepDisplay(lambda: [(config, run)], 1).table()
        assert [*table.columns[1].cells] == ["running"]
        (run / "metrics.jsonl").write_text('{"trainer/step": 10, "train/loss": 4.5}\n')
        table = SweepDisplay(lambda: [(config, run)], 1).table()
        assert [[*column.cells] for column in table.columns[2:]] == [[f"10/{config.train.max_steps}"], ["loss 4.500"]]
        holder.communicate()
    assert job_state(config, run) == "unfinished"


def test_a_job_that_is_repeated_is_reported_each_time_it_ends(tmp_path, capsys):
    config = Config(head=GroupedConfig(group_size=64))
    run = make_run(tmp_path / "job", metrics=(), state="failed", reason="killed by signal 9 (SIGKILL)")
    write_json(run / "config.json", config_to_dict(config))
    display = SweepDisplay(lambda: [(config, run)], 1)
    display._report_ended()
    assert capsys.readouterr().err == ""  # it had failed before
    RunFolder(run).write_failure("no space left on device")
    display._report_ended()
    assert capsys.readouterr().err == "1/1 job: failed  no space left on device\n"
    with shared_lock(driver_lock(run)):  # its driver may still add the exit code
        write_json(run / "result.json", {"state": "complete", "val/loss": 4.0})
        display._report_ended()
        assert capsys.readouterr().err == ""
    display._report_ended()
    display._report_ended()
    assert capsys.readouterr().err.startswith("1/1 job: complete  ")


def test_case_24_the_time_left_of_a_sweep_falls_while_a_job_runs(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("grouped_lm.jobs.sweep.time.monotonic", lambda: clock[0])
    display = SweepDisplay(list, 3)
    shown = []
    for clock[0], ended in ((50.0, 0), (60.0, 1), (90.0, 1), (500.0, 1), (520.0, 3)):
        shown.append(display._time_left(ended))
    assert shown == ["", ", about 2:00 left", ", about 1:30 left", ", about 1:00 left", ""]
    assert display.table().title == "0/3 jobs, 8:40 so far"


@pytest.mark.parametrize(
    ("hours", "unit", "text"), [(30.0, "hours", "30.00"), (0.5, "minutes", "30.00"), (0.001, "seconds", "3.60")]
)
def test_case_24_the_times_of_a_plan_have_one_unit(hours, unit, text):
    plans = [SimpleNamespace(hours=hours), SimpleNamespace(hours=hours / 9)]
    found, shown = time_unit(plans)
    assert (found, shown(plans[0])) == (unit, text)


@pytest.mark.parametrize(("rates", "from_zero"), [((1000.0, 1010.0), True), ((1000.0, 1500.0), False)])
def test_case_U9_noise_does_not_fill_the_axis(rates, from_zero):
    text = ("tinytales", "gpt2")
    points = [
        Point(head, head, None, text, ({"val/loss": 4.0, "throughput/tokens_per_sec": rate, "seed": 0},))
        for head, rate in zip(("dense", "film"), rates, strict=True)
    ]
    with styled_matplotlib():
        (axes,) = make_figure(partial(draw_pareto, points=points, against=SPEED)).axes
        assert (axes.get_xlim()[0] == 0) == from_zero


def test_one_table_for_terminal_markdown_and_csv():
    rows = [{"name": "a|b", "ms": 1234.5, "peak": 2**30, "none": None}, {"name": "[bold]", "ms": None, "peak": 2**20}]
    table = Table(columns=columns("name; time, ms = ms {:,.1f}; peak bytes; none"), rows=rows)
    assert table.columns[1] == Column("time, ms", "ms", "{:,.1f}")
    assert table.cells() == [["a|b", "1,234.5", "1.00 GiB"], ["[bold]", "-", "1.0 MiB"]]
    lines = ["| name | time, ms | peak |", "| --- | ---: | ---: |", "| a\\|b | 1,234.5 | 1.00 GiB |"]
    assert table.markdown().splitlines()[:3] == lines
    assert table.csv().splitlines() == ["name,ms,peak,none", "a|b,1234.5,1073741824,", "[bold],,1048576,"]
    assert csv_text([{"a": [1], "b": 0.1}], ["b", "a", "c"]) == "b,a,c\n0.1,[1],\n"
    assert natural_width(table.terminal()) == natural_width(table.terminal())
