"""The leaderboard: rows of runs, judged on another text, and differences to the best dense."""

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from grouped_lm.cli.compose.compose import HydraFlags, composing, to_config

from grouped_lm.config import Config, config_to_dict
from grouped_lm.errors import ConfigError, DataError
from grouped_lm.evaluate.documents import DocumentLosses
from grouped_lm.heads import DenseConfig
from grouped_lm.report import leaderboard
from grouped_lm.report.contest import places
from grouped_lm.report.documents import merge_documents, read_documents
from grouped_lm.report.leaderboard import KEY, merge_rows, read_rows, short_names, standings
from grouped_lm.report.leaderboard_plot import write_leaderboard_plot, write_minutes_plots, write_place_plots
from grouped_lm.report.texts import refuse_mixed_texts


def row(head, loss, *, seed=0, lr="0.001", options="", report=None, curve="", bits=1.0):
    own = {"head": head, "options": options, "seed": str(seed), "lr": lr, "grouping": "", "group_size": ""}
    own |= {"tokens": "2048"} | dict.fromkeys(("contest", "minutes", "threads", "machine", "commit"), "")
    own["report_text"] = "" if report is None else "report.txt 0123abcd"
    figures = {"val_loss_nats": str(loss), "val_bits_per_byte": str(bits), "curve": curve, "report_bits_per_byte": ""}
    return own | figures | {"report_loss_nats": "" if report is None else str(report)}


def test_a_head_stands_at_its_best_rate_and_is_judged_on_the_report_text():
    rows = [
        row("dense", 3.0, lr="0.001", report=3.1),
        row("dense", 2.9, lr="0.002", report=3.2),  # chosen by val, though the report text likes the other
        row("grouped", 3.5, report=3.4),
    ]
    dense, grouped = standings(rows)
    assert (dense.head, dense.lr, dense.loss, dense.difference) == ("dense", "0.002", 3.2, 0.0)
    assert grouped.difference == pytest.approx(0.2)
    assert grouped.low is None


def test_differences_are_paired_by_seed_with_a_t_interval():
    gaps = [0.01, 0.03, 0.02]
    rows = [row("dense", 3 + seed, seed=seed) for seed in range(3)]
    rows += [row("film", 3 + seed + gap, seed=seed) for seed, gap in enumerate(gaps)]
    found = {entry.head: entry for entry in standings(rows)}["film"]
    assert found.difference == pytest.approx(0.02)
    reach = 4.302653 * 0.01 / 3**0.5  # t(0.975, 2 degrees of freedom), standard deviation 0.01
    assert (found.low, found.high) == (pytest.approx(0.02 - reach, abs=1e-6), pytest.approx(0.02 + reach, abs=1e-6))


def test_the_best_dense_is_the_reference_and_own_vocabularies_are_held_by_bits():
    rows = [
        row("dense", 3.0, options="bias=false"),
        row("dense", 2.8, options="bias=true", bits=1.2),
        row("dense", 1.0, options="bias=true bpe=4096", bits=1.3),
    ]
    found = {entry.head: entry for entry in standings(rows)}
    assert found["dense bias=false"].difference == pytest.approx(0.2)
    assert found["dense bias=true bpe=4096"].difference == pytest.approx(0.1)


def test_two_runs_are_compared_on_a_text_that_both_were_judged_on():
    rows = [row("dense", 3.0, report=3.3), row("dense", 2.5, options="bias=true"), row("film", 3.1)]
    rows += [row("grouped", 3.2, report=3.4), row("grouped", 3.3, seed=1)]
    rows.append(row("dense", 3.05, report=3.31, seed=1))
    found = {entry.head: entry for entry in standings(rows)}
    assert (found["dense"].difference, found["dense"].on_report) == (0.0, True)  # before one that was not judged
    assert (found["film"].difference, found["film"].on_report) == (pytest.approx(0.1), False)
    assert found["film"].loss == 3.1
    assert found["grouped"].difference == pytest.approx((0.2 + 0.25) / 2)  # one of its seeds was not
    assert not found["grouped"].on_report


def test_the_reference_is_a_head_without_counts():
    rows = [row("dense", 3.0), row("dense", 2.6, options="prior=kneser_ney"), row("film", 3.1)]
    found = {entry.head: entry.difference for entry in standings(rows)}
    assert found == {name: pytest.approx(gap) for name, gap in zip(found, (-0.4, 0.0, 0.1), strict=True)}


def test_a_leaderboard_of_one_own_vocabulary_has_differences_in_nats():
    rows = [row("dense", 3.0, options="bias=true bpe=512"), row("film", 3.1, options="bpe=512")]
    film = {entry.settings["name"]: entry for entry in standings(rows)}["film"]
    assert (film.difference, film.unit) == (pytest.approx(0.1), "loss_nats")
    others = [row("dense", 3.0), row("film", 1.1, options="tokenizer=bytes", bits=1.5)]
    film = {entry.settings["name"]: entry for entry in standings(others)}["film"]
    assert (film.difference, film.unit) == (pytest.approx(0.5), "bits_per_byte")


def test_other_bodies_and_batches_are_other_runs(tmp_path):
    rows = [row("dense", 3.0) | {"body": body, "tokens": n} for body in ("gpt2", "gpt_neo") for n in ("100", "200")]
    assert len(merge_rows(tmp_path / "leaderboard.csv", rows)) == 4


def test_the_trend_is_that_of_shared_steps():
    rows = [row("dense", 3, curve="100:4.0 200:3.5 400:3.0"), row("film", 3, curve="100:4.1 400:3.3")]
    film = {entry.head: entry for entry in standings(rows)}["film"]
    assert film.trend == [(0.25, pytest.approx(0.1)), (1.0, pytest.approx(0.3))]


def test_names_have_what_tells_heads_apart():
    rows = [
        row("adaptive", 3.0, options="cutoffs=[200, 1000] div_value=4.0"),
        row("shortlist", 3.1, options="directions=0 tied=True shortlist_size=256") | {"grouping": "brown"},
        row("shortlist", 3.2, options="directions=4 tied=false shortlist_size=256") | {"grouping": "merge_rank"},
    ]
    rows += [row("dense", 3.3 + n / 10, options="chunk_rows=256 bias=true") | {"seed": str(n)} for n in range(2)]
    rows += [row("low_rank", 4.0 + rank / 1e3, options=f"rank={rank} bias={rank > 64}") for rank in (16, 32, 64, 128)]
    names = list(short_names(standings(rows)).values())
    assert names[:3] == ["adaptive", "shortlist directions=0 tied brown", "shortlist directions=4 no tied merge_rank"]
    assert names[3:] == ["dense", "low_rank rank=16", "low_rank rank=32", "low_rank rank=64", "low_rank rank=128 bias"]


def test_one_spelling_of_a_setting_in_all_names():
    rows = [
        row("dense", 3.0, options="bias=True chunk_rows=256"),
        row("dense", 3.1, options="bias=True chunk_rows=256 start=counts"),
        row("dense", 3.2, options="bias=False chunk_rows=256"),
        row("trim", 3.3, options="bias=True"),
        row("trim", 3.4, options="bias=False"),
    ]
    names = short_names(standings(rows)).values()
    assert len(set(names)) == 5
    assert not [name for name in names if "=True" in name or "=False" in name]
    assert {"trim bias", "trim no bias"} <= set(names)


def test_the_picture_names_who_is_too_far_to_be_drawn(tmp_path):
    rows = [row("dense", 3, curve="100:4.0 200:3.0"), row("film", 3.1, curve="100:4.1 200:3.1")]
    rows.append(row("grouped", 4, curve="100:5.0 200:4.0"))
    assert write_leaderboard_plot("here", standings(rows[:1]), "dense", tmp_path / "none") == []
    svg, png = write_leaderboard_plot("here", standings(rows), "dense", tmp_path / "plot")
    text = svg.read_text()
    assert "here; outside the frame: grouped +1.00" in text
    assert "film" in text
    assert png.stat().st_size > 10_000


def test_a_crowded_picture_has_the_best_of_every_head(tmp_path):
    rows = [row("dense", 3, curve="100:4.0 200:3.0")]
    rows += [row("film", 3 + i / 100, options=f"rank={i}", curve=f"100:4.1 200:{3 + i / 100}") for i in range(1, 20)]
    rows.append(row("low_rank", 3.3, curve="100:4.1 200:3.3"))
    svg, _ = write_leaderboard_plot("here", standings(rows), "dense", tmp_path / "plot")
    text = svg.read_text()
    assert "here; 7 more are in the table" in text
    assert "film rank=12" in text
    assert "film rank=13" not in text
    assert "low_rank" in text


def test_the_same_run_replaces_its_row(tmp_path):
    path = tmp_path / "leaderboard.csv"
    base = dict.fromkeys(KEY, "x") | {"tokens": "7"}
    merge_rows(path, [base | {"seed": 0, "val_loss_nats": 3.0}, base | {"seed": 1, "val_loss_nats": 3.5}])
    merged = merge_rows(path, [base | {"seed": 1, "val_loss_nats": 2.5}])
    assert [entry["val_loss_nats"] for entry in merged] == ["3", "2.5"]
    assert list(csv.DictReader(path.open())) == merged


def test_runs_of_a_sweep(gvc, tiny, texts, workdir):
    heads = "head.chunk_rows=null,16"
    words = ["train", "-m", *tiny, "head=dense", heads, "train.eval_every_steps=4", "tracking=none"]
    assert gvc(*words, "hydra.sweep.dir=runs").code == 0
    judged = ["leaderboard", "runs", "--report", texts["train"], "--data", "small", "--csv", "leaderboard.csv"]
    out = gvc(*judged, "--plots", "pictures")
    assert out.code == 0
    first, second = csv.DictReader((workdir / "leaderboard.csv").open())
    assert first["data"] == "small"
    assert first["tokens"] == "1024"
    assert [point.split(":")[0] for point in first["curve"].split()] == ["4", "8"]
    assert first["report_loss_nats"] != first["val_loss_nats"]
    assert float(first["report_loss_nats"]) == pytest.approx(float(second["report_loss_nats"]), abs=1e-4)
    assert "small, gpt2 of width 32" in out.out
    assert "leaderboard.csv" in out.out
    before = (workdir / "leaderboard.csv").read_text()
    assert "small, gpt2" not in gvc("leaderboard", "runs").out  # looking at runs keeps nothing
    assert [path.name for path in workdir.rglob("*.csv")] == ["leaderboard.csv"]
    assert (workdir / "leaderboard.csv").read_text() == before
    assert len(list((workdir / "pictures").glob("leaderboard-small-*.svg"))) == 1
    assert gvc("leaderboard", "runs", "--report", "no.txt").code == 3
    other = workdir / "other" / Path(texts["train"]).name
    other.parent.mkdir()
    other.write_text(Path(texts["valid"]).read_text())  # another text by the same name
    assert gvc("leaderboard", "runs", "--report", str(other), "--data", "small", "--csv", "leaderboard.csv").code == 0
    again = next(csv.DictReader((workdir / "leaderboard.csv").open()))
    assert float(again["report_loss_nats"]) == pytest.approx(float(again["val_loss_nats"]), abs=1e-4)


def test_runs_on_other_texts_are_not_merged(gvc, tiny, texts, workdir):
    other = workdir / "other.txt"
    other.write_text(Path(texts["valid"]).read_text() * 2)
    cases = {"a": ["head=dense"], "valid": ["head=dense", f"data.valid={other}"], "b": ["head=class_full"]}
    cases["limit"] = ["head=class_full", "data.max_valid_tokens=500"]
    for name, words in cases.items():
        assert gvc("train", *tiny, "train.max_steps=2", *words, f"hydra.run.dir=runs/{name}").code == 0
    refused = gvc("leaderboard", "runs/a", "runs/valid", "--csv", "lb.csv")
    assert (refused.code, refused.out, len(refused.err.splitlines())) == (2, "", 1)
    assert f"runs/a and runs/valid have different texts under one name (data.valid {other} (" in refused.err
    assert refused.err.endswith("): rank the runs of each text alone, and give --data NAME for each\n")
    limited = gvc("leaderboard", "runs/a", "runs/limit")  # another head on a part of the text
    assert limited.code == 2
    assert "(data.max_valid_tokens None -> 500)" in limited.err
    assert not (workdir / "lb.csv").exists()
    assert gvc("leaderboard", "runs/a", "runs/b").code == 0
    for name in ("a", "valid"):
        assert gvc("leaderboard", f"runs/{name}", "--data", name, "--csv", "lb.csv").code == 0
    assert [own["data"] for own in csv.DictReader((workdir / "lb.csv").open())] == ["a", "valid"]


def test_runs_with_other_tokenizer_files_are_not_merged(tmp_path):
    runs = []
    for number, sha256 in enumerate(("1f", "1f", "2e")):
        run = tmp_path / str(number)
        run.mkdir()
        (run / "config.json").write_text(json.dumps(config_to_dict(Config(head=DenseConfig()))))
        file = {"source": "text", "files": [{"path": "/t.json", "bytes": 3, "sha256": sha256}], "text_field": None}
        (run / "inputs.json").write_text(json.dumps({"tokenizer.file": file}))
        runs.append((row("dense", 3.0), run))
    refuse_mixed_texts(runs[:2], KEY)
    with pytest.raises(ConfigError, match=r"\(tokenizer.file /t.json \(3 bytes as before, sha256 1f -> 2e\)\)"):
        refuse_mixed_texts(runs, KEY)
    (tmp_path / "2" / "inputs.json").unlink()  # its text is not known
    refuse_mixed_texts(runs, KEY)


@pytest.mark.parametrize("name", ["equal-tokens", "equal-time"])
def test_a_contest_of_today_names_its_rows_as_the_committed_one_did(name):
    path = Path(__file__).parents[2] / "runs" / "results" / f"{name}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = {(own["options"], own["n_embd"], own["n_layer"]): own for own in csv.DictReader(file)}
    with composing(HydraFlags()) as compose_with:
        for own in rows.values():
            _, _, sweep, *words = shlex.split(own["command"])
            assert leaderboard.options_of(to_config(compose_with([f"sweep={sweep}", *words]))) == own["options"]


def test_a_run_that_was_repeated_is_no_second_seed(monkeypatch):
    runs = [row("dense", 3.0), row("dense", 3.1), row("dense", 2.9, seed=1)]
    monkeypatch.setattr(
        leaderboard,
        "collect_runs",
        lambda folders: [own | {"state": "complete", "run": "x", "val/loss": 3.0} for own in runs],
    )
    monkeypatch.setattr(leaderboard, "_row_of", lambda own, data: dict(own))
    assert [own["val_loss_nats"] for own in leaderboard.leaderboard_rows([], None)[0]] == ["3.1", "2.9"]


def test_a_file_of_fewer_columns_is_read(gvc, tmp_path):
    path = tmp_path / "leaderboard.csv"
    path.write_text("head,seed,val_loss_nats\ndense,0,3.5\n")
    merged = merge_rows(path, [row("grouped", 3.6)])
    assert {entry["head"]: entry["report_loss_nats"] for entry in merged} == {"dense": "", "grouped": ""}
    out = gvc("leaderboard", "--csv", str(path), "--plots", str(tmp_path / "plots"))
    assert out.code == 0
    assert "3.5000" in out.out
    assert "nan" not in out.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("date,note\n2026,mine\n", "is no leaderboard: it has no column head, seed, val_loss_nats"),
        ("head;seed;val_loss_nats\ndense;0;3\n", "is no leaderboard"),
        ("head,seed,val_loss_nats,tokens\ndense,0,3.5,7\nfilm,1,many,7\n", "row 3 is damaged"),
        ("head,seed,val_loss_nats\ndense,0,\n", "row 2 is damaged"),
        ("head,seed,val_loss_nats,curve\ndense,0,3.5,100:4\nfilm,1\n", "row 3 is damaged"),
        ("", "is no leaderboard"),
    ],
)
def test_what_is_no_leaderboard_is_left_as_it_is(tmp_path, text, message):
    path = tmp_path / "notes.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        merge_rows(path, [row("grouped", 3.6)])
    assert path.read_text() == text


def test_looking_writes_nothing_and_no_run_is_said(gvc, workdir):
    path = workdir / "leaderboard.csv"
    merge_rows(path, [row("dense", 3.5) | dict.fromkeys(("data", "n_embd", "n_layer", "steps"), "1")])
    before = path.stat().st_mtime_ns
    path.with_suffix(".lock").unlink()
    assert "3.5" in gvc("leaderboard", "--csv", str(path)).out
    assert (path.stat().st_mtime_ns, list(workdir.iterdir())) == (before, [path])
    (workdir / "empty").mkdir()
    assert gvc("leaderboard", "empty", "--csv", str(path)).code == 3
    assert "there are dense" in gvc("leaderboard", "--csv", str(path), "--reference", "Dense").err
    assert "name their folders" in gvc("leaderboard", "--csv", str(path), "--report", "x.txt").err


def test_a_run_keeps_what_it_was_judged_by(tmp_path):
    path = tmp_path / "leaderboard.csv"
    merge_rows(path, [row("dense", 3.5, report=3.7)])
    assert merge_rows(path, [row("dense", 3.5)])[0]["report_loss_nats"] == "3.7"
    assert merge_rows(path, [row("dense", 3.4)])[0]["report_loss_nats"] == ""  # trained anew


def contest_rows() -> list[dict]:
    """Rows of two budgets: dense and shortlist with two bodies each, and an own vocabulary."""
    rows = []
    for minutes in ("10", "60"):
        base = {"data": "stories", "body": "gpt2", "steps": "7", "contest": "equal-time", "minutes": minutes}
        base |= {
            "threads": "1",
            "machine": "a CPU",
            "epochs": "0.5",
            "curve": "4:3.5 7:3.0",
            "command": "gvc sweep equal-time",
        }
        for head, width, loss, bits in (
            ("dense", "128", 3.0, 1.0),
            ("dense", "256", 3.2, 1.1),
            ("trim", "128", 2.95, 0.98),
            ("shortlist", "256", 2.7, 0.9),
        ):
            rows.append(row(head, loss, bits=bits) | base | {"n_embd": width, "n_layer": "3"})
    return rows


def test_at_equal_time_each_head_has_its_best_body_and_the_reference_is_the_best_full_softmax(tmp_path):
    rows = merge_rows(tmp_path / "equal-time.csv", contest_rows())
    ten, sixty = places(rows)
    assert ten.title == "stories, 10 minutes on 1 core (a CPU), each head with its best body"
    assert (sixty.timed, sixty.reference) == (True, "dense,trim")
    found = {entry.head: entry for entry in standings(ten.rows, ten.reference, ten.choice, {}, ten.timed)}
    assert [entry.rows[0]["n_embd"] for entry in found.values()] == ["256", "128", "128"]
    gaps = {head: (entry.difference, entry.unit) for head, entry in found.items()}
    assert gaps["shortlist"] == (pytest.approx(0.9 - 0.98), "bits_per_byte")
    assert gaps["trim"] == (0.0, "bits_per_byte")
    drawn = write_minutes_plots([(place, list(found.values())) for place in (ten, sixty)], tmp_path)
    assert [path.name for path in drawn] == ["minutes-stories-1.svg", "minutes-stories-1.png"]
    assert "minutes of training steps" in drawn[0].read_text()


def test_intervals_over_documents_are_computed_from_the_file_beside_the_csv(tmp_path):
    path, random = tmp_path / "equal-tokens.csv", np.random.default_rng(0)
    tokens, size = random.integers(50, 300, 200), random.integers(200, 900, 200)
    gaps = random.normal(0.05, 0.1, 200)
    rows = [row(head, 3.0, seed=seed, report=3.0) for head in ("dense", "film") for seed in (0, 1)]
    losses = {}
    for own in rows:
        nats = 3.0 * tokens + (gaps * tokens if own["head"] == "film" else 0)
        key = tuple(leaderboard.text_row(own, KEY).values())
        losses[key] = DocumentLosses(nats, tokens, size)
    merge_documents(path, losses)
    merge_documents(path, losses)  # again, and nothing is twice
    values = json.loads(path.with_name("equal-tokens-documents.json").read_text())
    assert (len(values["texts"]), len(values["rows"])) == (1, 4)
    found = {entry.head: entry for entry in standings(rows, losses=read_documents(path))}
    low, high = found["film"].documents
    weighted = (gaps * tokens).sum() / tokens.sum()
    error = np.sqrt((((gaps - weighted) * tokens) ** 2).sum()) / tokens.sum()
    assert (low, high) == pytest.approx((weighted - 1.96 * error, weighted + 1.96 * error), abs=2e-3)
    assert found["dense"].documents is None
    path.with_name("equal-tokens-documents.json").write_text('{"rows": {"a": 1}}')
    with pytest.raises(DataError, match="is damaged"):
        read_documents(path)
    path.with_name("equal-tokens-documents.json").write_text('{"rows": {')
    with pytest.raises(DataError, match="is damaged"):
        merge_documents(path, losses)  # what it had is not replaced


def test_intervals_over_documents_are_of_the_seeds_of_the_difference():
    rows = [row(head, 3.0 + seed, seed=seed, report=3.0 + seed) for head in ("dense", "film") for seed in (0, 1)]
    losses = {}
    for own in rows[1:]:  # those of dense with seed 0 are not known
        nats = np.full(20, 10.0 * (3 + int(own["seed"])))
        losses[tuple(leaderboard.text_row(own, KEY).values())] = DocumentLosses(nats, np.full(20, 10), np.full(20, 40))
    film = {entry.head: entry for entry in standings(rows, losses=losses)}["film"]
    assert film.difference == 0.0
    assert film.documents == (0.0, 0.0)


def test_losses_on_two_report_texts_are_not_compared():
    rows = [row("dense", 3.0, report=3.3), row("film", 3.2, report=2.5) | {"report_text": "other.txt 4567cdef"}]
    film = {entry.head: entry for entry in standings(rows)}["film"]
    assert (film.difference, film.on_report) == (pytest.approx(0.2), False)


def test_one_seed_of_two_contests_is_one_seed():
    gaps = (0.004, 0.007, 0.013)
    rows = [row("dense", 3 + seed, seed=seed) for seed in range(3)]
    rows += [row("film", 3 + seed + gap, seed=seed) for seed, gap in enumerate(gaps)]
    once = {entry.head: entry for entry in standings(rows)}["film"]
    twice = [own | {"contest": name} for own in rows for name in ("ideas", "equal-tokens")]
    found = {entry.head: entry for entry in standings(twice)}["film"]
    assert (found.seeds, found.low, found.high) == (3, once.low, once.high)


def test_the_reference_is_chosen_by_the_validation_text():
    rows = [row("dense", 3.0, report=3.2), row("trim", 3.05, report=3.1)]
    found = {entry.head: entry.difference for entry in standings(rows, "dense,trim")}
    assert found == {"dense": 0.0, "trim": pytest.approx(-0.1)}


def test_two_machines_are_two_places_at_equal_time():
    rows = [own | {"machine": machine} for own in contest_rows() for machine in ("slow", "fast")]
    found = [place for place in places(rows) if place.timed]
    assert len(found) == 4
    assert len({place.name for place in found}) == 4
    assert all(len({own["machine"] for own in place.rows}) == 1 for place in found)


def test_runs_that_differ_in_the_optimizer_are_two_rows(gvc, tiny, texts):
    for name, words in {"plain": [], "ema": ["optim.ema=0.9"], "gate": ["prior=kneser_ney"]}.items():
        assert gvc("train", *tiny, "head=dense", "tracking=none", f"hydra.run.dir=runs/{name}", *words).code == 0
    rows, _ = leaderboard.leaderboard_rows([Path("runs")], None)
    options = {own["options"].replace("bias=False chunk_rows=256 ", "") for own in rows}
    assert len(rows) == len(options) == 3
    assert sum("optim.ema=0.9" in own for own in options) == 1
    names = short_names(standings([leaderboard.text_row(own) for own in rows])).values()
    assert len(set(names)) == 3


def test_a_kept_figure_keeps_its_text(tmp_path):
    path = tmp_path / "leaderboard.csv"
    merge_rows(path, [row("dense", 3.0, report=3.1)])
    (kept,) = merge_rows(path, [row("dense", 3.0)])
    assert (kept["report_loss_nats"], kept["report_text"]) == ("3.1", "report.txt 0123abcd")


def test_a_row_on_another_report_text_is_not_replaced(tmp_path):
    path = tmp_path / "leaderboard.csv"
    (before,) = merge_rows(path, [row("dense", 3.0, report=3.1)])
    other = {"report_text": "report.txt 4567abcd"}
    with pytest.raises(ConfigError, match=r"report.txt 0123abcd, got report.txt 4567abcd: give --data NAME"):
        merge_rows(path, [row("dense", 3.5, report=3.6) | other])
    assert read_rows(path) == [before]
    (again,) = merge_rows(path, [row("dense", 3.0, report=3.6) | other])  # the same run, measured on another text
    assert again["report_text"] == "report.txt 4567abcd"


def test_on_par_is_a_verdict_over_seeds():
    rows = [row("dense", 3.0, seed=seed) for seed in range(3)]
    rows += [row("film", 3.0 + gap, seed=seed) for seed, gap in enumerate((0.001, 0.002, 0.003))]
    rows += [row("trim", 3.0 + gap, seed=seed) for seed, gap in enumerate((0.101, 0.102, 0.103))]
    verdicts = {entry.head: entry.verdict for entry in standings(rows)}
    assert verdicts == {"dense": "not shown", "film": "on par", "trim": "not on par"}


def test_the_losses_of_a_contest_are_drawn_against_tokens(tmp_path):
    rows = [row("dense", 3, curve="100:4.0 200:3.0"), row("film", 3.1, curve="100:4.1 200:3.1")]
    rows.append(row("dense", 1.5, curve="100:2.0 200:1.5", options="bpe=512"))
    rows = [own | dict.fromkeys(("data", "body", "n_embd", "n_layer", "steps"), "1") for own in rows]
    (place,) = places([own | {"contest": "equal-tokens"} for own in rows])
    found = standings(place.rows, place.reference, place.choice)
    drawn = write_place_plots(place, found, place.reference, tmp_path)
    assert {path.stem.split("-")[0] for path in drawn} == {"leaderboard", "tokens"}
