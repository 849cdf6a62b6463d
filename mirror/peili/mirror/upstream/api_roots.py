"""Where the API of a registry is, as a container runtime would find it without further configuration."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

_DOCKER_HUB = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}
"""The registries whose API is at another host."""


@dataclass(frozen=True, slots=True)
class ApiRoot:
    """The root of a registry's API.

    Attributes:
        url: The URL up to and with ``/v2``, without a slash at its end.
        ca: Files with the certificates of authorities; empty for those of the system.
        client: Pairs of files: a certificate that is shown to the registry, and its private key.
        skip_verify: Accept every certificate.
        headers: Headers that each request gets, but not one that a redirect sends to another host or port.
        is_assumed: Whether it only follows from the name of the registry, which anybody may have invented in a request.
            It is then connected to only at addresses of other hosts: not at loopback, link-local or metadata addresses.
        is_mirror: Whether it serves several registries, so that each request names the registry: ``?ns=REGISTRY``.
        is_default: Whether it is for every registry without a configuration of its own. Such registries, and those with
            an assumed root, get no slot of the others: anybody may have invented them in a request.

    Raises:
        ValueError: The URL is not an http or https URL, or it has a user, a query or a fragment.
    """

    url: str
    ca: tuple[Path, ...] = ()
    client: tuple[tuple[Path, Path], ...] = ()
    skip_verify: bool = False
    headers: Mapping[str, str] = field(default_factory=dict[str, str], hash=False, repr=False)
    is_assumed: bool = False
    is_mirror: bool = False
    is_default: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        _ = parts.port  # raises ValueError if it is not a port
        is_plain = not (parts.query or parts.fragment or parts.username or parts.password)
        if parts.scheme not in {"http", "https"} or not parts.hostname or not is_plain or self.url.endswith("/"):
            raise ValueError(f"not the root of an API: {self.url[:80]!a}; right is https://HOST/v2")

    @classmethod
    def of(cls, url: str, **options: Any) -> ApiRoot:
        """Return the root below the URL of a registry; ``/v2`` is added to it unless it ends so.

        Args:
            url: The URL, such as ``https://registry.example:5000``.
            options: The other attributes.

        Raises:
            ValueError: `url` is malformed.
        """
        url = url.rstrip("/")
        return cls(url if url.endswith("/v2") else f"{url}/v2", **options)

    def serves(self, registry: str) -> bool:
        """Return whether this is the host of `registry` itself, as its name says it. Ports count."""
        host = urlsplit(self.url).netloc.lower()
        return host in {registry.lower(), _DOCKER_HUB.get(registry.lower())}


RootFinder: TypeAlias = Callable[[str], Sequence[ApiRoot]]
"""Returns the roots at which the API of a registry is asked for, in this order. It runs in a thread and may block."""


def default_roots(registry: str) -> Sequence[ApiRoot]:
    """Return the root of a registry that nobody has configured.

    It is ``https://REGISTRY/v2``, but that of ``docker.io`` is at another host, and a registry on this host has plain
    HTTP, as with containerd. It is assumed; see `ApiRoot`.

    Args:
        registry: The host name of the registry, with or without a port.

    Raises:
        ValueError: `registry` is not a host name.
    """
    scheme = "http" if _is_local(registry) else "https"
    return (ApiRoot(f"{scheme}://{_DOCKER_HUB.get(registry.lower(), registry)}/v2", is_assumed=True),)


def trusting(find: RootFinder, is_named: Callable[[str], bool]) -> RootFinder:
    """Return a finder that finds the same, but assumes nothing about a registry that the operator has named.

    Args:
        find: Finds the roots of every registry.
        is_named: Returns whether the operator has named a registry.
    """

    def find_trusting(registry: str) -> Sequence[ApiRoot]:
        roots = find(registry)
        return [replace(each, is_assumed=False, is_default=False) for each in roots] if is_named(registry) else roots

    return find_trusting


def _is_local(registry: str) -> bool:
    parts = urlsplit(f"//{registry}")
    if parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
