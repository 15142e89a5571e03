"""Checks of a machine: what it has, and what a run would miss."""

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from grouped_lm.config import DataConfig, TokenizerConfig
from grouped_lm.data.tokenizers.build import build_tokenizer
from grouped_lm.errors import GvcError
from grouped_lm.runs.tracking import login_state
from grouped_lm.system.runtime import cpu_model, library_versions, other_checkout

ENOUGH_DISK_GIB = 2.0


@dataclass(frozen=True)
class Check:
    """The result of one check. `ok` is False where a plain `gvc train` would fail."""

    what: str
    ok: bool
    detail: str
    warn: bool = False
    """Whether a run works, but probably not as the user thinks."""


def examine() -> list[Check]:
    """Return the results of all checks."""
    return [
        Check("gvc", True, f"{metadata.version('grouped-lm')} on Python {platform.python_version()}"),
        *([Check("checkout", True, other, warn=True)] if (other := other_checkout()) else []),
        Check("libraries", True, ", ".join(f"{name} {version}" for name, version in library_versions().items())),
        Check(
            "cpu",
            True,
            f"{cpu_model()}, {counted(os.cpu_count(), 'core')}, {counted(torch.get_num_threads(), 'thread')}",
        ),
        Check("gpu", True, describe_gpus()),
        check_tokenizer(),
        Check("W&B", True, login_state()),
        check_disk("runs", Path.cwd()),
        check_disk("prepared data", Path(os.environ.get("GVC_CACHE_DIR", DataConfig().cache_dir)).expanduser()),
    ]


def counted(number: int | None, what: str) -> str:
    """Return a number with its noun, such as `1 thread` or `2 threads`."""
    return f"{number} {what}" if number == 1 else f"{number or 'unknown'} {what}s"


def describe_gpus() -> str:
    """Return the CUDA devices with their memory."""
    if not torch.cuda.is_available():
        return "none; runs use the CPU"
    devices = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return ", ".join(f"{d.name} ({d.total_memory / 2**30:.0f} GiB)" for d in devices)


def check_tokenizer() -> Check:
    """Load GPT-2's tokenizer, whose files are checked by hash."""
    try:
        tokenizer = build_tokenizer(TokenizerConfig(name="gpt2"))
    except GvcError as error:
        return Check("tokenizer gpt2", False, str(error))
    return Check("tokenizer gpt2", True, f"{tokenizer.vocab_size:,} tokens, files verified")


def check_disk(what: str, path: Path) -> Check:
    """Return the free disk space where `path` is or would be."""
    folder = next(p for p in (path, *path.parents) if p.exists())
    free, writable = shutil.disk_usage(folder).free / 2**30, os.access(folder, os.W_OK)
    note = "" if writable else ", not writable"
    return Check(f"disk for {what}", writable and free > ENOUGH_DISK_GIB, f"{free:,.1f} GiB free at {path}{note}")
