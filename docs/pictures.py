"""Draw the pictures of the documentation as SVG.

Usage: python docs/pictures.py. It writes

- docs/heads/NAME.svg: which softmaxes a token's probability is made of, with the numbers of GPT-2's vocabulary;
- docs/results/summary.svg: bits per byte against minutes, from the committed contest at equal tokens;
- docs/results/equal-time.svg: the same from the contest at equal time.
"""

from dataclasses import dataclass
from html import escape
from math import ceil, floor, log
from pathlib import Path
from statistics import fmean

from docs_contests import Board, boards, find, speed_of, title_of, variant_of

from grouped_lm.report.leaderboard import Standing, curve_points

DOCS = Path(__file__).parent
SHARED, OWN, FIXED = "#0072b2", "#d55e00", "#7f7f7f"
"""Colours of classes: rows of the input embedding, weights of the head's own, no weights."""
LEGEND = {SHARED: "embedding rows", OWN: "own weights", FIXED: "no weights"}
LEFT, WIDTH, ROW = 96, 400, 84
"""Pixels: left edge of the strips, their width, and the height of one step."""


@dataclass(frozen=True)
class Part:
    """One part of a softmax: its share of the strip, its label and its colour."""

    share: float
    label: str
    colour: str


@dataclass(frozen=True)
class Step:
    """One softmax."""

    title: str
    parts: tuple[Part, ...]


PICTURES: dict[str, tuple[Step, ...]] = {
    "dense": (Step("softmax over all tokens", (Part(1, "50,257 tokens", SHARED),)),),
    "trim": (
        Step(
            "softmax over the text's own tokens",
            (Part(0.8, "tokens of the training text", SHARED), Part(0.2, "the rest", OWN)),
        ),
        Step("in the rest: all tokens are equal", (Part(1, "tokens that the text never has", FIXED),)),
    ),
    "low_rank": (
        Step("bottleneck", (Part(0.2, "r values", OWN),)),
        Step("softmax over all tokens", (Part(1, "50,257 tokens", OWN),)),
    ),
    "sampled": (
        Step("in training", (Part(0.14, "target", SHARED), Part(0.42, "1,024 drawn tokens", SHARED))),
        Step("in validation", (Part(1, "50,257 tokens", SHARED),)),
    ),
    "adaptive": (
        Step("1. frequent tokens and clusters", (Part(0.75, "2,000 tokens", OWN), Part(0.25, "2 clusters", OWN))),
        Step("2. in the cluster, at a lower rank", (Part(1, "8,000 or 40,257 tokens", OWN),)),
    ),
    "grouped": (
        Step("1. softmax over groups", (Part(0.5, "225 groups", OWN),)),
        Step("2. in the group: one layer for all", (Part(0.5, "224 slots: scaled logits", OWN),)),
    ),
    "film": (
        Step("1. softmax over groups", (Part(0.5, "225 groups", OWN),)),
        Step("2. in the group: one layer for all", (Part(0.5, "224 slots: scaled state", OWN),)),
    ),
    "class_full": (
        Step("1. softmax over groups", (Part(0.5, "225 groups", OWN),)),
        Step("2. in the group: rows of its tokens", (Part(0.5, "224 tokens", SHARED),)),
    ),
    "shortlist": (
        Step(
            "1. frequent tokens, groups, reserve",
            (
                Part(0.4, "2,048 tokens", SHARED),
                Part(0.4, "groups: mean rows", SHARED),
                Part(0.2, "reserved", FIXED),
            ),
        ),
        Step("2. in the group: rows of its tokens", (Part(0.5, "up to 224 tokens", SHARED),)),
    ),
}


def draw(name: str, steps: tuple[Step, ...]) -> str:
    """Return the SVG of one head."""
    height = ROW * len(steps) + 40
    body = [
        f'<text x="4" y="{ROW * len(steps) / 2 + 4}" class="bold">state h</text>',
        f'<path d="M 58 {ROW * len(steps) / 2} H {LEFT - 14}" class="line" marker-end="url(#arrow)"/>',
    ]
    for number, step in enumerate(steps):
        top = ROW * number + 12
        body.append(f'<text x="{LEFT}" y="{top + 12}" class="bold">{escape(step.title)}</text>')
        x = float(LEFT)
        for part in step.parts:
            width = WIDTH * part.share
            body.append(f'<rect x="{x:.0f}" y="{top + 22}" width="{width - 3:.0f}" height="34" fill="{part.colour}"/>')
            label = f'<text x="{x + width / 2:.0f}" y="{top + 44}" class="in">{escape(part.label)}</text>'
            body.append(label)
            x += width
    x = LEFT
    for colour in dict.fromkeys(part.colour for step in steps for part in step.parts):
        body.append(f'<rect x="{x}" y="{height - 24}" width="12" height="12" fill="{colour}"/>')
        body.append(f'<text x="{x + 18}" y="{height - 13}">{LEGEND[colour]}</text>')
        x += 130
    title = f"Head {name}: {'; '.join(step.title for step in steps)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 16} {height}" '
        f'width="{LEFT + WIDTH + 16}" height="{height}" role="img">\n<title>{escape(title)}</title>\n'
        "<style>text{font:13px sans-serif;fill:#222}.bold{font-weight:bold}.in{fill:#fff;text-anchor:middle}"
        ".line{stroke:#222;stroke-width:1.5;fill:none}</style>\n"
        '<defs><marker id="arrow" markerWidth="8" markerHeight="8" refX="6" refY="4" orient="auto">'
        '<path d="M 0 0 L 8 4 L 0 8 z" fill="#222"/></marker></defs>\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


COLOURS = {
    "dense": "#222222",
    "trim": "#777777",
    "shortlist": "#d55e00",
    "adaptive": "#009e73",
    "grouped": "#0072b2",
    "film": "#56b4e9",
}
"""Heads in the picture of loss against minutes."""
NAMES = {"shortlist": "shortlist, the default", "grouped": "grouped, the paper's head"}
TIMED = {
    "dense-bias": "#222222",
    "trim-bias": "#777777",
    "shortlist": "#d55e00",
    "adaptive-bias": "#009e73",
    "bpe-4096": "#cc79a7",
    "bpe-8192": "#e69f00",
    "shortlist with counts": "#8b2500",
}
"""Variants in the picture of the contest at equal time."""
PANEL = (60, 74, 370, 280)
"""Left, top, width and height in pixels."""
MINUTES = (0.2, 0.5, 1, 2, 5, 10, 20, 60)
"""Marks of the minutes, which are logarithmic."""


@dataclass(frozen=True)
class Curve:
    """Bits per byte of one head on the validation text along training, means over seeds."""

    label: str
    colour: str
    minutes: list[float]
    bits: list[float]


@dataclass(frozen=True)
class Axes:
    """The ends of both axes: bits per byte, and minutes, which are logarithmic."""

    lowest: float
    highest: float
    first: float
    last: float

    def x(self, minutes: float) -> float:
        """Return the place of a time, in pixels."""
        share = (log(minutes) - log(self.first)) / (log(self.last) - log(self.first))
        return PANEL[0] + PANEL[2] * min(max(0.0, share), 1.0)

    def y(self, bits: float) -> float:
        """Return the place of bits per byte, in pixels."""
        inside = max(self.lowest, min(bits, self.highest))
        return PANEL[1] + PANEL[3] * (self.highest - inside) / (self.highest - self.lowest)

    def lines(self) -> list[str]:
        """Return the elements of the axes."""
        left, top, width, height = PANEL
        bottom, middle = top + height, top + height / 2
        lines = []
        for tenths in range(round(10 * self.lowest), round(10 * self.highest) + 1, 2):
            y = self.y(tenths / 10)
            lines.append(f'<path d="M {left} {y:.1f} h {width}" class="grid"/>')
            lines.append(f'<text x="{left - 8}" y="{y + 4:.1f}" class="end">{tenths / 10:.1f}</text>')
        for minutes in MINUTES:
            if self.first <= minutes <= self.last:
                lines.append(f'<path d="M {self.x(minutes):.1f} {top} V {bottom}" class="grid"/>')
                lines.append(f'<text x="{self.x(minutes):.1f}" y="{bottom + 18}" class="middle">{minutes:g}</text>')
        lines.append(f'<path d="M {left} {top} V {bottom} H {left + width}" fill="none" stroke="#222"/>')
        lines.append(f'<text x="{left + width / 2}" y="{bottom + 40}" class="middle">minutes of training steps</text>')
        label = f'<text x="16" y="{middle}" class="middle" transform="rotate(-90 16 {middle})">bits per byte</text>'
        return [*lines, label]


def curve_of(entry: Standing, label: str, colour: str) -> Curve:
    """Return the curve of a head; the minutes are those of training steps at the median speed of its runs."""
    first = entry.rows[0]
    per_step = entry.tokens / int(first["steps"])
    speed = speed_of(entry)
    bits = float(first["val_bits_per_byte"]) / float(first["val_loss_nats"])
    curves = [curve_points(row) for row in entry.rows]
    steps = sorted(set.intersection(*map(set, curves)))
    losses = [fmean(curve[step] for curve in curves) * bits for step in steps]
    return Curve(label, colour, [step * per_step / speed / 60 for step in steps], losses)


def draw_curves(subtitle: str, curves: list[Curve], axes: Axes) -> str:
    """Return the SVG of bits per byte against minutes."""
    left, top, width, height = PANEL
    body = [
        f'<text x="{left}" y="22" class="title">Bits per byte against minutes on one CPU core</text>',
        f'<text x="{left}" y="42">{subtitle}; down and to the left is better</text>',
        *axes.lines(),
    ]
    taken: list[float] = []
    for curve in sorted(curves, key=lambda curve: curve.bits[-1]):
        points = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in zip(curve.minutes, curve.bits, strict=True))
        last = f'cx="{axes.x(curve.minutes[-1]):.1f}" cy="{axes.y(curve.bits[-1]):.1f}"'
        body.append(f'<polyline points="{points}" fill="none" stroke="{curve.colour}" stroke-width="2"/>')
        body.append(f'<circle {last} r="4" fill="{curve.colour}"/>')
        y = min([axes.y(curve.bits[-1]), *(other - 17 for other in taken[-1:])])
        taken.append(y)
        label = f"{curve.label}: {curve.bits[-1]:.3f}"
        body.append(f'<text x="{left + width + 10}" y="{y + 4:.1f}" style="fill:{curve.colour}">{escape(label)}</text>')
    wide, high = left + width + 200, top + height + 50
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" '
        'role="img">\n<title>Bits per byte of heads against minutes of training on one CPU core</title>\n'
        "<style>text{font:13px sans-serif;fill:#222}.title{font-weight:bold;font-size:16px}"
        ".middle{text-anchor:middle}.end{text-anchor:end}.grid{stroke:#ddd}</style>\n"
        '<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def draw_summary(board: Board) -> str:
    """Return the picture of one place of the contest at equal tokens, on the half that settings were chosen by."""
    place, entries = board
    found = [(head, entry) for head in COLOURS if (entry := find(entries, head))]
    curves = [curve_of(entry, NAMES.get(head, head), COLOURS[head]) for head, entry in found]
    return draw_curves(title_of(place), curves, Axes(1.0, 1.8, 0.2, 20))


def draw_equal_time(board: Board) -> str:
    """Return the picture of one place of the contest at equal time."""
    place, entries = board
    found = [(variant_of(entry), entry) for entry in entries]
    last = float(place.rows[0]["minutes"])
    curves = [curve_of(entry, name, TIMED[name]) for name, entry in found if name in TIMED]
    for curve in curves:  # the steps are those that fit into the time at the speed that was measured before
        curve.minutes[:] = [last * minutes / curve.minutes[-1] for minutes in curve.minutes]
    highest = 0.1 * ceil(10 * max(curve.bits[0] for curve in curves))
    lowest = 0.1 * floor(10 * min(curve.bits[-1] for curve in curves))
    return draw_curves(title_of(place), curves, Axes(lowest, highest, last / 10, last))


def pictures() -> dict[str, str]:
    """Return every picture by its place in docs/."""
    found = {f"heads/{name}.svg": draw(name, steps) for name, steps in PICTURES.items()}
    tokens, time = boards("equal-tokens"), boards("equal-time")
    found |= {"results/summary.svg": draw_summary(tokens[0])} if tokens else {}
    return found | ({"results/equal-time.svg": draw_equal_time(time[0])} if time else {})


def main() -> None:
    """Write all pictures."""
    for name, text in pictures().items():
        (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
