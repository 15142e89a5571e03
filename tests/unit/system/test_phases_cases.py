"""Phases and bars on terminals of several widths, and as plain lines elsewhere."""

import io
import re
import sys
import threading

import pytest

from grouped_lm.system import phases
from grouped_lm.system.console import TrainDisplay, one_line
from grouped_lm.system.phases import format_seconds, phase, track

ROW = {
    "train/loss": 6.1234,
    "train/perplexity": 456.7,
    "throughput/tokens_per_sec": 12345.0,
    "memory/peak_tensor_gib": 0.25,
}


class Stream(io.StringIO):
    """A stderr that is a terminal, or a file that says when a line arrives."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal, self.arrived = terminal, threading.Event()

    def isatty(self) -> bool:
        return self.terminal

    def flush(self) -> None:
        if self.getvalue():
            self.arrived.set()


@pytest.fixture
def stderr(monkeypatch):
    def make(terminal: bool, width: int = 80) -> Stream:
        stream = Stream(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(phases, "_shown", True)
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm-256color")
        return stream

    return make


def lines_of(stream: Stream) -> list[str]:
    """Return what a terminal was sent, without colours and movements of the cursor."""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def test_case_U2_a_terminal_shows_each_phase_and_leaves_nothing(stderr):
    stream = stderr(terminal=True)
    with phase("reading the text"):
        pass
    assert list(track(iter("abc"), "validating", 3)) == ["a", "b", "c"]
    shown = lines_of(stream)
    assert any("reading the text" in line for line in shown)
    assert any("validating" in line and "0/3" in line for line in shown)
    assert stream.getvalue().rstrip("\r").endswith("\x1b[2K\x1b[?25h")  # the last line is erased
    assert phases._open == []
    assert phases._progress is None


def test_case_U2_a_phase_of_several_steps_has_a_true_time_left(stderr, monkeypatch):
    stderr(terminal=False)
    now = 100.0
    monkeypatch.setattr(phases.time, "monotonic", lambda: now)
    with phase("validating", 278) as shown:
        assert shown.describe() == "validating: 0 s so far"
        now = 103.0
        shown.advance(139)
        assert shown.describe() == "validating: 139 of 278, about 0:03 left"


def test_case_U2_elsewhere_a_long_phase_is_a_plain_line(stderr, monkeypatch):
    monkeypatch.setattr(phases, "PLAIN_AFTER_S", 0.0)
    stream = stderr(terminal=False)
    with phase("grouping"):
        assert stream.arrived.wait(60)
    assert re.fullmatch(r"gvc: grouping: \d+ s so far\n", stream.getvalue())


def test_case_U2_elsewhere_a_short_phase_says_nothing(stderr, monkeypatch):
    monkeypatch.setattr(phases, "PLAIN_AFTER_S", 3600.0)
    stream = stderr(terminal=False)
    with phase("grouping"):
        pass
    assert stream.getvalue() == ""


def test_case_U2_a_library_shows_no_phases(stderr, monkeypatch):
    stream = stderr(terminal=True)
    monkeypatch.setattr(phases, "_shown", False)
    with phase("grouping"):
        pass
    assert stream.getvalue() == ""


def test_case_U2_of_several_processes_the_first_one_shows(monkeypatch):
    for rank, shown in (("0", True), ("1", False), ("", True)):
        monkeypatch.setenv("RANK", rank)
        phases.show_phases()
        assert phases._shown is shown
    monkeypatch.setattr(phases, "_shown", False)


def bar_width(stderr, width: int) -> int:
    stream = stderr(terminal=True, width=width)
    with TrainDisplay("gpt2-1m shortlist", 300, 0) as display:
        display.row(120, ROW)
        phases._progress.refresh()
    lines = lines_of(stream)
    assert max(map(len, lines)) <= width
    line = next(line for line in lines if "120/300" in line)
    assert ("loss 6.123" in line) == (width >= 80)
    assert ("peak 256.0 MiB" in line) == (width == 200)
    return sum(character in "━╸╺" for character in line)


def test_case_U7_the_bar_uses_the_width(stderr):
    narrow, usual, wide = (bar_width(stderr, width) for width in (60, 80, 200))
    assert narrow >= 10
    assert usual >= 16
    assert wide >= 100


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (None, "loss 6.123  ppl 456.7  12,345 tok/s  peak 256.0 MiB"),
        (40, "loss 6.123  ppl 456.7  12,345 tok/s"),
        (24, "loss 6.123  12,345 tok/s"),
        (12, "loss 6.123"),
        (3, ""),
    ],
)
def test_case_U7_figures_that_do_not_fit_are_left_out(width, line):
    assert one_line(ROW, width) == line


def test_times():
    assert [format_seconds(s) for s in (0, 31.4, 90, 3751)] == ["0:00", "0:31", "1:30", "1:02:31"]


def test_a_line_said_during_a_phase_stands_above_it_and_wraps_between_words(stderr):
    stream = stderr(terminal=True, width=40)
    words = " ".join(["shortlist"] * 12)
    with phase("training"):
        phases.say(words)
    phases.say(words)
    said = [line for line in lines_of(stream) if "shortlist" in line]
    assert [" ".join(said[:3]), " ".join(said[3:])] == [words, words]
    assert max(map(len, said)) <= 40
