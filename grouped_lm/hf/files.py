"""Folders in the format of transformers: written whole or not at all, readable by others, with a model card."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from grouped_lm.errors import DataError, DiskError, RunFolderError
from grouped_lm.system.files import read_json_dict, write_json, write_text

WEIGHTS, CONFIG, INDEX, PICKLE = (
    "model.safetensors",
    "config.json",
    "model.safetensors.index.json",
    "pytorch_model.bin",
)
MODELING = Path(__file__).with_name("modeling_gvc.py")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder that is renamed to `target` at the end; files get mode 0644 and the folder 0755.

    Raises:
        RunFolderError: `target` exists.
        DiskError: it cannot be written.
    """
    if target.exists():
        raise RunFolderError(f"{target} exists already: name a new folder with --out")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as temporary:
            folder = Path(temporary) / "whole"
            folder.mkdir()
            yield folder
            for path in folder.iterdir():
                path.chmod(0o644)  # safetensors writes 0600, and copies keep the mode of their source
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

    Args:
        folder: of the checkpoint.
        body: config of the body, with its model_type.
        head: name and sizes of the head.
        ids: of special tokens, such as eos_token_id.
        dtype: of the weights, such as float32.
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
    """Return config.json of a checkpoint of transformers.

    Raises:
        DataError: no such folder, no such file, or no object in it.
    """
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
    """Return the tensors of model.safetensors, or of all the shards that its index names.

    Raises:
        DataError: the files are missing or unreadable, or hold a pickle.
    """
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

    Args:
        folder: of the checkpoint.
        values: title, folder (the name under which it is loaded), origin (a sentence), tags, is_plain, tokenizer,
            vocab_size, eot_id, block_size, figures (a list of lines).
    """
    figures = "".join(f"- {line}\n" for line in values["figures"])
    write_text(folder / "README.md", _head(values) + CARD_END.format(**values | {"figures": figures}))


def write_compressed_card(folder: Path, name: str, model: str, head: str, report: str) -> None:
    """Write README.md of a compressed model: three lines that load it, and the report of `compress`."""
    origin = f"`{model}` of transformers, whose output layer `grouped_lm.compress` replaced by a `{head}` one."
    values = {"title": name, "folder": name, "origin": origin, "tags": (), "is_plain": False}
    report = "".join(f"- {line}\n" for line in report.splitlines())
    write_text(folder / "README.md", f"{_head(values)}\n## What changed\n\n{report}")


def _head(values: dict[str, Any]) -> str:
    tags = "".join(f"- {tag}\n" for tag in (*values["tags"], "grouped-lm"))
    trust, note = ("", "") if values["is_plain"] else (", trust_remote_code=True", CODE_NOTE)
    return CARD_HEAD.format(**values | {"tags": tags, "trust": trust, "note": note})


CARD_HEAD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
{tags}---

# {title}

{origin}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}"{trust})
```

`{folder}` is this folder, as seen from the one above it.
{note}"""

CODE_NOTE = """\
`trust_remote_code=True` lets transformers run `modeling_gvc.py` of this folder, which defines the output layer. Its
logits are log-probabilities of all tokens. `resize_token_embeddings` is refused.
"""

CARD_END = """
## Put end-of-text in front of a prompt

In training every text begins after `<|endoftext|>` (id {eot_id}). `gvc sample` puts this token in front of the prompt.
`generate` and pipelines do not: without the token the model writes other text.

```python
prompt = tokenizer([tokenizer.bos_token + "Once upon a time"], return_tensors="pt")
output = model.generate(**prompt, max_new_tokens=20, do_sample=True)
print(tokenizer.batch_decode(output, skip_special_tokens=True)[0])
```

## Details

- Context: at most {block_size} tokens, the prompt included.
- Tokenizer: `{tokenizer}`, {vocab_size:,} ids. It pads on the left with end-of-text. For training, set the labels of
  padding to -100 by the attention mask, not by the id, or the model does not learn where texts end.
{figures}"""
