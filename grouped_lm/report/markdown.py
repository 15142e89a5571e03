"""Tables in Markdown."""

from collections.abc import Sequence


def escape(text: str) -> str:
    """Return a cell's text on one line."""
    return " ".join(text.split()).replace("|", "\\|")


def markdown_table(columns: Sequence[tuple[str, str, str]], cells: Sequence[Sequence[str]]) -> str:
    """Return a table; figures stand to the right.

    Args:
        columns: label, key and format of each; the format of texts is "{}".
        cells: rows of what is shown.
    """
    lines = [[label for label, _, _ in columns], ["---" if form == "{}" else "---:" for _, _, form in columns], *cells]
    return "".join(f"| {' | '.join(map(escape, line))} |\n" for line in lines)
