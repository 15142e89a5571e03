"""Every `gvc train` command in README.md and docs/ composes."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
NOT_HERE = ("-m", "hydra/", "init_from=RUN")
"""Jobs and launchers, which a config of one run has not, and a run folder."""


def train_commands() -> list[str]:
    """Return every command once; pages of docs/extend name what they add themselves."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.parent.name != "extend")
    lines = re.findall(r"^(?:srun .*?)?gvc train\b(.*)$", text, re.MULTILINE)
    commands = {line.split("  #")[0].split("||")[0].strip() for line in lines}
    return sorted(line for line in commands if not any(word.startswith(NOT_HERE) for word in line.split()))


@pytest.mark.parametrize("command", train_commands())
def test_a_train_command_composes(gvc, workdir, command):
    result = gvc("train", *shlex.split(command), "--cfg", "job")
    assert result.code == 0, result.err
