"""Compare `gvc plan` with published step times, and plan large clusters: write two files of runs/results.

published-runs.csv holds what others published. This script fills its column predicted_s. large-clusters.csv is
computed in full. Rows that have their figures are left alone: empty them to compute them again. The tables of
docs/results/clusters.md come from both files (`docs/generate.py`).

Usage: python docs/published_runs.py
"""

import csv
import itertools
from typing import Any

from docs_tables import RESULTS, Row
from grouped_lm.cli.compose.compose import HydraFlags
from grouped_lm.cli.compose.run import compose_one

from grouped_lm.measure.devices import INTERCONNECTS, Device, find_device
from grouped_lm.plan.devices import DevicesPlan, plan_devices

COMMON = ["head=dense", "head.tied=true", "train.dtype=bfloat16", "train.compile=true"]
SIZES = (50_257, 250_000, 1_000_000)
CLUSTERS = {64: "ib-ndr", 1024: "ib-ndr"}
HEADS = ("dense", "grouped")
WINDOWS = 16
"""Windows of 1,024 tokens on each device."""


def plan(words: list[str], device: str, devices: int, link: str, size: int | None = None) -> DevicesPlan:
    """Return the plan under DDP, for a vocabulary of `size` if it is given."""
    config = compose_one(words, HydraFlags())
    if size is not None:
        config.tokenizer.vocab_size = size  # after the check of the range of a tokenizer that can be trained
    chosen: Device = find_device(device, config.train.dtype)
    return plan_devices(config, devices, chosen, INTERCONNECTS[link], 1)[0]


def predict(row: Row) -> float:
    """Return the predicted seconds of an optimizer step of a published run."""
    words = [*COMMON, *row["overrides"].split()]
    return plan(words, row["device"], int(row["devices"]), row["link"] or "nvlink4").step_s


def large_cluster(devices: int, size: int, head: str) -> dict[str, Any]:
    """Return the planned step of GPT-2 124M with a vocabulary of `size` on `devices` H100s."""
    words = ["model=gpt2-124m", "tokenizer=bpe", "train.dtype=bfloat16"]
    words += [f"head={head}", f"train.micro_batch_size={WINDOWS * devices}"]
    made = plan(words, "h100", devices, CLUSTERS[devices], size)
    figures = {"step_s": made.step_s, "compute_s": made.compute_s, "exposed_s": made.exposed_s}
    cells = {key: f"{value:.5f}" for key, value in figures.items()}
    return {"devices": devices, "vocab_size": size, "head": head, **cells, "peak_gib": f"{made.peak_bytes / 2**30:.1f}"}


def rows_of(name: str) -> list[dict[str, Any]]:
    """Return the rows of a CSV file of runs/results, an empty list if there is none."""
    path = RESULTS / name
    return list(csv.DictReader(path.open(encoding="utf-8", newline=""))) if path.exists() else []


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Write rows to a CSV file of runs/results."""
    with (RESULTS / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Compute what the files lack, row by row: the plan of a large model takes a minute."""
    published = [{"predicted_s": "", **row} for row in rows_of("published-runs.csv")]
    for row in published:
        row["predicted_s"] = row["predicted_s"] or f"{predict(row):.3f}"
        write("published-runs.csv", published)
    large = rows_of("large-clusters.csv")
    known = {(row["devices"], row["vocab_size"], row["head"]) for row in large}
    for devices, size, head in itertools.product(CLUSTERS, SIZES, HEADS):
        if (str(devices), str(size), head) not in known:
            write("large-clusters.csv", large := [*large, large_cluster(devices, size, head)])


if __name__ == "__main__":
    main()
