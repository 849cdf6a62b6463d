"""URLs of mirrors, read as containerd reads them: which are equal, and which have only one possible meaning."""

from __future__ import annotations

import posixpath
import re
from ipaddress import IPv6Address
from urllib.parse import urlsplit

from peili.mirror import ConfigError, base_url

_PORTS = {"http": 80, "https": 443}
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_URL = re.compile(
    rf"(?P<scheme>https?://)?(?P<host>{_NAME}|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{{1,5}}))?"
    r"(?P<path>(?:/+[A-Za-z0-9._~-]+)*)/*"
)


def check_mirror_url(url: str) -> str:
    """Return the URL of a local door, normalized. Raises ConfigError if it is not one."""
    try:
        return base_url(url)
    except ValueError as error:
        raise ConfigError("mirror", "http://HOST:PORT, as containerd reaches the local door") from error


def same_door(url: str, other: str) -> bool:
    """Return whether containerd sends its requests to the same server and path for both URLs. Never raises.

    containerd adds ``/v2`` to a path that does not end with it, cleans the path, and assumes https if there is no
    scheme. The case of the host and the scheme's default port make no difference.
    """
    return _normalized(url) == _normalized(other)


def _normalized(url: str) -> tuple[str, str | None, int | None, str] | str:
    try:
        parts = urlsplit(url if url.startswith("http") else f"https://{url}")
        port = parts.port
    except ValueError:
        return url
    path = posixpath.normpath(f"/{parts.path.strip('/')}").removesuffix("/v2").rstrip("/")
    return parts.scheme, parts.hostname, port or _PORTS.get(parts.scheme), path


def is_plain(url: str) -> bool:
    """Return whether every URL parser reads `url` alike: an optional scheme, a host, a port and a path, no more."""
    match = _URL.fullmatch(url)
    if match is None or not 0 < int(match["port"] or 1) < 65536:
        return False
    if not match["scheme"] and url.startswith("http"):  # containerd would take it for a scheme
        return False
    if {".", ".."} & {*match["path"].split("/")}:
        return False
    try:
        IPv6Address(match["ipv6"] or "::")
    except ValueError:
        return False
    return True
