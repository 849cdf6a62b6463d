"""The options of the containerd store."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from peili.mirror import Options

DEFAULT_ADDRESS = "/run/containerd/containerd.sock"

# containerd's rule for identifiers: letters and digits, separated by single . - or _, at most 76 characters.
_NAMESPACE = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_MAX_NAMESPACE = 76
_MAX_SOCKET = 107
"""The longest path of a unix socket, in bytes (unix(7))."""


@dataclass(frozen=True, slots=True)
class ContainerdOptions:
    """The checked options of `ContainerdStore`, which documents them.

    Attributes:
        socket: The path of containerd's socket.
        namespaces: The served namespaces; empty for all.
        content_path: The directory of the content store; None if containerd tells it.
    """

    socket: Path
    namespaces: tuple[str, ...]
    content_path: Path | None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Check the options in `config`.

        Raises:
            ConfigError: An option is unknown or wrong.
        """
        options = Options(config, "address", "namespaces", "content_path")
        expected = "the absolute path of containerd's content store, which has blobs/ in it"
        return cls(
            _read_socket(options),
            _read_namespaces(options),
            options.path("content_path", None, absolute=True, expected=expected),
        )


def _read_socket(options: Options) -> Path:
    expected = f"the path of containerd's socket, such as {DEFAULT_ADDRESS}"
    path = Path(options.text("address", DEFAULT_ADDRESS, expected=expected).removeprefix("unix://"))
    if not path.is_absolute():
        raise options.wrong("address", expected)
    if len(os.fsencode(path)) > _MAX_SOCKET or "," in str(path):  # gRPC splits addresses at commas
        raise options.wrong("address", f"a path of at most {_MAX_SOCKET} bytes, without a comma")
    return path


def _read_namespaces(options: Options) -> tuple[str, ...]:
    names = options.sequence("namespaces", 'a list of names, as in ["k8s.io"]; empty for all', (), empty=True)
    for name in names:
        if not isinstance(name, str) or len(name) > _MAX_NAMESPACE or not _NAMESPACE.fullmatch(name):
            raise options.wrong("namespaces", "names of containerd namespaces, such as k8s.io or default", name)
    return tuple(dict.fromkeys(names))
