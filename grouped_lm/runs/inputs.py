"""What a run was made with: its training text, its validation text, its tokenizer file, and another run's weights."""

from pathlib import Path
from typing import Any

from grouped_lm.config import Config
from grouped_lm.data.prepare import Corpus
from grouped_lm.data.sources import open_source
from grouped_lm.data.sources.text_files import TextSource
from grouped_lm.data.text import SPLITS
from grouped_lm.runs.checkpoint import MANIFEST, list_checkpoints
from grouped_lm.runs.identity import changed_fields
from grouped_lm.system.files import read_json_dict

Inputs = dict[str, dict[str, Any]]
"""The description of each input by its config key: "data.train", "data.valid", "tokenizer.file", "init_from"."""


def describe_inputs(config: Config, corpus: Corpus | None = None) -> Inputs:
    """Return the description of the inputs: as they are now, or as they were when `corpus` was prepared."""
    if corpus is None:
        inputs = {f"data.{split}": open_source(config.data, split).describe() for split in SPLITS}
    else:
        inputs = {f"data.{split}": getattr(corpus, split).manifest["source"] for split in SPLITS}
    if config.tokenizer.file is not None:
        inputs["tokenizer.file"] = TextSource([Path(config.tokenizer.file).absolute()], "").describe()
    if (source := describe_source(config)) is not None:
        inputs["init_from"] = source
    return inputs


def describe_source(config: Config) -> dict[str, Any] | None:
    """Return step and sha256 of the newest checkpoint of `config.init_from`, None if there is none (any more)."""
    checkpoints = list_checkpoints(Path(config.init_from) / "checkpoints") if config.init_from else []
    manifest = read_json_dict(checkpoints[-1] / MANIFEST) if checkpoints else None
    return None if manifest is None else {key: manifest.get(key) for key in ("step", "sha256")}


def changed_inputs(old: Inputs, new: Inputs) -> str:
    """Return what changed, such as "data.valid /a/b.txt (12 -> 14 bytes, sha256 1f.. -> 2e..)", or "" if nothing did.

    Files count as the same if their contents are the same, in the same order. Their names do not matter.
    """
    changes = []
    for key in old.keys() & new.keys():
        if "files" in old[key] and "files" in new[key]:
            changes += _changed_files(key, old[key]["files"], new[key]["files"])
        elif why := changed_fields(old[key], new[key]):
            changes.append(f"{key} ({why})")
    return ", ".join(sorted(changes))


def is_same_text(saved: Any, config: Config, split: str) -> bool:
    """Return whether the text of a split has the content that `saved` describes, which is its part of inputs.json."""
    if not (isinstance(saved, dict) and "files" in saved):
        return False
    now = open_source(config.data, split).describe()
    try:
        return "files" in now and not changed_inputs({split: saved}, {split: now})
    except (KeyError, TypeError, AttributeError):  # damaged
        return False


def _changed_files(key: str, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    before, after = ([(file["bytes"], file["sha256"]) for file in files] for files in (old, new))
    if before == after:
        return []
    if len(old) == len(new) == 1:  # it may have another name now
        return [f"{key} {new[0]['path']} ({_difference(before[0], after[0])})"]
    earlier, now = (
        {file["path"]: content for file, content in zip(files, contents, strict=True)}
        for files, contents in ((old, before), (new, after))
    )
    changes = [f"{key} {path} (is gone)" for path in earlier.keys() - now.keys()]
    changes += [f"{key} {path} (is new)" for path in now.keys() - earlier.keys()]
    both = [path for path in earlier.keys() & now.keys() if earlier[path] != now[path]]
    changes += [f"{key} {path} ({_difference(earlier[path], now[path])})" for path in both]
    return changes or [f"{key} (the order of its files)"]


def _difference(old: tuple[int, str], new: tuple[int, str]) -> str:
    sizes = f"{old[0]:,} -> {new[0]:,} bytes" if old[0] != new[0] else f"{old[0]:,} bytes as before"
    return f"{sizes}, sha256 {old[1][:8]} -> {new[1][:8]}"
