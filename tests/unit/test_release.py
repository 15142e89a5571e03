"""The version is the same in every file that names it."""

import re
import tomllib
from pathlib import Path

import yaml

import grouped_lm

ROOT = Path(__file__).parents[2]


def test_version_and_date_agree_in_all_files():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    latest = re.search(r"^## \[(.+)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert project["version"] == grouped_lm.__version__ == citation["version"] == latest[1]
    assert citation["date-released"] == latest[2]
