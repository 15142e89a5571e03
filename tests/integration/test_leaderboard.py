"""The leaderboard: rows of runs, judged on another text, and differences to the best dense."""

import csv
from pathlib import Path

import pytest

from grouped_lm.errors import DataError
from grouped_lm.report import leaderboard
from grouped_lm.report.leaderboard import KEY, merge_rows, short_names, standings
from grouped_lm.report.leaderboard_plot import write_leaderboard_plot


def row(head, loss, *, seed=0, lr="0.001", options="", report=None, curve="", bits=1.0):
    own = {"head": head, "options": options, "seed": str(seed), "lr": lr, "grouping": "", "group_size": ""}
    own["tokens"] = "2048"
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


def test_a_run_that_was_repeated_is_no_second_seed(monkeypatch):
    runs = [row("dense", 3.0), row("dense", 3.1), row("dense", 2.9, seed=1)]
    monkeypatch.setattr(leaderboard, "collect_runs", lambda folders: [own | {"state": "complete"} for own in runs])
    monkeypatch.setattr(leaderboard, "_row_of", lambda own, report, data: own)
    assert [own["val_loss_nats"] for own in leaderboard.leaderboard_rows([], None)] == ["3.1", "2.9"]


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
