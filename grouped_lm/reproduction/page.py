"""Write a report: tables as CSV, pictures as SVG, report.md, and report.html, one file that loads nothing else.

The same runs give the same bytes: no clock and no path of the machine is written.
"""

import html
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from grouped_lm.errors import RunFolderError, disk_errors
from grouped_lm.reproduction.evidence import DATA, TABLES, collect_evidence, read_evidence, write_evidence
from grouped_lm.reproduction.pictures import Picture
from grouped_lm.reproduction.report import HEADING, Report, make_report, report_markdown
from grouped_lm.system.files import write_text

OURS = ("report.md", "report.html", "tables", "figures")
"""Files and folders of a report beside `data`. Files in these folders that are not of the report are deleted."""


def default_place(folder: Path) -> Path:
    """Return where the report of `folder` is written: into an existing report, else into `report` below it."""
    return folder if is_report(folder) else folder / "report"


def is_report(folder: Path) -> bool:
    """Return whether a folder holds a report, or only the tables that a report is made from."""
    page = folder / "report.md"
    if page.is_file():
        with page.open(encoding="utf-8", errors="replace") as file:
            return file.readline().rstrip("\n").endswith(HEADING)
    if any((folder / name).exists() for name in OURS) or not (folder / DATA).is_dir():
        return False
    if not {path.name for path in (folder / DATA).iterdir()} <= {f"{name}.csv" for name in TABLES}:
        return False
    problems: list[str] = []
    return bool(read_evidence(folder, problems.append)) and not problems


def write_report(folders: list[Path], out: Path, say: Callable[[str], None]) -> Path:
    """Write the report of everything in `folders` into `out`, and return the path of its page.

    Without jinja2 there is no HTML, without matplotlib there are no pictures. The rest is written.

    Args:
        folders: run folders, folders of them, benches, or an earlier report.
        out: gets report.html, report.md, data/ (what the report is made from), tables/ and figures/.
        say: shows a line about each thing that is left out.

    Raises:
        RunFolderError: a folder does not exist, or `out` has other files with these names.
        DiskError: the disk is full.
    """
    if not is_report(out) and (taken := [name for name in (*OURS, DATA) if (out / name).exists()]):
        raise RunFolderError(f"{out} holds {', '.join(taken)} of something else than a report: give another --out")
    collected = collect_evidence(folders, say)
    with disk_errors(out):
        write_evidence(collected, out / DATA)
        report = make_report(read_evidence(out) or collected, say)
        for row in report.tables["broken"].rows if "broken" in report.tables else []:
            say(f"gvc: {row['run']}: {row['state']}" + (f", {row['reason']}" if row.get("reason") else ""))
        write_text(out / "report.md", report_markdown(report))  # first: `is_report` looks for it
        _write_files(out / "tables", {f"{table.name}.csv": table.csv() for table in report.tables.values()})
        _write_files(out / "figures", {f"{picture.name}.svg": picture.svg for picture in report.pictures})
        page = render_page(report, say)
        if page is None:
            (out / "report.html").unlink(missing_ok=True)
            return out / "report.md"
        write_text(out / "report.html", page)
    return out / "report.html"


def _write_files(folder: Path, texts: dict[str, str]) -> None:
    """Write the files of a folder, and delete the other files in it."""
    if folder.exists():
        for old in folder.iterdir():
            if old.name not in texts and old.is_file():
                old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)


def render_page(report: Report, say: Callable[[str], None]) -> str | None:
    """Return the HTML page; None if jinja2 is not installed."""
    try:
        import jinja2
    except ImportError:
        say("gvc: no page: it needs jinja2, pip install 'grouped-lm[report]'; report.md has the same")
        return None
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"code": code_html, "inline": inline_svg}
    source = files("grouped_lm.reproduction").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(report=report)


def code_html(text: str) -> Any:
    """Return a text as HTML, with `names` between backticks as code."""
    from markupsafe import Markup

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text)))


def inline_svg(picture: Picture, colors: dict[str, str]) -> str:
    """Return the `<svg>` element of a picture, with ids that begin with its name.

    Args:
        picture: its words become the label for people who cannot see it.
        colors: colour of a plot -> CSS variable of the page.
    """
    body = picture.svg[picture.svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{picture.name}-", body)
    for color, variable in colors.items():
        body = re.sub(color, f"var({variable})", body, flags=re.IGNORECASE)
    view = re.search(r'viewBox="([^"]+)"', body)
    assert view is not None  # matplotlib writes one
    label = html.escape(picture.alt, quote=True)
    opening = f'<svg viewBox="{view[1]}" role="img" aria-label="{label}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return opening + body[body.index(">") + 1 :].rstrip()
