"""Draw the pictures of the heads: which softmaxes a token's probability is made of.

Usage: python docs/pictures.py. It writes docs/heads/NAME.svg. Numbers are those of GPT-2's vocabulary.
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

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
                Part(0.4, "256 tokens", SHARED),
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


def main() -> None:
    """Write all pictures."""
    for name, steps in PICTURES.items():
        (Path(__file__).parent / "heads" / f"{name}.svg").write_text(draw(name, steps), encoding="utf-8")


if __name__ == "__main__":
    main()
