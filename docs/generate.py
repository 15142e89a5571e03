"""Write the generated blocks of README.md and docs/, or check that they are what the committed figures say.

Usage: python docs/generate.py [--check]
"""

import re
import sys
from pathlib import Path

from docs_tables import BLOCKS, ROOT

BLOCK = re.compile(r"(<!-- block: (?P<name>[a-z0-9_-]+) -->\n).*?(<!-- end of block -->\n)", re.DOTALL)


def pages() -> list[Path]:
    """Return all pages that may have generated blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fill(text: str) -> str:
    """Return a page with every block computed from the committed CSV files.

    Raises:
        KeyError: a block has an unknown name.
    """
    return BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found['name']]()}{found[3]}", text)


def main(check: bool) -> int:
    """Write all blocks, or print the pages whose blocks are out of date; return the exit code."""
    stale = []
    for path in pages():
        before = path.read_text(encoding="utf-8")
        after = fill(before)
        if after == before:
            continue
        stale.append(path.relative_to(ROOT))
        if not check:
            path.write_text(after, encoding="utf-8")
    for path in stale:
        print(f"{'out of date' if check else 'written'}: {path}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
