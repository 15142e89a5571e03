"""Tokenizers as the files that transformers reads, and those files as tokenizers of ours.

All three of ours are byte-level BPE: a character per byte, merges, end-of-text as the last id.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from grouped_lm.config import TokenizerConfig
from grouped_lm.data.text import EOT_TEXT
from grouped_lm.data.tokenizers.base import VOCAB_SIZES, BytesTokenizer, Tokenizer
from grouped_lm.data.tokenizers.bpe import BPETokenizer, byte_characters, check_model, check_vocabulary
from grouped_lm.data.tokenizers.build import build_tokenizer
from grouped_lm.data.tokenizers.gpt2 import GPT2_URL, gpt2_folder
from grouped_lm.errors import ConfigError, DataError
from grouped_lm.system.files import read_json_dict, write_json

GPT2_NAMES = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}
"""GPT-2's two files, and what transformers calls them."""
OTHER_NAMES = ("tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.txt", "special_tokens_map.json")
"""Files that show that a folder has a tokenizer, but not which one."""
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def write_tokenizer(tokenizer: Tokenizer, block_size: int, folder: Path) -> None:
    """Write a tokenizer whose ids are those of ours; it pads with end-of-text on the left, as `generate` needs it."""
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), EOT_TEXT)
    values: dict[str, Any] = ends | {
        "padding_side": "left",
        "model_max_length": block_size,
        "model_input_names": ["input_ids", "attention_mask"],  # token types would be embedded as tokens
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.name == "gpt2":
        for source, target in zip(gpt2_files(), GPT2_NAMES.values(), strict=True):
            shutil.copyfile(source, folder / target)
        write_json(folder / "tokenizer_config.json", values | {"tokenizer_class": "GPT2Tokenizer"})
        return
    path = folder / "tokenizer.json"
    if isinstance(tokenizer, BPETokenizer):
        tokenizer.save(path)
        description = json.loads(path.read_text(encoding="utf-8"))
    else:  # without merges: id = byte, then end-of-text
        description = bpe_values(byte_characters() | {EOT_TEXT: tokenizer.eot_id}, [])
        description |= dict.fromkeys(("pre_tokenizer", "decoder"), LEVEL | {"use_regex": False})
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    end = {"id": tokenizer.eot_id, "content": EOT_TEXT, "special": True} | flags
    write_json(path, description | {"added_tokens": [end]})
    write_json(folder / "tokenizer_config.json", values | {"tokenizer_class": "PreTrainedTokenizerFast"})


def gpt2_files() -> list[Path]:
    """Return the paths of encoder.json and vocab.bpe in tiktoken's cache; DataError if they are not there."""
    cache = gpt2_folder()
    paths = []
    for name in GPT2_NAMES:
        path = cache / hashlib.sha1((GPT2_URL + name).encode()).hexdigest() if cache else None
        if path is None or not path.exists():
            raise DataError(f"GPT-2's {name} is not in tiktoken's cache {cache}: unset TIKTOKEN_CACHE_DIR")
        paths.append(path)
    return paths


def bpe_values(vocab: dict[str, int], merges: list[Any]) -> dict[str, Any]:
    """Return tokenizer.json of a byte-level BPE with GPT-2's splitting."""
    return dict.fromkeys(("truncation", "padding", "normalizer", "post_processor")) | {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": LEVEL,
        "decoder": LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def choose_tokenizer(folder: Path, given: str | None, vocab_size: Any) -> tuple[Tokenizer, list[str]]:
    """Return the tokenizer of a checkpoint of transformers, and what a user should know about the choice.

    Args:
        folder: of the checkpoint.
        given: gpt2, bytes, the path of a tokenizer.json or of a folder that has it; None takes the files in `folder`.
        vocab_size: that of the checkpoint, for the messages.

    Raises:
        DataError: there are no such files, or their tokenizer is none that we can keep.
    """
    if given in VOCAB_SIZES:
        has_files = read_values(folder) is not None
        note = f"tokenizer {given} was taken as asked; the files of {folder} were not compared with it"
        return build_tokenizer(TokenizerConfig(name=str(given))), [note] if has_files else []
    place = folder if given is None else Path(given)
    try:
        values = read_values(place)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the tokenizer files of {place} have an unknown form: {error!r}") from error
    if values is None:
        there = [name for name in OTHER_NAMES if (place / name).exists()]
        what = f"has no tokenizer that gvc reads (only {', '.join(there)})" if there else "has no tokenizer files"
        raise DataError(
            f"{place} {what}, and a vocabulary of {vocab_size} ids does not say which it is: give --tokenizer gpt2 "
            f"({VOCAB_SIZES['gpt2']} ids), --tokenizer bytes ({VOCAB_SIZES['bytes']} ids), or --tokenizer FILE with a "
            "tokenizer.json; rows beyond the tokenizer's ids are left out"
        )
    try:
        return keep_tokenizer(values), []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"the tokenizer of {place} (a model of {vocab_size} ids) cannot be kept: {error}. "
            "gvc has GPT-2's, bytes, and byte-level BPE with end-of-text as the last id and no other special "
            "token; --tokenizer gpt2 or bytes takes one of them anyway"
        ) from error


def read_values(place: Path) -> dict[str, Any] | None:
    """Return tokenizer.json of a folder (or of its path), made from vocab.json and merges.txt where it has only those.

    None means that there are no such files; DataError, that they cannot be read.
    """
    path = place if place.is_file() else place / "tokenizer.json"
    vocab, merges = (path.parent / name for name in GPT2_NAMES.values())
    if path.exists():
        values = read_json_dict(path)
    elif vocab.exists() and merges.exists():
        tokens = read_json_dict(vocab)
        values = None if tokens is None else bpe_values(tokens, read_merges(merges))
    else:
        return None
    if values is None:
        raise DataError(f"{path if path.exists() else vocab} is no readable JSON object")
    return add_named_tokens(values, path.parent)


def add_named_tokens(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return tokenizer.json with the added tokens, and the end-of-text, that only other files of the folder name."""
    config = read_json_dict(folder / "tokenizer_config.json") or {}
    named = dict(read_json_dict(folder / "added_tokens.json") or {})
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        named |= {token["content"]: int(index) for index, token in decoder.items()}
    vocab, end = values.get("model", {}).get("vocab", {}), config.get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    if not named and isinstance(end, str) and end in vocab:
        named[end] = vocab[end]
    known = list(values.get("added_tokens") or [])
    contents = {token["content"] for token in known}
    new = [{"content": content, "id": index} for content, index in named.items() if content not in contents]
    return values | {"added_tokens": known + new}


def read_merges(path: Path) -> list[list[str]]:
    """Return the pairs of merges.txt, first line first; the line with the version is left out."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable: {error}") from error
    return [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]


def keep_tokenizer(values: dict[str, Any]) -> Tokenizer:
    """Return our tokenizer with the ids of a tokenizer.json; ValueError names the first property that ours lack."""
    model, added = values["model"], values.get("added_tokens") or []
    _check_byte_level(values)
    merges = [pair.split(" ") if isinstance(pair, str) else list(pair) for pair in model["merges"]]
    tokens = dict(model["vocab"]) | {token["content"]: token["id"] for token in added}
    byte_vocab = byte_characters() | {EOT_TEXT: VOCAB_SIZES["bytes"] - 1}
    if tokens == byte_vocab and not merges:
        return BytesTokenizer()
    encoder, bpe = gpt2_files()
    gpt2_tokens = json.loads(encoder.read_text(encoding="utf-8"))
    if merges == read_merges(bpe):
        if tokens == gpt2_tokens:
            return build_tokenizer(TokenizerConfig())
        others = sorted(tokens.keys() - gpt2_tokens.keys())
        if others:
            raise ValueError(f"it is GPT-2's with {len(tokens)} ids instead of {len(gpt2_tokens)}; new: {others[:5]}")
    return _keep_bpe(values, tokens, merges, [token["content"] for token in added])


def _check_byte_level(values: dict[str, Any]) -> None:
    check_model(values)
    if values["pre_tokenizer"]["type"] != "ByteLevel":  # our own texts are cut where GPT-2's splitting cuts
        raise ValueError("it does not split text as GPT-2 does (ByteLevel alone)")


def _keep_bpe(values: dict[str, Any], tokens: dict[str, int], merges: list[Any], added: list[str]) -> Tokenizer:
    """Return a `bpe` tokenizer with these ids, of which the last is end-of-text."""
    from tokenizers import Tokenizer as Model

    ends = added or [token for token in (EOT_TEXT,) if token in tokens]
    n_token = len(tokens) + (not ends)  # transformers adds the end-of-text that a file does not have
    if len(ends) > 1:
        raise ValueError(f"it has {len(ends)} special tokens: {', '.join(ends[:5])}")
    if ends and tokens[ends[0]] != n_token - 1:
        raise ValueError(f"{ends[0]} has id {tokens[ends[0]]}, not the last one, {n_token - 1}")
    vocab = {token: index for token, index in tokens.items() if token not in ends}
    check_vocabulary(vocab)
    try:
        TokenizerConfig(name="bpe", vocab_size=n_token)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    model = values["model"] | {"vocab": vocab, "merges": merges}
    plain = values | {"model": model, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return BPETokenizer(Model.from_str(json.dumps(plain)))
