"""The device, precision, threads and allocator of this process, and a description of the machine."""

import contextlib
import ctypes
import os
import platform
import shlex
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from grouped_lm.errors import ConfigError

LIBRARIES = ("torch", "hydra-core", "datasets", "tiktoken", "wandb", "numpy", "safetensors")


def resolve_device(name: str, key: str = "train.device") -> torch.device:
    """Return the device that the config field `key` names. `auto` prefers CUDA, and `cuda` needs it (ConfigError)."""
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        other = "auto or cpu" if key == "train.device" else "cpu"
        raise ConfigError(f"{key}=cuda, but torch sees no CUDA device here: {key}={other} will run")
    return torch.device("cuda" if name != "cpu" and has_cuda else "cpu")


def autocast(device: torch.device, dtype: str) -> contextlib.AbstractContextManager[None]:
    """Return the context that runs matrix products in `dtype`; weights and losses stay in fp32."""
    return torch.autocast(device.type, getattr(torch, dtype)) if dtype != "float32" else contextlib.nullcontext()


def set_threads(threads: int | None, side_by_side: int = 1) -> int:
    """Set and return the number of CPU threads. None takes torch's choice, divided by the processes `side_by_side`."""
    if threads is None and side_by_side > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, torch.get_num_threads() // side_by_side)
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def keep_freed_memory() -> bool:
    """Let glibc reuse large freed blocks, and return whether this system has glibc.

    By default glibc returns every block above 32 MiB to the system. Then each step pays again for the pages of its
    gradients (51 MB for a V x D table at width 256), which the system clears one by one. Source: mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt, trim_threshold, mmap_max = ctypes.CDLL(None).mallopt, -1, -4  # numbers of glibc's malloc.h
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def other_checkout(folder: Path | None = None) -> str | None:
    """Return one line if `folder`, by default the current one, is in a source tree of gvc that is not what runs here.

    An install that is not editable replaces an editable one: then changes in the tree have no effect, and a run has no
    commit.
    """
    here = (folder or Path.cwd()).resolve()
    tree = next((path for path in (here, *here.parents) if _is_source_tree(path)), None)
    package = Path(__file__).resolve().parents[1]
    if tree is None or tree == package.parent:
        return None
    return f"{tree} is not what runs here, but {package}: `pip install -e {shlex.quote(str(tree))}` makes it so"


def _is_source_tree(folder: Path) -> bool:
    """Return whether a folder holds the sources of this package."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        project = (folder / "pyproject.toml").read_text(encoding="utf-8")
        return (folder / "grouped_lm" / "config.py").is_file() and 'name = "grouped-lm"' in project
    return False


def git_commit() -> str | None:
    """Return the git commit of this source tree, with "+" for local changes, and None outside git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.strip() + ("+" if changes.strip() else "")


def cpu_model() -> str:
    """Return the name of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def library_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that influence the results of a run."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return what influences the results of a run beside its config: code, libraries, hardware and threads."""
    return {
        "commit": git_commit(),
        **({"other_checkout": other} if (other := other_checkout()) else {}),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": library_versions(),
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }
