"""`gvc config` explains every group, choice and key, from the schema."""

import pytest
from grouped_lm.cli.compose.compose import config_groups
from grouped_lm.cli.options import GROUPS

from grouped_lm.runs.schema import list_keys, list_parts


def test_case_24_config_lists_groups_and_choices(gvc):
    out = gvc("config").out
    assert "head=shortlist\n    or adaptive, class_full, dense" in out
    assert all(group in out and all(choice in out for choice in choices) for group, choices in config_groups().items())
    assert "Keys without a group: name, seed, init_from, eval.*, judge.*, train.*." in out


def test_case_24_config_explains_a_key(gvc):
    assert gvc("config", "train.max_steps").out.splitlines() == [
        "train.max_steps: Optimizer steps.",
        "  type     int",
        "  default  300",
        "  unit     steps",
        "  allowed  [1, 1e+09]",
        "  change   in a new run only: it decides what a run computes",
    ]
    assert "  change   at any time\n" in gvc("config", "train.mirror").out
    lr = gvc("config", "optim.lr").out
    assert lr.startswith("optim.lr (optim=adamw, optim=muon): Peak learning rate.\n")
    assert "  allowed  (0, 1e+09]\n" in lr
    assert gvc("config", "head.tied").out.count("head.tied (head=") == 3  # other words in other heads


def test_case_24_config_explains_a_choice_and_a_part(gvc):
    out = gvc("config", "head=shortlist", "grouping=brown", "experiment=main_job").out
    assert "head.shortlist_size=null  [0, 1e+09] tokens\n    Tokens K outside the groups" in out
    assert "It has no options." in out
    assert "  max_steps: 400\n" in out
    assert "data.hub_id=Salesforce/wikitext\n" in gvc("config", "data=wikitext").out
    assert "head=dense\n    " in gvc("config", "head").out
    assert "train.dtype=float32  one of float32, bfloat16" in gvc("config", "train").out


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("optim.learning_rate", "optim.learning_rate is no group and no key; did you mean optim.lr?"),
        ("train.max_stpes", "train.max_stpes is no group and no key; did you mean train.max_steps?"),
        ("haed", "haed is no group and no key; did you mean head?"),
        ("head=shrtlist", "head=shrtlist is not known; did you mean shortlist?; there are adaptive, class_full"),
    ],
)
def test_case_24_config_suggests_a_near_name(gvc, word, line):
    outcome = gvc("config", word)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"gvc: error: {line}")


def test_case_24_config_knows_choices_of_ones_own(gvc, workdir):
    (workdir / "own" / "head").mkdir(parents=True)
    (workdir / "own" / "head" / "mine.yaml").write_text("# My head.\nname: grouped\ngroup_size: 100\n")
    out = gvc("config", "head=mine", "--config-dir", "own").out
    assert out.startswith("head=mine: My head.\n")
    assert "head.group_size=100  [1, 1e+09] slots\n" in out


def test_case_24_config_every_key_has_a_meaning():
    lacking = [key.path for part in list_parts() for key in list_keys(part) if not key.meaning]
    assert lacking == []


def test_case_24_config_numbers_of_train_and_head_have_ranges():
    keys = [key for part in list_parts() if part.path in ("train", "head", "model", "optim") for key in list_keys(part)]
    assert [key.path for key in keys if key.kind in ("int", "float", "int or null") and not key.limits] == []


def test_a_shell_completes_every_group_of_a_run():
    assert set(GROUPS) == set(config_groups()) - {"bench", "sweep"}
