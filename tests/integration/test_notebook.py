"""The notebook for Colab: its cells run, on the CPU and with few steps."""

import json
import math
import re
import shlex
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "colab.ipynb"
SMALL = {
    "MINUTES": 0.005,
    "TRIAL_STEPS": 20,
    "MODEL": "debug",
    "BATCH": 2,
    "DATA": "tinytales data.num_train_stories=200 data.num_valid_stories=10 tokenizer=bpe tokenizer.vocab_size=1000",
}
"""What replaces the cell with the tag `parameters`."""


def code_cells() -> list[dict]:
    """Return the cells with code but that of the installation, with `!gvc ...` as a call of `run_gvc`."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    found = [cell | {"source": "".join(cell["source"])} for cell in cells if "%pip" not in "".join(cell["source"])]
    for cell in found:
        cell["source"] = re.sub(r"^( *)!gvc (.*)$", r"\1run_gvc(f'''\2''')", cell["source"], flags=re.MULTILINE)
    return found


@pytest.fixture
def names(gvc, monkeypatch) -> dict:
    """The names that the notebook's cells share; `printed` holds what each command printed."""
    printed: dict[str, str] = {}

    def run_gvc(line: str) -> None:
        done = gvc(*shlex.split(line))
        assert done.code == 0, f"gvc {line}: {done.err}"
        printed[line] = done.out

    monkeypatch.setenv("MPLBACKEND", "Agg")
    return {"run_gvc": run_gvc, "printed": printed}


def test_the_cells_run_and_plot_one_curve_per_head(names):
    cells = code_cells()
    assert any("parameters" in cell["metadata"].get("tags", []) for cell in cells)
    for cell in cells:
        exec(compile(cell["source"], f"cell {cell['id']}", "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            assert set(SMALL) <= set(names)
            names |= SMALL
    figure = names["plt"].gcf()
    lines = figure.axes[0].lines
    assert [line.get_label().split(":")[0] for line in lines] == list(names["HEADS"])
    assert all(len(line.get_ydata()) > 1 and all(map(math.isfinite, line.get_ydata())) for line in lines)
    names["plt"].close(figure)
    table, *stories = [printed for line, printed in names["printed"].items() if not line.startswith(("plan", "train"))]
    assert "dense" in table
    assert "shortlist" in table
    assert all(story.startswith("Once upon a time") for story in stories)


def test_the_notebook_is_stored_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
