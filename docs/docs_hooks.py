"""MkDocs hooks: pages that are generated at every build, and links to files outside docs/.

A page may link to a figure or a table of runs/results by its path in the repository. The site gets a copy of it.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?:\.\./)+runs/results/([^)\s]+)\)")
"""A link from a page to a committed result."""
COPIED = {"develop/contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages of the site that are files at the top of the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the results that pages link to."""
    import sys

    sys.path.insert(0, str(ROOT / "docs"))
    from docs_reference import reference_pages

    for name, text in reference_pages().items():
        files.append(File.generated(config, name, content=text))
    for name, source in COPIED.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    report = (ROOT / "runs/results/cpu/report.md").read_text(encoding="utf-8")
    report = "---\nhide:\n  - navigation\n---\n\n" + report.replace("](figures/", "](../../runs/results/cpu/figures/")
    files.append(File.generated(config, "results/report.md", content=report))
    linked = set(LINK.findall(report))
    linked |= {found for page in (ROOT / "docs").rglob("*.md") for found in LINK.findall(page.read_text("utf-8"))}
    for path in sorted(linked):
        files.append(File.generated(config, f"runs/{path}", abs_src_path=str(ROOT / "runs" / "results" / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to runs/results at the site's copies."""
    up = "../" * page.file.src_uri.count("/")
    return LINK.sub(lambda found: f"]({up}runs/{found[1]})", markdown)
