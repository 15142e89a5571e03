"""Check a user's config files before Hydra reads them: with YAML aliases a small file can expand to a huge tree."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from grouped_lm.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
"""Most nodes of a file with its aliases expanded. Our largest config has 100."""


def check_config_files(folder: Path) -> None:
    """Refuse a folder whose YAML files are too large, or too large once their aliases are followed.

    Raises:
        ConfigError: There is no such folder, or a file is too large.
    """
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {folder} is not a folder")
    for pattern in ("*.yaml", "*/*.yaml", "*/*/*.yaml"):
        for path in folder.glob(pattern):
            if path.stat().st_size > MAX_BYTES or expanded_nodes(path) > MAX_NODES:
                raise ConfigError(f"{path} is too large for a config: it expands to more than {MAX_NODES:,} values")


def expanded_nodes(path: Path) -> int:
    """Return the number of nodes of a YAML file with its aliases expanded, without expanding them."""
    sizes: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            return _count(iter(yaml.parse(file, Loader=yaml.SafeLoader)), sizes)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return 0  # Hydra reports the error when it reads the file


def _count(events: Iterator[yaml.Event], sizes: dict[str, int]) -> int:
    total, open_nodes = 0, []
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            total += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            total += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, total - 1))
            elif event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = total - before
    return total
