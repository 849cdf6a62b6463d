"""Whether two URLs lead to the same door, as containerd reads the URL of a mirror."""

from __future__ import annotations

import posixpath
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}


def same_door(url: str, other: str) -> bool:
    """Whether containerd asks the same server under the same path for both URLs. Does not raise.

    containerd adds the API's root ``/v2`` where a path does not end with it, cleans the path, and takes a URL without
    a scheme for https. The case of the host does not matter, nor does a port that is the scheme's own.
    """
    return _door(url) == _door(other)


def _door(url: str) -> tuple[str, str | None, int | None, str] | str:
    try:
        parts = urlsplit(url if url.startswith("http") else f"https://{url}")
        port = parts.port
    except ValueError:
        return url
    path = posixpath.normpath(f"/{parts.path.strip('/')}").removesuffix("/v2").rstrip("/")
    return parts.scheme, parts.hostname, port or _PORTS.get(parts.scheme), path
