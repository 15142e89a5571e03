"""What must not be written down: the values of keys and passwords that lie about in the environment."""

import netrc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grouped_lm.errors import ConfigError

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)S?$", re.IGNORECASE)
_SHORTEST = 8
"""Shorter values are no keys, and would be found in any path."""


def known_secrets() -> dict[str, str]:
    """Return where -> value: variables named like keys, and the passwords of netrc."""
    found = {f"${name}": value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    try:
        hosts = netrc.netrc(os.environ.get("NETRC") or Path("~/.netrc").expanduser()).hosts
    except (OSError, netrc.NetrcParseError):
        hosts = {}
    found |= {f"netrc of {host}": password for host, (_, _, password) in hosts.items() if password}
    return {where: value for where, value in found.items() if len(value) >= _SHORTEST}


def refuse_secrets(config: dict[str, Any]) -> None:
    """Refuse a config that carries a secret, since a config is written to disk, to W&B and into checkpoints.

    Raises:
        ConfigError: names the field and where the secret comes from, not the secret.
    """
    secrets = known_secrets()
    for path, text in _strings("", config):
        for where, value in secrets.items():
            if value in text:
                raise ConfigError(f"{path} holds the value of {where}: configs are written down, keys are not")


def hide_secrets(text: str) -> str:
    """Return a text, such as a server's complaint, with every known secret in it named instead of shown."""
    for where, value in known_secrets().items():
        text = text.replace(value, f"<{where}>")
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
