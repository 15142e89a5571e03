"""The tables of the contests of heads, computed from runs/results/equal-tokens.csv and runs/results/equal-time.csv.

Differences, intervals and the words "on par" are those of `gvc leaderboard`, which has the same figures.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import median

from grouped_lm.report.contest import EXACT, Place, places
from grouped_lm.report.documents import read_documents
from grouped_lm.report.leaderboard import Standing, read_rows, standings

RESULTS = Path(__file__).parents[1] / "runs" / "results"
Board = tuple[Place, list[Standing]]
DEFAULT = {"shortlist_size": None, "directions": "0", "inner_scale": "false", "second_order": "false"}
"""Options of the default head, `shortlist`. A size of null is not among the options of a row."""
FRONT = "tinystories"
"""The text of the first place of each contest."""
TEXTS = {"tinystories": "TinyStories", "books": "Books", "wide": "Seven languages"}
"""Names of texts in the CSV files -> names in tables."""
NOTHING = "No run of this contest is committed yet.\n"


@cache
def boards(name: str) -> tuple[Board, ...]:
    """Return the places of a contest, stories first, each with its heads, best first; none if it has no file."""
    path = RESULTS / f"{name}.csv"
    if not path.exists():
        return ()
    losses = read_documents(path)
    found = sorted(places(read_rows(path)), key=lambda place: place.rows[0]["data"] != FRONT)
    return tuple((place, standings(place.rows, rival_of(place), place.choice, losses, place.timed)) for place in found)


def rival_of(place: Place) -> str:
    """Return the heads of which the best is the reference: full softmaxes, or else the adaptive softmax."""
    return EXACT if any(row["head"] in EXACT.split(",") for row in place.rows) else "adaptive"


def title_of(place: Place) -> str:
    """Return the text of a place, and its body and tokens or its time."""
    row = place.rows[0]
    text = TEXTS.get(row["data"], row["data"])
    if place.timed:
        return f"{text}, {row['minutes']} minutes on {row['threads']} {'core' if row['threads'] == '1' else 'cores'}"
    return f"{text}, width {row['n_embd']}, {row['n_layer']} layers, {int(row['tokens']) / 1e6:.1f} million tokens"


def variant_of(entry: Standing) -> str:
    """Return the variant as the command of its runs names it, and whether counts of n-grams are beside it."""
    command = entry.rows[0]["command"]
    counts = " with counts" if command.startswith("gvc sweep equal-time-counts ") else ""
    return re.findall(r"\bvariant=([\w-]+)", command)[0] + counts


def find(entries: Sequence[Standing], head: str) -> Standing | None:
    """Return the variant of a head with the full vocabulary that has most seeds; of several, the best.

    Of `shortlist` it is the default.
    """
    own = [entry for entry in entries if entry.settings["name"] == head and entry.unit == "loss_nats"]
    own = [entry for entry in own if entry.difference is not None and "prior" not in entry.settings]
    if head == "shortlist":
        own = [entry for entry in own if all(entry.settings.get(key) == value for key, value in DEFAULT.items())]
    return max(own, key=lambda entry: (entry.seeds, -entry.bits_per_byte), default=None)


def reference_of(entries: Sequence[Standing]) -> Standing | None:
    """Return the head that all others are compared with: the best full softmax, if there is one."""
    return next((entry for entry in entries if entry.difference == 0 and entry.documents is None), None)


def signed(value: float, digits: int = 3) -> str:
    """Return a number with its sign; zero has none."""
    return f"{value:+.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"


def span(ends: tuple[float | None, float | None] | None) -> str:
    """Return an interval in words."""
    if ends is None or ends[0] is None or ends[1] is None:
        return "-"
    return f"{signed(ends[0])} to {signed(ends[1])}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _source(name: str, entries: Sequence[Standing]) -> str:
    rows = [row for entry in entries for row in entry.rows]

    def values(key: str) -> str:
        return ", ".join(sorted({row[key] for row in rows if row[key]}))

    commands = "".join(f"        {command}\n" for command in sorted({row["command"] for row in rows}))
    text = f"Source: `runs/results/{name}.csv`, commit {values('commit')}, {values('machine')}."
    return f'{text} Report text: {values("report_text")}.\n\n??? info "Commands"\n\n{commands}\n'


def equal_tokens() -> str:
    """Return one table for each text and body: every head after the same tokens."""

    def cells(entry: Standing, is_reference: bool) -> list[str]:
        bits = " bits/byte" if entry.unit != "loss_nats" else ""
        gap = "-" if entry.difference is None else signed(entry.difference) + bits
        ends = [span((entry.low, entry.high)), span(entry.documents), entry.verdict if entry.seeds > 1 else "one seed"]
        figures = [f"{entry.loss:.3f}", f"{entry.bits_per_byte:.4f}", gap]
        speed = f"{round(speed_of(entry), -2):,.0f}"
        return [entry.lr or "-", str(entry.seeds), *figures, *(["-"] * 3 if is_reference else ends), speed]

    header = ["variant", "rate", "seeds", "nats", "bits per byte", "minus {}"]
    return _tables("equal-tokens", [*header, "95 % over seeds", "95 % over documents", "on par", "tokens/s"], cells)


def equal_time() -> str:
    """Return one table for each text and time: every head with its best body."""

    def cells(entry: Standing, _: bool) -> list[str]:
        body = f"{entry.rows[0]['n_embd']} x {entry.rows[0]['n_layer']}"
        gap = "-" if entry.difference is None else signed(entry.difference, 4)
        figures = [f"{entry.tokens / 1e6:.1f}", f"{entry.bits_per_byte:.4f}", gap, span(entry.documents)]
        return [body, str(entry.seeds), *figures]

    header = ["variant", "body", "seeds", "million tokens", "bits per byte", "minus {}"]
    return _tables("equal-time", [*header, "95 % over documents"], cells)


def _tables(name: str, header: Sequence[str], cells: Callable[[Standing, bool], list[str]]) -> str:
    """Return the table of each place of a contest; `cells` gets a head and whether it is the reference."""
    text = ""
    for place, entries in boards(name):
        reference = reference_of(entries)
        named = "the best full softmax" if rival_of(place) == EXACT or not reference else f"`{variant_of(reference)}`"
        rows = [[f"`{variant_of(entry)}`", *cells(entry, entry is reference)] for entry in entries]
        text += (
            f"**{title_of(place)}**\n\n{table([cell.format(named) for cell in header], rows)}\n{_source(name, entries)}"
        )
    return text or NOTHING


def measured_quality(head: str) -> str:
    """Return what the contest at equal tokens says of one head; "" if it is not there."""
    rows = []
    for place, entries in boards("equal-tokens"):
        for entry in entries:
            if entry.settings["name"] == head and entry.difference is not None and entry.unit == "loss_nats":
                cells = [title_of(place), str(entry.seeds), signed(entry.difference), span(entry.documents)]
                rows.append([f"`{variant_of(entry)}`", *cells])
    if not rows:
        return ""
    note = "Loss minus that of the best full softmax, in nats; below 0 is better.\n\n"
    return note + table(["variant", "where", "seeds", "difference", "95 % over documents"], rows) + "\n"


def time_leads() -> str:
    """Return the bits per byte of the default minus those of the best other head, at each place at equal time."""
    leads = []
    for _, entries in boards("equal-time"):
        alone = [entry for entry in entries if "prior" not in entry.settings]
        own = next(entry for entry in alone if variant_of(entry) == "shortlist")
        leads.append(signed(own.bits_per_byte - min(entry.bits_per_byte for entry in alone if entry is not own)))
    return ", ".join(leads)


def speeds(*others: str) -> str:
    """Return how many times as fast as other heads the default was trained, at the first place of the contest."""
    (_, entries), *_ = boards("equal-tokens")
    pairs = [(find(entries, "shortlist"), find(entries, other)) for other in others]
    return ", ".join(f"{speed_of(own) / speed_of(other):.1f}x" for own, other in pairs if own and other)


def speed_of(entry: Standing) -> float:
    """Return the median tokens per second of a head's runs."""
    return median(float(row["tokens_per_sec"]) for row in entry.rows)


def range_of(head: str, digits: int = 2) -> str:
    """Return the least and the largest difference of a head to the best full softmax over all places."""
    found = [entry.difference for _, entries in boards("equal-tokens") if (entry := find(entries, head))]
    gaps = sorted(gap for gap in found if gap is not None)
    if not gaps:
        return "-"
    low, high = signed(gaps[0], digits), signed(gaps[-1], digits)
    return f"{low} nats" if low == high else f"{low} to {high} nats"
