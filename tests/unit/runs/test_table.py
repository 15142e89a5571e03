"""One row per run folder: a folder that cannot be read never hides the others."""

import json

import pytest

from grouped_lm.config import Config, config_to_dict
from grouped_lm.heads import GroupedConfig
from grouped_lm.runs.table import LABELS, collect_runs, run_labels


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
