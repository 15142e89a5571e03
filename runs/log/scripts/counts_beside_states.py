"""Write the complete runs with counts beside their networks to runs/results/counts-beside-states.csv.

    python runs/log/scripts/counts_beside_states.py RUNS

The name of a run begins with that of its text: stories, books8m (counted and trained on the same 8.4 million tokens of
books), books (counted on all of them), wide (seven languages).
"""

import csv
import sys
from pathlib import Path

from grouped_lm.runs.folder import COMPLETE
from grouped_lm.runs.table import collect_runs
from grouped_lm.system.tables import csv_text

OUT = Path(__file__).parents[2] / "results" / "counts-beside-states.csv"


def file_names(value: object) -> str:
    """Return the names of files, without their folders."""
    paths = value if isinstance(value, list) else [value]
    return ",".join(Path(str(path)).name for path in paths)


def main() -> None:
    """Write the file, and print how many rows it has."""
    rows = [row for row in collect_runs([Path(sys.argv[1])]) if row["state"] == COMPLETE]
    for row in rows:
        row["run"] = Path(row["run"]).name
        row |= {key: file_names(row[key]) for key in ("data.train", "data.valid")}
    order = ("stories", "books8m", "books", "wide")
    rows.sort(key=lambda row: (order.index(row["run"].split("-")[0]), row["run"]))
    OUT.write_text(csv_text(rows), encoding="utf-8")
    with OUT.open(encoding="utf-8", newline="") as file:
        print(len(list(csv.DictReader(file))))


if __name__ == "__main__":
    main()
