"""The page in a real browser: two widths, light and dark, print."""

import os
import re
import shutil
from pathlib import Path

import pytest
from made_up import make_evidence

from grouped_lm.report.style import styles_by_head
from grouped_lm.reproduction.claims import load_claims
from grouped_lm.reproduction.evidence import write_evidence
from grouped_lm.reproduction.page import write_report
from grouped_lm.reproduction.pictures import bench_pictures, style
from grouped_lm.reproduction.report import SECTIONS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_evidence(make_evidence(), folder / "data")
    return write_report([folder], folder, lambda _: None)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        if os.environ.get("CI_NEEDS_CHROMIUM"):
            pytest.fail("no chromium here, and this run must have one")
        pytest.skip("no chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


BROKEN_PICTURES = """
[...document.querySelectorAll('svg')].filter(svg => {
    const box = svg.getBoundingClientRect();
    const uses = [...svg.querySelectorAll('use')];
    const missing = uses.filter(use => !document.querySelector(use.getAttribute('xlink:href')));
    return box.width < 200 || box.height < 100 || missing.length || svg.querySelectorAll('path').length < 10
        || !svg.getAttribute('aria-label');
}).map(svg => svg.getAttribute('aria-label'))
"""
COVERED = """
[...document.querySelectorAll('h1, h2, h3, p, li, figcaption, article')].filter(e => e.scrollWidth > e.clientWidth + 1
    && getComputedStyle(e).overflowX === 'visible').map(e => e.textContent.slice(0, 60))
"""
HIDDEN = """
[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.textContent.slice(0, 60))
"""
INK = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(browser, report, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert said == []
    assert asked == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (
        page.evaluate("document.querySelectorAll('svg').length")
        == len(list((report.parent / "figures").iterdir()))
        > 14
    )
    assert page.evaluate(BROKEN_PICTURES) == []
    assert page.evaluate(COVERED) == []
    assert width < 1000 or page.evaluate(HIDDEN) == []  # on a phone tables are moved sideways
    ink, paper = (sum(map(int, re.findall(r"\d+", color)[:3])) for color in page.evaluate(INK))
    assert (ink < 150 < 600 < paper) if scheme == "light" else (paper < 150 < 600 < ink)
    page.emulate_media(media="print", color_scheme=scheme)
    ink, paper = (sum(map(int, re.findall(r"\d+", color)[:3])) for color in page.evaluate(INK))
    assert ink < 150 < 600 < paper  # dark pages are printed dark on white too
    page.close()


def test_pictures_are_visible_in_dark(browser, report):
    """A line and a letter of a picture take the page's colours, not matplotlib's black."""
    page = browser.new_page(color_scheme="dark")
    page.goto(report.as_uri())
    fills = page.evaluate("[...document.querySelectorAll('svg text, svg use')].map(e => getComputedStyle(e).fill)")
    assert fills
    assert "rgb(0, 0, 0)" not in fills
    page.close()


def test_a_head_has_one_colour_on_every_picture():
    names = [
        "dense",
        "dense, chunked",
        "grouped",
        "grouped, at random",
        "shortlist",
        "film",
        "class_full, tied",
        "no head",
    ]
    styles = styles_by_head(names)
    assert styles.keys() == set(names)
    assert styles["grouped"][0] == styles["grouped, at random"][0] == style("paper")[0]
    assert styles["dense"][0] == styles["dense, chunked"][0] == style("dense")[0]
    assert styles["shortlist"] == style("ours")
    assert len({s[0] for s in styles.values()}) == 6
    assert len({s[:2] for s in styles.values()}) == len(names)  # in grey too


def test_a_picture_of_vocabularies_says_how_far_each_curve_goes():
    evidence = make_evidence()
    for row in evidence["bench-vocab"]:
        if row["head"] == "dense" and row["vocab_size"] > 200_000:
            del row["ms"]
    memory, time = (entry for entry in bench_pictures(load_claims(), evidence) if entry.section == "vocabularies")
    assert "dense up to 1,000,000 tokens" in memory.alt
    assert "dense up to 100,000 tokens, grouped up to 1,000,000 tokens" in time.alt
    assert memory.alt != time.alt


def test_the_page_is_one_file_with_everything(report):
    html = report.read_text(encoding="utf-8")
    for key in SECTIONS:
        assert f'<section id="{key}">' in html
    assert "&lt;b&gt;fox&lt;/b&gt;" in html  # what models write is text
    assert "<b>fox" not in html
    addresses = {
        address for address in re.findall(r'(?:href|src)="([^"#][^"]*)"', html) if not address.startswith("data:")
    }
    assert addresses == {"https://arxiv.org/abs/2411.06371"}  # to be clicked; nothing is loaded
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert html.count("<svg") == html.count('role="img" aria-label="')


@pytest.mark.parametrize("words", [(), ("--out", ".")])
def test_files_of_others_are_left_alone(gvc, workdir, words):
    mine = [Path(name) for name in ("figures/thesis.pdf", "tables/my.csv", "data/stories.csv", "report.md")]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    write_evidence(make_evidence(), Path("made/data"))
    outcome = gvc("report", "." if not words else "made", *words)
    assert [path.read_text() for path in mine] == ["mine"] * 4
    assert outcome.code == (3 if words else 0)
    assert ("give another --out" in outcome.err) == bool(words)
    assert Path("report/report.md").is_file() == (not words)
