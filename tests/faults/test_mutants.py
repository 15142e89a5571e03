"""A suite that cannot fail shows nothing: with one line taken out, at least one test fails; with none, all pass."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS

HERE = Path(__file__).parent


def run_tests(mutant: str, tests: str) -> subprocess.CompletedProcess:
    path, *flags = tests.split()
    command = [sys.executable, "-m", "pytest", "-x", "-p", "mutants", "-p", "no:cacheprovider", str(HERE / path)]
    environment = os.environ | {"MUTANT": mutant, "PYTHONPATH": str(HERE), "FAULT_LOG": os.devnull}
    environment = {key: value for key, value in environment.items() if not key.startswith(("PYTEST_", "FAULT_TRIAL"))}
    return subprocess.run([*command, *flags], cwd=HERE.parents[1], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_line_to_take_out_is_there(mutant):
    room, old, *_ = MUTANTS[mutant]
    assert old in Path(importlib.import_module(f"grouped_lm.{room}").__file__).read_text(encoding="utf-8")


@pytest.mark.faults
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_missing_line_is_noticed(mutant, figure):
    tests = MUTANTS[mutant][3]
    done = run_tests(mutant, tests)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "FAILURES" in done.stdout
    figure(f"without the {mutant}", f"`{tests}` fails")
