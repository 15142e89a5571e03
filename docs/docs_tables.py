"""The tables of the documentation, computed from the committed CSV files of runs/results.

Each function of `BLOCKS` returns the Markdown of one block. A block in a page stands between
`<!-- block: NAME -->` and `<!-- end of block -->`.
"""

import csv
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

import docs_contests
import numpy as np
from docs_contests import RESULTS, table

from grouped_lm.system.tables import group_rows

ROOT = Path(__file__).parents[1]
GIB = 2**30
Row = dict[str, str]

GROUPED: dict[str, Row] = {
    "`grouped`": {"head": "grouped"},
    "`film`": {"head": "film"},
    "`class_full`": {"head": "class_full", "tied": "True"},
    "`shortlist`, 256 tokens": {
        "head": "shortlist",
        "directions": "0",
        "own_shortlist": "False",
        "reserve": "True",
        "shared_rows": "32768",
        "shortlist_size": "256",
    },
}
"""Heads with groups -> their settings in leaderboard.csv."""
MODELS = ("gpt2-128x3", "gpt2-256x4", "gpt2-1m", "gpt2-8m", "gpt2-28m", "neo-33m")
BEFORE = "`shortlist`, 256 tokens"
"""What the default head of version 0.1 is called in tables of the benchmarks. That of today has 2,048 tokens."""
GPU_SHAPE = ("4096", "128", "50257")
"""N, D and V of the table of heads alone on a GPU."""
DEFAULT_LABEL = "shortlist, mean rows"
"""The default head's name in the benchmark files."""


@cache
def read(name: str) -> tuple[Row, ...]:
    """Return the rows of a CSV file below runs/results."""
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def listing(paths: Sequence[str]) -> str:
    """Return names of result files, in backticks."""
    return ", ".join(f"`runs/results/{path}`" for path in paths)


def source(name: str, rows: Sequence[Row]) -> str:
    """Return the footer of a table: file, commits, machines, versions and commands."""

    def values(key: str, cut: int | None = None) -> str:
        return ", ".join(sorted({row[key][:cut] for row in rows}))

    commands = "".join(f"    {command}\n" for command in sorted({row["command"] for row in rows}))
    text = f"Source: {listing([name])}, commit {values('commit', 7)}, {values('machine')}, torch {values('torch')},"
    return f'\n{text} {values("threads")} thread.\n\n??? info "Commands"\n\n{indent(commands)}'


def indent(text: str) -> str:
    """Return text moved right by four spaces."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def settings(row: Row) -> Row:
    """Return what tells a run of leaderboard.csv from others: the head, its options, grouping and group size."""
    options = dict(option.split("=", 1) for option in row["options"].replace(", ", ",").split())
    options = {key: {"true": "True", "false": "False"}.get(value, value) for key, value in options.items()}
    return {"bpe": "", "group_size": row["group_size"], "grouping": row["grouping"], "head": row["head"]} | options


def losses(place: tuple[str, str, str], wanted: Row, column: str, lr: str = "0.004") -> dict[str, float]:
    """Return the loss of each seed of a head in leaderboard.csv, for one text, width and number of tokens."""
    wanted = {"group_size": "224" if wanted["head"] in ("shortlist", "grouped", "film", "class_full") else ""} | wanted
    found = {}
    for row in read("leaderboard.csv"):
        have = settings(row)
        same = (row["data"], row["n_embd"], row["tokens"]) == place and row["lr"] == lr and row[column]
        if same and all(have.get(key) == value for key, value in wanted.items()):
            found[row["seed"]] = float(row[column])
    return found


def _leaderboard_source() -> str:
    return f"\nSource: {listing(['leaderboard.csv'])}; each row has its commit and its device.\n"


def groupings() -> str:
    """Return the validation loss of heads with groups under each grouping."""
    place = ("tinystories", "128", "1638400")
    names = ["merge_rank", "random", "frequency", "sqrt_frequency", "kmeans", "brown"]
    rows = []
    for label, head in GROUPED.items():
        cells = []
        for grouping in names:
            size = {"group_size": "338"} if grouping == "sqrt_frequency" else {}  # its largest group
            found = losses(place, head | {"grouping": grouping} | size, "report_loss_nats")
            cells.append(f"{found['0']:.3f}" if "0" in found else "-")
        rows.append([label, *cells])
    return table(["head", *[f"`{name}`" for name in names]], rows) + _leaderboard_source()


def step_rows(name: str, batch: str = "8") -> dict[tuple[str, str], Row]:
    """Return the rows of a benchmark of whole steps by body and head."""
    return {(row["model"], row["head"]): row for row in read(name) if row["micro_batch_size"] == batch}


def _speed_table(name: str, key: str, form: Callable[[float], str]) -> str:
    found = step_rows(name)
    models = [model for model in MODELS if any(model == place for place, _ in found)]
    heads = list(dict.fromkeys(head for _, head in found))
    rows = []
    for head in heads:
        cells = [form(float(found[model, head][key])) if (model, head) in found else "-" for model in models]
        rows.append([_label(head), *cells])
    return table(["head", *[f"`{model}`" for model in models]], rows)


def _label(head: str) -> str:
    if head == DEFAULT_LABEL:
        return f"**{BEFORE}**"
    if head == "shortlist":
        return "shortlist, 1,024 tokens, 1 direction"
    return head


def default_steps() -> str:
    """Return the speed of whole steps over dense, with the default head."""
    name = "default-head/bench-steps.csv"
    return _speed_table(name, "over_dense", lambda value: f"{value:.2f}x") + source(name, read(name))


def default_steps_ms() -> str:
    """Return the milliseconds of whole steps, with the default head."""
    name = "default-head/bench-steps.csv"
    return _speed_table(name, "ms", lambda value: f"{value:,.0f}") + source(name, read(name))


def steps() -> str:
    """Return the speed of whole steps over dense, for all heads and older settings of `shortlist`."""
    return _speed_table("bench-steps.csv", "over_dense", lambda value: f"{value:.2f}x") + source(
        "bench-steps.csv", read("bench-steps.csv")
    )


def share_of_cap() -> str:
    """Return the share of the speed without any head."""
    return _speed_table("bench-steps.csv", "share_of_cap", lambda value: f"{100 * value:.0f} %") + source(
        "bench-steps.csv", read("bench-steps.csv")
    )


def _heads_table(name: str, cell: Callable[[Row], str]) -> str:
    rows = read(name)
    shapes = list(dict.fromkeys((row["n_tokens"], row["n_embd"]) for row in rows))
    found = {(row["n_tokens"], row["n_embd"], row["head"]): row for row in rows}
    heads = list(dict.fromkeys(row["head"] for row in rows))
    body = []
    for head in heads:
        cells = [cell(found[(*shape, head)]) if (*shape, head) in found else "-" for shape in shapes]
        body.append([_label(head), *cells])
    header = ["head", *[f"{int(n):,} x {d}" for n, d in shapes]]
    return table(header, body)


def heads_speed() -> str:
    """Return how many times faster than dense each head alone is, forward and backward."""
    text = _heads_table("bench-heads.csv", lambda row: f"{float(row['speedup']):.3g}x")
    return text + source("bench-heads.csv", read("bench-heads.csv"))


def heads_memory() -> str:
    """Return how many times smaller than dense the peak memory of each head alone is."""
    text = _heads_table("bench-heads.csv", lambda row: f"{float(row['memory_ratio']):.3g}x")
    return text + source("bench-heads.csv", read("bench-heads.csv"))


def default_heads() -> str:
    """Return the milliseconds of the default head alone and of its rivals, forward and backward."""
    name = "default-head/bench-heads.csv"
    return _heads_table(name, lambda row: f"{float(row['ms']):,.3g}") + source(name, read(name))


def default_heads_memory() -> str:
    """Return the peak memory of the default head alone and of its rivals, over the floor."""
    name = "default-head/bench-heads.csv"
    return _heads_table(name, lambda row: f"{float(row['peak_over_floor']):.2f}x") + source(name, read(name))


def counts() -> str:
    """Return the losses of networks and n-gram counts, alone and together; means over seeds."""
    texts = {
        "stories": "stories",
        "books8m": "books, the same for both",
        "books": "books, counts of 18.9 million tokens",
        "wide": "seven languages, counts of 6 million tokens",
    }

    def place(row: Row) -> tuple[str, ...]:
        text = texts[row["run"].split("-")[0]]  # the name of the text begins the name of the run
        twice = ", seen twice" if row["run"].endswith("-2x") else ""
        tokens = f"{float(row['trainer/tokens']) / 1e6:.1f} million tokens"
        return f"{text}, width {row['model.n_embd']}, {tokens}{twice}", row["head"]

    body = []
    for (where, head), own in group_rows(read("counts-beside-states.csv"), place).items():
        keys = ("val/loss_head", "val/loss_prior", "val/loss_weight", "val/loss")
        means = [fmean(float(row[key]) for row in own) for key in keys]
        gain = means[0] - means[-1]
        body.append([where, f"`{head}`", str(len(own)), *(f"{mean:.3f}" for mean in means), f"{gain:.3f}"])
    header = ["where", "head", "seeds", "network", "counts", "both, one weight", "both, gate", "gain of the gate"]
    note = "each row has its config and commit, and the command is in the log"
    return f"{table(header, body)}\nSource: {listing(['counts-beside-states.csv'])}; {note}.\n"


def decode() -> str:
    """Return milliseconds a token in generation."""
    rows = read("bench-decode.csv")
    body = [
        [
            row["batch_size"],
            row["head"].removeprefix("runs/t8m/"),
            row["way"],
            f"{float(row['head_ms']):.2f}",
            f"{float(row['ms']):.1f}",
            f"{float(row['speedup']):.2f}x",
        ]
        for row in rows
    ]
    header = ["texts at once", "head", "way", "head, ms", "whole token, ms", "over dense"]
    return table(header, body) + source("bench-decode.csv", rows)


def memory_claim() -> str:
    """Return the memory of a step with dense over that with `grouped`, by body, attention and batch."""
    rows = [row for row in read("bench-memory.csv") if row["part"] == "claim"]
    body = [
        [
            f"`{row['model']}`",
            row["attention"],
            f"{row['micro_batch_size']} x {row['block_size']}",
            f"{float(row['dense_bytes']) / GIB:.2f}",
            f"{float(row['grouped_bytes']) / GIB:.2f}",
            f"{float(row['memory_ratio']):.2f}x",
            f"{float(row['ratio_limit']):.2f}x",
        ]
        for row in rows
    ]
    header = ["body", "attention", "batch", "dense, GiB", "grouped, GiB", "ratio", "limit of the ratio"]
    return table(header, body) + source("bench-memory.csv", rows)


def memory_truth() -> str:
    """Return measured and predicted peaks of whole steps."""
    rows = [row for row in read("bench-memory.csv") if row["part"] == "truth"]
    largest = max(abs(float(row["prediction_error"])) for row in rows if row["prediction_error"])
    body = [
        [
            f"`{row['model']}`",
            f"{row['micro_batch_size']} x {row['block_size']}",
            row["head"],
            f"{float(row['measured_bytes']) / GIB:.3f}",
            f"{float(row['predicted_bytes']) / GIB:.3f}" if row["predicted_bytes"] else "-",
            row["peak_module"] or "-",
        ]
        for row in rows
    ]
    header = ["body", "batch", "head", "measured, GiB", "predicted, GiB", "module at the peak"]
    text = f"The largest error of a prediction is {100 * largest:.2g} %.\n\n"
    return text + table(header, body) + source("bench-memory.csv", rows)


def vocabulary_memory() -> str:
    """Return the peak memory of a step by vocabulary size, in GiB."""

    def cell(row: Row) -> str:
        value = row["measured_bytes"] or row["predicted_bytes"]
        return f"{float(value) / GIB:.2f}{'' if row['measured_bytes'] else ' (predicted)'}" if value else "-"

    return _vocabulary_table(cell)


def vocabulary_ms() -> str:
    """Return the milliseconds of a step by vocabulary size."""
    return _vocabulary_table(lambda row: f"{float(row['ms']):,.0f}" if row["ms"] else "-")


def _vocabulary_table(cell: Callable[[Row], str]) -> str:
    rows = [row for row in read("bench-vocab.csv") if row["part"] == "step"]
    found = {(row["vocab_size"], row["head"]): row for row in rows}
    heads = list(dict.fromkeys(row["head"] for row in rows))
    sizes = list(dict.fromkeys(row["vocab_size"] for row in rows))
    body = [[f"{int(size):,}", *[cell(found[size, head]) for head in heads]] for size in sizes]
    return table(["V", *heads], body) + source("bench-vocab.csv", rows)


def vocabulary_language() -> str:
    """Return the losses above the known entropy of two synthetic languages."""
    rows = [row for row in read("bench-vocab.csv") if row["part"] == "excess"]
    body = [
        [
            row["language"],
            f"{int(row['vocab_size']):,}",
            row["head"],
            f"{float(row['entropy_nats']):.3f}",
            f"{float(row['excess_nats']):+.3f}",
        ]
        for row in rows
    ]
    header = ["language", "V", "head", "entropy, nats", "loss above it, nats"]
    return table(header, body) + source("bench-vocab.csv", rows)


def gpu_rows() -> list[Row]:
    """Return the heads alone on a GPU at one of the shapes: N, D and V of `GPU_SHAPE`."""
    shape = ("n_tokens", "n_embd", "vocab_size")
    return [row for row in read("bench-heads-gpu.csv") if tuple(row[key] for key in shape) == GPU_SHAPE]


def gpu_heads() -> str:
    """Return milliseconds and memory of heads alone on a GPU. A head that was timed alone has no memory."""
    rows = gpu_rows()

    def memory(row: Row) -> str:
        if "graphs" in row["head"]:
            return "not counted"
        return f"{float(row['peak_bytes']) / 2**20:,.0f}" if row["peak_bytes"] else "-"

    body = [
        [
            _label(row["head"]),
            f"{float(row['ms']):.2f}",
            f"{float(row['speedup']):.2f}x",
            memory(row),
        ]
        for row in rows
    ]
    return table(["head", "ms", "over dense", "peak, MiB"], body) + source("bench-heads-gpu.csv", rows)


def verdict_counts() -> str:
    """Return one sentence with the number of claims by verdict."""
    words = [row["word"] for row in read("cpu/tables/verdicts.csv")]
    names = {
        "holds": "{} holds",
        "holds where": "{} hold under stated conditions",
        "does not hold": "{} do not hold",
        "not shown at this scale": "{} are not shown at this scale",
    }
    *parts, last = (names[word].format(words.count(word)) for word in names)
    return fill(f"Of {len(words)} claims {', '.join(parts)}, and {last}.", 100) + "\n"


def summary() -> str:
    """Return the five rows of results on the front page."""
    found = step_rows("default-head/bench-steps.csv")
    over = {model: float(found[model, DEFAULT_LABEL]["over_dense"]) for model in MODELS if (model, "dense") in found}
    claims = [row for row in read("bench-memory.csv") if row["part"] == "claim" and row["attention"] == "fused"]
    ratio = {model: max(float(row["memory_ratio"]) for row in claims if row["model"] == model) for model in MODELS[2:]}
    gpu = {row["head"]: float(row["ms"]) for row in gpu_rows()}
    rows = [
        ["Loss of the default head, minus the best full softmax ([quality])", docs_contests.range_of("shortlist", 3)],
        [
            "Loss of the paper's head, one seed, minus the best full softmax ([quality])",
            docs_contests.range_of("grouped"),
        ],
        [
            "Bits per byte, default minus next best, after 10 and 60 minutes ([quality])",
            docs_contests.time_leads(),
        ],
        [
            "Speed of training on stories, default over dense, over `trim` ([quality])",
            docs_contests.speeds("dense", "trim"),
        ],
        [
            "Speed of steps with 256 frequent tokens over dense, width 128 to 512 ([speed])",
            f"{over['gpt2-128x3']:.1f}x to {over['gpt2-28m']:.1f}x",
        ],
        ["Memory of steps, dense over the paper's head, 33M ([memory])", f"up to {ratio['neo-33m']:.2f}x"],
        [
            "Speed of the head with 256 tokens alone over dense, large GPU ([GPU])",
            f"{gpu['dense'] / gpu[DEFAULT_LABEL]:.1f}x",
        ],
    ]
    return table(["measured", "result"], rows)


def measured(head: str) -> Callable[[], str]:
    """Return the function that gives the measured results of one head."""

    def block() -> str:
        text = docs_contests.measured_quality(head) + _measured_speed(head)
        return text or "Nothing about this head is in a committed file yet.\n"

    return block


SPEED_OF: dict[str, list[str]] = {
    "dense": ["dense, compiled", "dense, CCE", "dense, chunked, tuned"],
    "shortlist": [],
    "trim": ["trim"],
    "adaptive": ["adaptive", "adaptive, tuned"],
    "grouped": ["grouped"],
    "film": ["film"],
    "class_full": ["class_full"],
    "low_rank": ["low_rank"],
    "sampled": ["sampled"],
}


def _measured_speed(head: str) -> str:
    found = step_rows("bench-steps.csv")
    rows = []
    models: Sequence[Any] = MODELS[2:]
    for label in SPEED_OF[head]:
        rows.append([label, *[f"{float(found[model, label]['over_dense']):.2f}x" for model in models]])
    if head == "shortlist":
        default = step_rows("default-head/bench-steps.csv")
        models = [model for model in MODELS if (model, DEFAULT_LABEL) in default]
        cells = [f"{float(default[model, DEFAULT_LABEL]['over_dense']):.2f}x" for model in models]
        rows = [[BEFORE, *cells]]
    note = "Tokens per second of a whole training step over dense, on one CPU thread.\n\n"
    files = ["equal-tokens.csv"] if docs_contests.measured_quality(head) else []
    files.append("default-head/bench-steps.csv" if head == "shortlist" else "bench-steps.csv")
    return note + table(["setting", *[f"`{model}`" for model in models]], rows) + f"\nSource: {listing(files)}.\n"


def published_runs() -> str:
    """Return step times that others published, beside those that `gvc plan` predicts."""
    rows, errors = [], []
    for row in read("published-runs.csv"):
        published, predicted = float(row["published_s"]), float(row["predicted_s"])
        errors.append(abs(predicted / published - 1))
        change = f"{100 * (predicted / published - 1):+.0f} %"
        device = f"{row['devices']} x {row['device']}"
        rows.append([f"[{row['run']}]({row['source']})", device, f"{published:.3f}", f"{predicted:.3f}", change])
    text = table(["run", "devices", "published, s", "predicted, s", "error"], rows)
    found = f"The median error is {100 * float(np.median(errors)):.0f} %, the largest {100 * max(errors):.0f} %."
    notes = "".join(f"    {row['run']}: {row['how']}. {row['overrides']}\n\n" for row in read("published-runs.csv"))
    command = "`python docs/published_runs.py`"
    return f'{text}\n{found}\n\nSource: {listing(["published-runs.csv"])}, {command}.\n\n??? info "Settings"\n\n{notes}'


def large_clusters() -> str:
    """Return the planned steps of `dense` and `grouped` on many devices, by the size of the vocabulary."""
    found = {(row["devices"], row["vocab_size"], row["head"]): row for row in read("large-clusters.csv")}
    rows = []
    for devices, size in dict.fromkeys((devices, size) for devices, size, _ in found):
        dense, grouped = (found[devices, size, head] for head in ("dense", "grouped"))
        steps = [float(row["step_s"]) for row in (dense, grouped)]
        waiting = float(grouped["exposed_s"]) / steps[1]
        cells = [f"{1000 * step:.0f}" for step in steps] + [f"{steps[0] / steps[1]:.2f}x", f"{100 * waiting:.0f} %"]
        rows.append([f"{int(devices):,}", f"{int(size):,}", *cells, dense["peak_gib"], grouped["peak_gib"]])
    header = [
        "devices",
        "V",
        "dense, ms",
        "grouped, ms",
        "dense over grouped",
        "grouped waits",
        "dense, GiB",
        "grouped, GiB",
    ]
    return f"{table(header, rows)}\nSource: {listing(['large-clusters.csv'])}, `python docs/published_runs.py`.\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "counts": counts,
    "decode": decode,
    "default-heads": default_heads,
    "default-heads-memory": default_heads_memory,
    "default-steps": default_steps,
    "default-steps-ms": default_steps_ms,
    "equal-time": docs_contests.equal_time,
    "equal-tokens": docs_contests.equal_tokens,
    "gpu-heads": gpu_heads,
    "groupings": groupings,
    "heads-memory": heads_memory,
    "heads-speed": heads_speed,
    "large-clusters": large_clusters,
    "memory-claim": memory_claim,
    "memory-truth": memory_truth,
    "published-runs": published_runs,
    "share-of-cap": share_of_cap,
    "steps": steps,
    "summary": summary,
    "verdict-counts": verdict_counts,
    "vocabulary-language": vocabulary_language,
    "vocabulary-memory": vocabulary_memory,
    "vocabulary-ms": vocabulary_ms,
} | {f"measured-{head}": measured(head) for head in SPEED_OF}
