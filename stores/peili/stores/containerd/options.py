"""What can be configured of the containerd store, and what is right for each option."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from peili.mirror import ConfigError

DEFAULT_ADDRESS = "/run/containerd/containerd.sock"

# containerd's rule for identifiers: letters and digits, with . - _ between them, at most 76.
_NAMESPACE = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_MAX_NAMESPACE = 76
_MAX_SOCKET = 107
"""Bytes that the path of a unix socket may have (unix(7))."""
_KEYS = ("address", "namespaces", "content_path")


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the containerd store. What they mean is said there."""

    socket: Path
    namespaces: tuple[str, ...]
    content_path: Path | None

    @classmethod
    def checked(cls, address: object, namespaces: object, content_path: object) -> Self:
        """From what was configured. Raises ConfigError naming the one that is wrong."""
        return cls(_socket(address), _namespaces(namespaces), _content_path(content_path))


def known_options(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`config` where it has no key that is not an option; else raises ConfigError."""
    for key in config:
        if key not in _KEYS:
            raise ConfigError(key, f"unknown option; there are: {', '.join(_KEYS)}")
    return config


def _socket(address: object) -> Path:
    path = Path(address.removeprefix("unix://")) if isinstance(address, str) else None
    if path is None or not path.is_absolute():
        raise ConfigError("address", f"the path of containerd's socket, as {DEFAULT_ADDRESS}, not {address!r}")
    if len(os.fsencode(path)) > _MAX_SOCKET or "," in str(path):  # a comma divides addresses for gRPC
        raise ConfigError("address", f"a path of at most {_MAX_SOCKET} bytes, without a comma, not {address!r}")
    return path


def _namespaces(names: object) -> tuple[str, ...]:
    if not isinstance(names, list | tuple):
        raise ConfigError("namespaces", f'a list of names, as ["k8s.io"]; empty for all, not {names!r}')
    checked: list[str] = []
    for name in cast("list[object] | tuple[object, ...]", names):
        if not isinstance(name, str) or len(name) > _MAX_NAMESPACE or not _NAMESPACE.fullmatch(name):
            raise ConfigError("namespaces", f"names of containerd namespaces, as k8s.io or default, not {name!r}")
        checked.append(name)
    return tuple(dict.fromkeys(checked))


def _content_path(path: object) -> Path | None:
    if path is None:
        return None
    if not isinstance(path, str) or not Path(path).is_absolute():
        raise ConfigError(
            "content_path", f"the absolute path of containerd's content store, which has blobs/ in it, not {path!r}"
        )
    return Path(path)
