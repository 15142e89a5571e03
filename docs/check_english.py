"""Check the length of sentences in README.md and docs/, and the size of README.md.

Usage: python docs/check_english.py. It prints every problem, and exits with 1 if there is one.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_WORDS = 45
"""Words in a sentence of docs/."""
LONG_WORDS = 40
LONG_SHARE = 0.02
"""Share of sentences of README.md that may have more words than `LONG_WORDS`."""
MEAN_WORDS, SHORTEST = 16.0, 5
"""Words in a sentence on average, over all pages. Shorter ones are cells of tables and labels; they do not count."""
README_LINES, README_COLUMNS, README_WORDS = 200, 100, 1600


def blocks(text: str) -> Iterator[str]:
    """Yield paragraphs, list items and table cells without code, comments, pictures and link targets."""
    text = re.sub(r"^ *```.*?^ *```$", "\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->|!\[[^\]]*\][(\[][^)\]]*[)\]]", "\n", text, flags=re.DOTALL)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|#]|\d+\.) ?)", text):
        line = " ".join(paragraph.split())
        if line.startswith("|"):
            yield from (cell.strip() for cell in line.strip("|").split("|") if cell.strip(" -:"))
        elif line and not line.startswith(("#", "???", "[")) and not paragraph.startswith("        "):
            yield re.sub(r"^(?:[-*]|\d+\.) ", "", line)


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a page; a colon does not end one."""
    for block in blocks(text):
        yield from (part for part in re.split(r"(?<=[.!?])[*_)\"]*\s+(?=[A-Z0-9`*\"(\[])", block) if part)


def n_words(sentence: str) -> int:
    """Return the number of words; marks and operators are none."""
    return sum(bool(re.search(r"[A-Za-z0-9]", word)) for word in sentence.split())


def problems() -> list[str]:
    """Return one line per problem."""
    found: list[str] = []
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = readme.splitlines()
    if len(lines) > README_LINES:
        found.append(f"README.md has {len(lines)} lines, more than {README_LINES}")
    if len(readme.split()) > README_WORDS:
        found.append(f"README.md has {len(readme.split())} words, more than {README_WORDS}")
    found += [
        f"README.md, line {n} has {len(line)} columns" for n, line in enumerate(lines, 1) if len(line) > README_COLUMNS
    ]
    counts = [n_words(sentence) for sentence in sentences(readme)]
    long = sum(count > LONG_WORDS for count in counts)
    if long > LONG_SHARE * len(counts):
        found.append(f"README.md has {long} of {len(counts)} sentences over {LONG_WORDS} words")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for sentence in sentences(page.read_text(encoding="utf-8")):
            counts.append(n_words(sentence))
            if counts[-1] > MAX_WORDS:
                found.append(f"{page.relative_to(ROOT)}: {counts[-1]} words: {sentence}")
    whole = [count for count in counts if count >= SHORTEST]
    mean = sum(whole) / len(whole)
    if mean > MEAN_WORDS:
        found.append(f"sentences have {mean:.1f} words on average, more than {MEAN_WORDS:g}")
    return found


if __name__ == "__main__":
    lines_found = problems()
    print("\n".join(lines_found))
    sys.exit(bool(lines_found))
