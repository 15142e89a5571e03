"""Keys and passwords of the environment: they must not be written into a run folder."""

import netrc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grouped_lm.errors import ConfigError

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)S?$", re.IGNORECASE)
_MIN_LENGTH = 8
"""Shorter values are not keys, and any path could contain them."""


def known_secrets() -> dict[str, str]:
    """Return source -> value of environment variables with names like keys, and of the passwords in netrc."""
    secrets = {f"${name}": value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    try:
        hosts = netrc.netrc(os.environ.get("NETRC") or Path("~/.netrc").expanduser()).hosts
    except (OSError, netrc.NetrcParseError):
        hosts = {}
    secrets |= {f"netrc of {host}": password for host, (_, _, password) in hosts.items() if password}
    return {source: value for source, value in secrets.items() if len(value) >= _MIN_LENGTH}


def refuse_secrets(config: dict[str, Any]) -> None:
    """Raise a ConfigError if a config contains a secret: configs are written to disk, to W&B and into checkpoints."""
    secrets = known_secrets()
    for path, text in _strings("", config):
        for source, value in secrets.items():
            if value in text:
                raise ConfigError(f"{path} holds the value of {source}: configs are written down, keys are not")


def hide_secrets(text: str) -> str:
    """Return `text`, such as a server's error message, with every known secret replaced by its source."""
    for source, value in known_secrets().items():
        text = text.replace(value, f"<{source}>")
    return text


def _strings(path: str, node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _strings(f"{path}.{key}".lstrip("."), value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _strings(path, value)
