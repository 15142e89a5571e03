"""The table of promises: every fault test says what it counted, and the end of the session shows it."""

import os
from collections.abc import Callable

import pytest
from fault_tools import BASE_SEED, LOG, SUITES

COLLECTED: list[tuple[str, str, str]] = []
SWEEPS = {
    "again_completes_every_job_once[short": ("sweep driver killed at 2 moments", "every job ended once"),
    "again_completes_every_job_once[long": ("sweep driver killed at 15 moments", "12 jobs, each ended once"),
    "diverging_starved": (
        "a sweep with jobs that diverge, starve, are killed",
        "named with their reasons, others finish",
    ),
}
"""What the tests of sweeps count, which stand in a file of their own."""


def pytest_collection_modifyitems(config, items) -> None:
    """Of a session that replays one trial, keep the test that it belongs to."""
    asked = os.environ.get("FAULT_TRIAL", "").partition(":")[0]
    if not asked:
        return
    if asked not in SUITES:
        raise pytest.UsageError(f"FAULT_TRIAL={asked}: there are {', '.join(SUITES)}")
    config.hook.pytest_deselected(items=[item for item in items if item.name != SUITES[asked]])
    items[:] = [item for item in items if item.name == SUITES[asked]]


@pytest.fixture
def figure(record_property) -> Callable[[str, str], None]:
    """Put one line into the table: what is promised, and what was counted."""
    return lambda promise, counted: record_property("figure", (promise, counted))


@pytest.fixture(scope="session")
def split_texts(texts) -> dict[str, str]:
    return {"train": texts["train"], "valid": texts["valid"]}


@pytest.fixture
def config(split_texts, cache_dir) -> Callable:
    """`small_config` on the session's text and cache, prepared before anything is forked."""
    from fault_tools import small_config

    from grouped_lm.data import prepare_data

    def make(head: str = "grouped", **train):
        made = small_config(split_texts, cache_dir, head, **train)
        prepare_data(made.data, made.tokenizer)
        return made

    import torch

    torch.set_num_threads(1)  # a pool of threads would not survive a fork
    return make


def pytest_runtest_logreport(report) -> None:
    if report.when == "call":
        for name, (promise, counted) in SWEEPS.items():
            if name in report.nodeid:
                COLLECTED.append((promise, counted if report.passed else "FAILED", report.nodeid))
        for name, value in report.user_properties:
            if name == "figure":
                test = report.nodeid.removeprefix("tests/faults/")
                COLLECTED.append((value[0], value[1] if report.passed else "FAILED", test))


def pytest_terminal_summary(terminalreporter) -> None:
    if not COLLECTED:
        return
    lines = [f"| {promise} | {counted} | `{test}` |" for promise, counted, test in COLLECTED]
    table = "\n".join(["| promise | counted | test |", "|---|---|---|", *sorted(lines)])
    terminalreporter.section("what it promises")
    terminalreporter.write_line(table)
    terminalreporter.write_line(f"seeds from {BASE_SEED}; every trial with the command that replays it: {LOG}")
    if LOG.suffix:
        LOG.parent.mkdir(parents=True, exist_ok=True)
        LOG.with_suffix(".md").write_text(table + "\n")
