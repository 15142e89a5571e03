"""Folders in the format of transformers: written whole or not at all, readable by others, with a model card."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Template
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from grouped_lm.errors import DataError, DiskError, RunFolderError
from grouped_lm.system.files import read_json_dict, write_json, write_text

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
MODELING = Path(__file__).with_name("modeling_gvc.py")


def check_new(target: Path) -> None:
    """Raise RunFolderError if `target` exists."""
    if target.exists():
        raise RunFolderError(f"{target} exists already: name a new folder with --out")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder that is renamed to `target` at the end; files get mode 0644 and the folder 0755.

    Raises:
        RunFolderError: `target` exists.
        DiskError: it cannot be written.
    """
    check_new(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as temporary:
            folder = Path(temporary) / "whole"
            folder.mkdir()
            yield folder
            for path in folder.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes 0600; copies keep their source's
            folder.chmod(0o755)
            folder.rename(target)
    except OSError as error:
        raise DiskError(f"cannot write {target}: {error.strerror or error}") from error


def write_weights(folder: Path, state: dict[str, Tensor]) -> None:
    """Write tensors as the one safetensors file, each with memory of its own."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})


def write_gvc_config(folder: Path, body: dict[str, Any], head: dict[str, Any], ids: dict[str, Any], dtype: str) -> None:
    """Write config.json of a `GvcForCausalLM`, and the file that defines it.

    `body` has its model_type, `head` name and sizes; `ids` are those of special tokens, such as eos_token_id.
    """
    own = ("architectures", "dtype", "tie_word_embeddings", "transformers_version")
    values = {
        "model_type": "gvc",
        "architectures": ["GvcForCausalLM"],
        "auto_map": {"AutoConfig": "modeling_gvc.GvcConfig", "AutoModelForCausalLM": "modeling_gvc.GvcForCausalLM"},
        "body": {key: value for key, value in body.items() if key not in own},
        "head": head,
        "tie_word_embeddings": False,
        "dtype": dtype,
    }
    write_json(folder / CONFIG, values | ids)
    shutil.copyfile(MODELING, folder / MODELING.name)


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a checkpoint of transformers; DataError without a readable object."""
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}; a model of the hub is downloaded first: hf download {folder} --local-dir NEW"
        )
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder} has no readable {CONFIG}: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{folder / CONFIG} must hold an object, got {type(values).__name__}")
    return values


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of model.safetensors or of its shards; DataError names what is missing or unreadable."""
    shards = [WEIGHTS]
    if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        index = (read_json_dict(folder / INDEX) or {}).get("weight_map")
        shards = sorted({str(name) for name in index.values()}) if isinstance(index, dict) else []
        if not shards or any(Path(name).name != name for name in shards):
            raise DataError(f"{folder / INDEX} names no files of its folder in weight_map")
    elif not (folder / WEIGHTS).exists():
        raise DataError(f"{folder} has no {WEIGHTS}{_what_is_there(folder)}")
    state: dict[str, Tensor] = {}
    for name in shards:
        try:
            state |= load_file(folder / name)
        except (OSError, ValueError, SafetensorError) as error:
            raise DataError(f"{folder / name} is not readable: {error}") from error
    return state


def _what_is_there(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if pickles:
        convert = "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)"
        return f" but {pickles[0]}, a pickle, which gvc does not open: {convert} of transformers writes {WEIGHTS}"
    there = sorted(path.name for path in folder.iterdir())
    return f"; it has {', '.join(there[:8])}{' ...' if len(there) > 8 else ''}"


def write_card(folder: Path, values: dict[str, Any]) -> None:
    """Write README.md, the model card: three lines that load the model, and what to know before it generates.

    `values` are those of card.md.j2. A compressed model has `changes`, lines; an exported one has all others.
    """
    template = Template(
        Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    write_text(folder / "README.md", template.render(values))
