"""The cache of prepared data: one process builds an entry, the others wait for it."""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import Timeout

from grouped_lm.config import DataConfig
from grouped_lm.errors import DataError
from grouped_lm.system.files import shared_lock

STALE_S = 7 * 24 * 3600
"""Age in seconds from which an unfinished build is removed. A running build writes every few seconds."""

CACHE_ADVICE = "data.cache_dir names another place"
log = logging.getLogger(__name__)


def expand_home(path: str, key: str) -> Path:
    """Return a path with ~ and ~USER replaced by the home folder. `key` is what the user set, for the message.

    Raises:
        DataError: there is no such user, or no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        name = path.split("/")[0]
        raise DataError(
            f"{key}: {path}: no home folder is known for {name}; give the whole path, or ./{name}"
        ) from error


def cache_folder(data: DataConfig) -> Path:
    """Return the folder of the cache; the error is that of `expand_home`."""
    return expand_home(data.cache_dir, "data.cache_dir")


@contextlib.contextmanager
def build_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a cache entry. Waits while another process holds it, and logs that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(shared_lock(lock, 0))
        except Timeout:
            log.info("waiting for another process that prepares %s", path)
            stack.enter_context(shared_lock(lock))
        yield


def remove_stale(cache: Path, name: str) -> None:
    """Remove unfinished builds of the entries `name`-* that nobody has continued for `STALE_S` seconds."""
    for temporary in cache.glob(f".{name}-*.tmp"):
        lock = cache / f"{temporary.stem}.lock"
        with contextlib.suppress(Timeout, FileNotFoundError), shared_lock(lock, 0):
            if time.time() - temporary.stat().st_mtime > STALE_S:
                shutil.rmtree(temporary)
