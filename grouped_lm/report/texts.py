"""Refuse a leaderboard that would compare or merge runs on different texts under one name."""

from collections.abc import Sequence
from pathlib import Path

from grouped_lm.errors import ConfigError
from grouped_lm.report.contest import BUDGET, SETTING
from grouped_lm.report.diff import input_changes
from grouped_lm.runs.folder import RunFolder
from grouped_lm.runs.load import load_config
from grouped_lm.runs.query import Row
from grouped_lm.runs.table import text_contents
from grouped_lm.system.files import read_json_dict
from grouped_lm.system.tables import group_rows

VALID_LIMIT = "data.max_valid_tokens"


def refuse_mixed_texts(rows: Sequence[tuple[Row, Path]], key: Sequence[str]) -> None:
    """Raise a `ConfigError` if runs of one place have different texts, or runs of one row different tokenizer files.

    Runs without a readable inputs.json are not compared, since their texts are not known.

    Args:
        rows: the leaderboard's row of each run, and its folder.
        key: the columns that identify a row.
    """
    known = [own | {"run": path} for own, path in rows if read_json_dict(RunFolder(path).inputs)]
    for minutes in (True, False):
        timed = [row for row in known if bool(row.get("minutes")) == minutes]
        for same in group_rows(timed, BUDGET if minutes else SETTING).values():
            _refuse_others([row["run"] for row in same], ("data.train", "data.valid", VALID_LIMIT))
    for same in group_rows(known, key).values():
        _refuse_others([row["run"] for row in same], ("tokenizer.file",))


def _refuse_others(runs: Sequence[Path], keys: Sequence[str]) -> None:
    """Raise a `ConfigError` if a run differs from the first one in one of the inputs or settings `keys`."""
    first, texts = runs[0], [_text(run) for run in runs]
    for run, text in zip(runs, texts, strict=True):
        differ = [key for key in keys if text.get(key) != texts[0].get(key)]
        if differ:
            limits = [f"{VALID_LIMIT} {texts[0][VALID_LIMIT]} -> {text[VALID_LIMIT]}"] if VALID_LIMIT in differ else []
            what = ", ".join(filter(None, [input_changes(first, run), *limits])) or ", ".join(differ)
            raise ConfigError(
                f"{first} and {run} have different texts under one name ({what}): rank the runs of each text alone, "
                "and give --data NAME for each"
            )


def _text(run: Path) -> Row:
    """Return the contents of a run's text and tokenizer file by their keys, and the limit of its validation."""
    contents = text_contents(read_json_dict(RunFolder(run).inputs) or {})
    return contents | {VALID_LIMIT: load_config(run).data.max_valid_tokens}
