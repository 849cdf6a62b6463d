"""Writes TOML, by tomlkit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

try:
    import tomlkit
except ImportError as error:
    raise ImportError("changing hosts.toml needs tomlkit: install peili[command]") from error


def tables(document: Mapping[str, Any]) -> str:
    """`document` as keys and tables with headers."""
    return tomlkit.dumps(document).rstrip("\n")


def dotted(url: str, settings: Mapping[str, Any]) -> str:
    """One host as top-level keys, ``host."…".capabilities = […]``."""
    name = tomlkit.string(url).as_string()
    lines = tomlkit.dumps(settings).splitlines()  # no tables among them: one line each
    return "\n".join(f"host.{name}.{line}" for line in lines)
