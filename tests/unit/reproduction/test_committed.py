"""The committed results of `make reproduce-paper SCALE=cpu`: docs/paper.md and the report agree with the figures."""

import shutil
from pathlib import Path

import pytest

from grouped_lm.reproduction.evidence import DATA, read_csv
from grouped_lm.reproduction.page import write_report
from grouped_lm.reproduction.report import StaleTableError, check_table
from grouped_lm.system.tables import csv_text

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "runs" / "results" / "cpu"


def test_docs_have_the_verdicts_of_the_figures():
    check_table(ROOT / "docs" / "paper.md", [RESULTS])


def test_another_figure_is_noticed(tmp_path):
    shutil.copytree(RESULTS / DATA, tmp_path / DATA)
    rows = read_csv(tmp_path / DATA / "order.csv")
    (tmp_path / DATA / "order.csv").write_text(csv_text([row | {"rank_correlation": 0.987} for row in rows]))
    with pytest.raises(StaleTableError):
        check_table(ROOT / "docs" / "paper.md", [tmp_path])


def test_the_page_of_the_figures_is_the_committed_one(tmp_path):
    said: list[str] = []
    write_report([RESULTS], tmp_path, said.append)
    for path in [RESULTS / "report.md", *(RESULTS / "tables").iterdir(), *(RESULTS / DATA).iterdir()]:
        assert (tmp_path / path.relative_to(RESULTS)).read_text() == path.read_text(), path.name
    assert not said
