"""Draw the pictures of the documentation as SVG.

Usage: python docs/pictures.py. It writes

- docs/heads/NAME.svg: which softmaxes a token's probability is made of, with the numbers of GPT-2's vocabulary;
- docs/results/summary.svg: loss against speed, from the committed figures.
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

from docs_tables import DEFAULT, DEFAULT_LABEL, DENSE_BIAS, DENSE_PLAIN, HEADS, Row, difference, step_rows

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


@dataclass(frozen=True)
class Point:
    """A head in the picture of loss against speed."""

    label: str
    settings: Row
    """Of its rows in leaderboard.csv."""
    bench: str
    """Its name in default-head/bench-steps.csv."""
    colour: str


POINTS = (
    Point("dense with biases", DENSE_BIAS, "dense", "#222222"),
    Point("dense as in GPT-2", DENSE_PLAIN, "dense", "#777777"),
    Point("the default head", DEFAULT, DEFAULT_LABEL, "#d55e00"),
    Point("adaptive softmax", HEADS["`adaptive`"], "adaptive", "#009e73"),
    Point("grouped (the paper's head)", HEADS["`grouped`, the paper's head"], "grouped", "#0072b2"),
)
PANELS = {
    "width 128, 3 layers": ("stories, width 128", "gpt2-128x3"),
    "width 256, 4 layers": ("stories, width 256", "gpt2-256x4"),
}
"""Title of each panel, its place in `docs_tables.PLACES`, and its body in the benchmark."""
PANEL_WIDTH, PANEL_HEIGHT, GAP, TOP = 330, 250, 56, 74
"""Pixels."""
FASTEST, LOWEST, HIGHEST = 10.0, -0.12, 0.68
"""Ends of the axes: speed over dense, and nats."""


def draw_summary() -> str:
    """Return the SVG of loss against speed."""
    body = [
        f'<text x="{GAP}" y="22" class="title">Loss against speed: better is down and to the right</text>',
        f'<text x="{GAP}" y="42">TinyStories, GPT-2 body, three seeds, 95 % intervals; speed on one CPU thread</text>',
    ]
    for number, (title, (place, model)) in enumerate(PANELS.items()):
        left = GAP + number * (PANEL_WIDTH + GAP)
        body += _axes(left, title, number == 0)
        for point in POINTS:
            body += _point(point, place, model, left)
    width, height = GAP + 2 * (PANEL_WIDTH + GAP) - 24, TOP + PANEL_HEIGHT + 50
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img">\n<title>Loss of heads minus that of the best dense head, against their speed</title>\n'
        "<style>text{font:13px sans-serif;fill:#222}.title{font-weight:bold;font-size:16px}.bold{font-weight:bold}"
        ".middle{text-anchor:middle}.end{text-anchor:end}.grid{stroke:#ddd}</style>\n"
        '<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _x(left: float, speed: float) -> float:
    return left + PANEL_WIDTH * speed / FASTEST


def _y(nats: float) -> float:
    return TOP + PANEL_HEIGHT * (HIGHEST - nats) / (HIGHEST - LOWEST)


def _axes(left: float, title: str, first: bool) -> list[str]:
    bottom = TOP + PANEL_HEIGHT
    lines = [f'<text x="{left + PANEL_WIDTH / 2}" y="{TOP - 8}" class="middle bold">{title}</text>']
    for nats in (0.0, 0.2, 0.4, 0.6):
        lines.append(f'<path d="M {left} {_y(nats):.1f} h {PANEL_WIDTH}" class="grid"/>')
        lines.append(f'<text x="{left - 6}" y="{_y(nats) + 4:.1f}" class="end">{nats:.1f}</text>')
    for speed in (1, 2, 4, 6, 8, 10):
        lines.append(f'<text x="{_x(left, speed):.1f}" y="{bottom + 18}" class="middle">{speed}x</text>')
    lines.append(f'<path d="M {left} {TOP} V {bottom} H {left + PANEL_WIDTH}" fill="none" stroke="#222"/>')
    lines.append(
        f'<text x="{left + PANEL_WIDTH / 2}" y="{bottom + 40}" class="middle">training speed over dense</text>'
    )
    if first:
        middle = TOP + PANEL_HEIGHT / 2
        label = "loss minus best dense, nats"
        lines.append(f'<text x="14" y="{middle}" class="middle" transform="rotate(-90 14 {middle})">{label}</text>')
    return lines


def _point(point: Point, place: str, model: str, left: float) -> list[str]:
    found = difference(place, point.settings)
    assert found is not None, point.label
    nats, interval = found
    speed = float(step_rows("default-head/bench-steps.csv")[model, point.bench]["over_dense"])
    x, y = _x(left, speed), _y(nats)
    lines = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{point.colour}"/>']
    if interval and nats:
        low, high = (min(max(_y(value), TOP), TOP + PANEL_HEIGHT) for value in interval)
        lines.append(f'<path d="M {x:.1f} {low:.1f} V {high:.1f}" stroke="{point.colour}" stroke-width="1.5"/>')
    at, anchor = ((x + 10, y + 4), "start") if speed < 7 else ((x - 10, y + 4), "end")
    style = f"fill:{point.colour};text-anchor:{anchor}"
    lines.append(f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" style="{style}">{escape(point.label)}</text>')
    return lines


def pictures() -> dict[str, str]:
    """Return every picture by its place in docs/."""
    found = {f"heads/{name}.svg": draw(name, steps) for name, steps in PICTURES.items()}
    return found | {"results/summary.svg": draw_summary()}


def main() -> None:
    """Write all pictures."""
    for name, text in pictures().items():
        (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
