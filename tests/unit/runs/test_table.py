"""One row per run folder: a folder that cannot be read never hides the others."""

import json
from pathlib import Path

import pytest

from grouped_lm.config import Config, config_to_dict
from grouped_lm.data.sources.text_files import TextConfig
from grouped_lm.errors import RunFolderError
from grouped_lm.heads import DenseConfig, GroupedConfig
from grouped_lm.runs.table import LABELS, TAIL_BYTES, collect_runs, last_metrics, run_labels


@pytest.mark.parametrize(
    ("changes", "state", "reason"),
    [
        ({"schema_version": None}, "other version", "has schema version 1, this gvc reads 2"),
        ({"seed": "many"}, "damaged", "seed"),
    ],
)
def test_a_folder_that_cannot_be_read_is_a_row_beside_the_others(tmp_path, changes, state, reason):
    values = config_to_dict(Config(head=GroupedConfig()))
    for name, own in (("bad", values | changes), ("good", values)):
        (tmp_path / name).mkdir()
        text = json.dumps({key: value for key, value in own.items() if value is not None})
        (tmp_path / name / "config.json").write_text(text)
    bad, good = collect_runs([tmp_path])
    assert (bad["state"], good["state"], good["head"]) == (state, "unfinished", "grouped")
    assert reason in bad["reason"]
    assert [bad[key] for key in LABELS] == [None] * len(LABELS)


def test_the_labels_of_a_run_are_the_columns_of_every_row():
    assert tuple(run_labels(Config(head=GroupedConfig()))) == LABELS


def write_run(path: Path, head=None, place=None, sha256=None, speed=10.0, **data) -> Path:
    """Write the folder of a complete run on the text with a hash, on the machine `place`."""
    path.mkdir(parents=True)
    own = TextConfig(name="text", **{"train": "t.txt", "valid": "v.txt"} | data)
    config = Config(head=head or DenseConfig(), data=own)
    result = {"state": "complete", "val/loss": 4.0, "throughput/tokens_per_sec": speed, "memory/peak_tensor_gib": 1.0}
    files = {"config": config_to_dict(config), "result": result, "environment": place or {}}
    if sha256 is not None:
        source = {"source": "text", "text_field": None}
        for split in ("train", "valid"):
            described = source | {"files": [{"path": f"/{path.name}/{split}", "bytes": 9, "sha256": sha256}]}
            files.setdefault("inputs", {})[f"data.{split}"] = described
    for name, values in files.items():
        (path / f"{name}.json").write_text(json.dumps(values))
    return path


def test_one_text_is_one_content_whatever_its_path(tmp_path):
    write_run(tmp_path / "a", sha256="1f")
    write_run(tmp_path / "b", GroupedConfig(), sha256="1f", speed=20.0, train="/x/t.txt", valid="/x/v.txt")
    write_run(tmp_path / "c", GroupedConfig(), sha256="2e", speed=20.0)  # the files of a, rewritten
    write_run(tmp_path / "d", sha256="1f", max_valid_tokens=5)
    write_run(tmp_path / "e")  # its inputs are not known
    write_run(tmp_path / "f")
    a, b, c, d, e, f = (row["text"] for row in collect_runs([tmp_path]))
    assert a == b
    assert e == f
    assert len({a, c, d, e}) == 4
    ratios = {Path(row["run"]).name: row.get("throughput/vs_dense") for row in collect_runs([tmp_path])}
    assert (ratios["b"], ratios["c"]) == (2.0, None)


@pytest.mark.parametrize(
    ("change", "ratio"),
    [({}, 2.0), ({"cpu": "two"}, None), ({"cpu_count": 64}, None), ({"threads": 4}, None)],
)
def test_speeds_of_two_machines_have_no_ratio(tmp_path, change, ratio):
    place = {"cpu": "one", "cpu_count": 2, "threads": 1, "device": "cpu", "gpu": None}
    write_run(tmp_path / "dense", place=place)
    write_run(tmp_path / "grouped", GroupedConfig(), place=place | change, speed=20.0)
    assert collect_runs([tmp_path])[1].get("throughput/vs_dense") == ratio
    for name in ("dense", "grouped"):  # on a GPU the CPU beside it does not count
        own = json.loads((tmp_path / name / "environment.json").read_text())
        (tmp_path / name / "environment.json").write_text(json.dumps(own | {"gpu": "H200"}))
    assert collect_runs([tmp_path])[1].get("throughput/vs_dense") == 2.0


@pytest.mark.parametrize("left", ["metrics.jsonl", "result.json", "checkpoints"])
def test_a_run_with_a_config_that_cannot_be_read_is_damaged(tmp_path, left):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text('{"model": {')
    with pytest.raises(RunFolderError, match="no run in"):
        collect_runs([tmp_path])
    (folder / left).mkdir() if left == "checkpoints" else (folder / left).write_text("{}")
    (row,) = collect_runs([tmp_path])
    assert (row["state"], row["run"]) == ("damaged", str(folder))
    assert "no readable config.json" in row["reason"]


@pytest.mark.parametrize("rows", [100, 2_000, 40_000])
def test_the_last_validation_is_found_however_old_it_is(tmp_path, rows):
    metrics = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"trainer/step": step, "train/loss": 5.0, "train/lr": 0.001}) for step in range(rows)]
    lines.insert(2, json.dumps({"trainer/step": 2, "val/loss": 4.5, "val/perplexity": 90.0}))
    lines.insert(1, json.dumps({"trainer/step": 1, "val/loss": 4.9, "val/perplexity": 99.0}))
    metrics.write_text("\n".join(lines) + '\n{"trainer/step": 9999')
    assert rows == 100 or metrics.stat().st_size > TAIL_BYTES
    found = last_metrics(tmp_path)
    assert (found["val/loss"], found["val/perplexity"], found["trainer/step"]) == (4.5, 90.0, rows - 1)


def test_a_validation_on_the_border_of_a_block_is_found(tmp_path):
    validation, row = json.dumps({"trainer/step": 1, "val/loss": 4.5}) + "\n", json.dumps({"trainer/step": 2}) + "\n"
    for inside in range(0, len(validation) + 2, 7):  # so many bytes of it are in the last block
        fill = (TAIL_BYTES - inside) // len(row) * row
        last = fill + " " * (TAIL_BYTES - inside - len(fill) - 1) + "\n"
        (tmp_path / "metrics.jsonl").write_text(row * 9_000 + validation + last)
        assert last_metrics(tmp_path) == {"trainer/step": 2, "val/loss": 4.5}


def test_a_run_without_a_validation_has_its_last_rows(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"trainer/step": n}) + "\n" for n in range(9_000)))
    assert last_metrics(tmp_path) == {"trainer/step": 8_999}
