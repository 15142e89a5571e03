"""`gvc reproduce`, from one command to a page: killed and resumed, with what fails on the way."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_up import make_evidence
from test_steps import TINY

from grouped_lm.reproduction import page, run
from grouped_lm.reproduction.claims import load_claims
from grouped_lm.reproduction.evidence import write_evidence

GVC = str(Path(sys.executable).parent / "gvc")
WORDS = ["reproduce", "--scale", TINY, "--out", "r"]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for(pattern: str) -> None:
    """Wait until there is something at a pattern in the reproduction's folder."""
    until = time.monotonic() + 300
    while not list(Path("r").glob(pattern)) and time.monotonic() < until:
        time.sleep(0.02)


def test_a_small_reproduction_is_killed_goes_on_and_repeats_its_page(gvc):
    driver = subprocess.Popen([GVC, *WORDS], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for("main-gpt2/*/checkpoints/step-*")
    driver.kill()  # in the middle of the third step
    driver.wait()
    states = {path.stem: json.loads(path.read_text())["state"] for path in Path("r/steps").glob("*.json")}
    assert states == {"order-stories": "done", "order-other": "left out", "main-gpt2": "begun"}
    spent = json.loads(Path("r/steps/main-gpt2.json").read_text())["seconds"]

    done = gvc(*WORDS)
    assert done.code == 0, done.err
    assert done.out == "r/report/report.html\n"
    assert done.err.count("done before") == 1
    assert (
        json.loads(Path("r/steps/main-gpt2.json").read_text())["seconds"] > spent > 0
    )  # minutes before the kill count
    assert "order-other: left out, it needs a text for {other}: --data DIR" in done.err
    html = Path("r/report/report.html").read_text()
    for claim in load_claims().claims:
        assert f'<li id="claim-{claim.id}">' in html
    verdicts = Path("r/report/tables/verdicts.csv").read_text()
    assert len(re.findall("not shown at this scale", verdicts)) > 15
    for claim in ("on-par-gpt2", "throughput", "sqrt-v", "merge-order", "vocabularies"):
        assert f'<li id="claim-{claim}">' in html
        assert re.search(rf'<li id="claim-{claim}">.*?<span class="badge open">not shown', html, re.DOTALL)
    assert "Once" in Path("r/report/data/stories.csv").read_text()
    assert (Path("r/report/tables") / "memory-parts.csv").exists()

    before = snapshot(Path("r/report"))
    again = gvc(*WORDS)
    assert again.code == 0, again.err
    assert again.err.count("done before") == 5
    assert snapshot(Path("r/report")) == before

    # one broken run among the runs: its line, and the page of the others
    result = next(iter(Path("r/main-gpt2").glob("[!.]*dense*"))) / "result.json"
    result.write_text(json.dumps({"state": "failed", "reason": "diverged at step 5"}))
    outcome = gvc("report", "r")
    assert outcome.code == 0
    assert outcome.err.count("\n") == 1
    assert "diverged at step 5" in outcome.err
    assert "diverged at step 5" in Path("r/report/report.html").read_text()


def test_a_step_that_fails_stops_no_other_and_is_named(gvc, tmp_path):
    (tmp_path / "own.yaml").write_text(
        "about: two steps\nmachine: any\nminutes: 1\ntexts: {stories: data=nosuch, other: null}\nsteps:\n"
        "- {name: order, about: fails, minutes: 0.1, command: 'gvc data order {stories}'}\n"
        "- {name: report, about: page, minutes: 0.1, command: 'gvc report {out} --out {out}/report', always: true}\n"
    )
    done = gvc("reproduce", "--scale", "own.yaml", "--out", "r")
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("gvc: error: 1 of 2 steps failed: order: data=nosuch is not known")
    assert Path("r/report/report.html").exists()
    listed = gvc("reproduce", "--scale", "own.yaml", "--out", "r", "--list").out
    assert "failed (data=nosuch is not known" in listed
    assert "gvc report r --out r/report" in listed


def test_no_text_is_one_line_and_the_page_of_what_there_is(gvc):
    outcome = gvc("reproduce", "--scale", "cpu")
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (3, "", 1)
    assert "--data tinystories=DIR" in outcome.err
    assert not Path("runs").exists()
    write_evidence(make_evidence(), Path("runs/reproduce-cpu/data"))
    for words in ([], ["--data", "nowhere"]):
        assert gvc("reproduce", "--scale", "cpu", *words).code == 3
        assert "does not hold" in Path("runs/reproduce-cpu/report/report.md").read_text()


def test_two_at_once_and_unknown_steps(gvc):
    work = run.Reproduction(run.Scale(name="tiny", about="", machine="", minutes=1, texts={}, steps=[]), Path("r"), [])
    with work.lock():
        busy = gvc(*WORDS, "--only", "report")
    assert (busy.code, len(busy.err.splitlines())) == (3, 1)
    assert gvc(*WORDS, "--only", "nosuch").code == 2
    assert gvc("reproduce", "--scale", "enormous").code == 2
    Path("file").write_text("mine")
    outcome = gvc(*WORDS[:-1], "file")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "--out file is a file" in outcome.err


def test_texts_without_tinystories_are_refused_before_anything_is_done(gvc):
    Path("prose").mkdir()
    for split in ("train", "valid"):
        Path(f"prose/{split}.txt").write_text("x")
    outcome = gvc("reproduce", "--scale", "cpu", "--data", "prose")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "got prose: --data tinystories=DIR" in outcome.err
    assert not Path("runs").exists()


def test_asked_to_stop_it_stops_and_so_does_its_child(workdir):
    Path("own.yaml").write_text(
        "about: one\nmachine: any\nminutes: 1\ntexts: {stories: null, other: null}\nsteps:\n"
        "- {name: long, about: long, minutes: 1, command: 'gvc data prepare data=tinytales"
        " data.num_train_stories=90000000'}\n"
    )
    words = [GVC, "reproduce", "--scale", "own.yaml", "--out", "r"]
    driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for("steps/long.log")
    time.sleep(0.5)
    (child,) = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
    driver.send_signal(signal.SIGTERM)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 75
    assert said.splitlines()[-1] == "gvc: stopped: 0 of 1 steps are done in r; the same command continues"
    assert not Path(f"/proc/{child}").exists()
    state = json.loads(Path("r/steps/long.json").read_text())
    assert state["state"] == "begun"
    assert state["seconds"] >= 0.5


@pytest.fixture
def made(workdir) -> Path:
    write_evidence(make_evidence(), Path("made/data"))
    return Path("made")


def test_the_same_figures_give_the_same_bytes_wherever_they_lie(made, gvc):
    assert gvc("report", "made").code == 0
    first = snapshot(made)
    assert gvc("report", "made", "--out", "elsewhere").code == 0
    assert snapshot(Path("elsewhere")) == first
    assert str(Path.cwd()) not in first["report.html"].decode()


def test_without_jinja2_or_matplotlib_there_is_what_there_is(made, gvc, monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "jinja2", None)
        outcome = gvc("report", "made")
    assert outcome.code == 0
    assert [line for line in outcome.err.splitlines() if "grouped-lm[report]" in line] == [
        "gvc: no page: it needs jinja2, pip install 'grouped-lm[report]'; report.md has the same"
    ]
    assert "does not hold" in (made / "report.md").read_text()
    assert list((made / "figures").glob("*.svg"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = gvc("report", "made")
    assert outcome.err.count("grouped-lm[report]") == 1
    assert not list((made / "figures").glob("*.svg"))
    assert "<svg" not in (made / "report.html").read_text()


def test_a_full_disk_is_one_line(made, gvc, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "write_text", full)
    outcome = gvc("report", "made")
    assert (outcome.code, len(outcome.err.splitlines())) == (4, 2)  # the broken run is said too
    assert "cannot write made: the disk is full" in outcome.err
    monkeypatch.setattr(run, "write_json", full)
    assert gvc(*WORDS).code == 4


def test_tables_in_documents_are_held_against_the_figures(made, gvc):
    document = Path("doc.md")
    document.write_text("# Doc\n\n<!-- verdicts -->\nold\n<!-- end of verdicts -->\n\nmore\n")
    assert gvc("report", "made", "--check", "doc.md").code == 1
    assert gvc("report", "made", "--into", "doc.md").code == 0
    text = document.read_text()
    assert text.startswith("# Doc\n\n<!-- verdicts -->\n| claim |")
    assert text.endswith("<!-- end of verdicts -->\n\nmore\n")
    assert gvc("report", "made", "--check", "doc.md").code == 0
    document.write_text(text.replace("+0.900", "+0.009"))
    wrong = gvc("report", "made", "--check", "doc.md")
    assert wrong.code == 1
    assert "+0.009" in wrong.err
    document.write_text("nothing")
    assert gvc("report", "made", "--check", "doc.md").code == 2
    assert gvc("report", "made", "--check", "none.md").code == 3
    assert gvc("report", "nowhere").code == 3
