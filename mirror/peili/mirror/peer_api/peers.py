"""A peer, its id and its URLs, and what it claims to hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

from peili.mirror.peer_api.addresses import AddressKinds

IDENTITY_HEADER = "Peili-Id"
"""Each response of a peer door has this header. Its value is the id of the host that answers."""

_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE)
_HOST_NAME_LENGTH = 253
_FOUR_NUMBERS = re.compile(r"[0-9]+(\.[0-9]+){3}")
_IDENTITY = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True)
class Peer:
    """Another host that runs peili.

    Args:
        id: Identifies the peer. Its URLs do not.
        urls: Base URLs of its peer door, the preferred one first. Each has its own port and path; an IPv6 address is
            in brackets. A slash at the end is removed.
        tls_name: The name that its certificate must show: a host name or an IP address. None means the URL's host.
        labels: Properties for routers that use them. `MembershipRouter` prefers holders with the same ``zone``.
        dialled: The kinds of addresses that may be dialled, also for host names in the URLs. By default all, because
            the operator or the host agent has chosen the URLs. A router that learns them from the network allows fewer,
            so that nobody can make this host send requests to itself. Not compared.

    Raises:
        ValueError: `id` is empty, or a URL or `tls_name` is malformed.
    """

    id: str
    urls: tuple[str, ...]
    tls_name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    dialled: AddressKinds = field(default=AddressKinds.ANY, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a peer needs an id")
        if self.tls_name is not None and not is_certificate_name(self.tls_name):
            name = self.tls_name[:64]
            raise ValueError(f"not a name for a certificate: {name!a}; expected a host name or an IP address")
        object.__setattr__(self, "urls", tuple(base_url(url) for url in self.urls))


@dataclass(frozen=True, slots=True)
class UnreachablePeer:
    """A peer that is known, but does not answer.

    Attributes:
        reason: Why it counts as unreachable, in one line.
        since: When that was found, in seconds since 1970.
        last_seen: When it answered for the last time, in seconds since 1970. None if it has not answered yet.
    """

    peer: Peer
    reason: str
    since: float
    last_seen: float | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """A peer that has the content of a key.

    Attributes:
        complete: Whether the peer has the whole content. Otherwise the content is in flight.
        available: How many bytes the peer has so far, if it states that.
        size: The size of the whole content in bytes, if the peer states it. The peer may be wrong.
    """

    peer: Peer
    complete: bool
    available: int | None = None
    size: int | None = None


def is_certificate_name(text: str) -> bool:
    """Return whether `text` is a host name in any script, or an IP address without a zone, as certificates have."""
    if len(text) > _HOST_NAME_LENGTH:
        return False
    with suppress(ValueError):
        ip_address(text)
        return "%" not in text
    try:
        encoded = text.encode("idna").decode("ascii")
    except UnicodeError:
        return False
    return len(encoded) <= _HOST_NAME_LENGTH and _HOST_NAME.fullmatch(encoded) is not None


def is_identity(text: str) -> bool:
    """Return whether `text` can be the id of a host. An id is a header's value: 1 to 255 visible ASCII characters."""
    return _IDENTITY.fullmatch(text) is not None


def base_url(url: str) -> str:
    """Return `url`, the base URL of a peer door, without a slash at its end.

    Raises:
        ValueError: `url` is not an absolute HTTP or HTTPS URL, its host is neither a name nor an address, or it has a
            query, a fragment or credentials.
    """
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in {"http", "https"} and _is_host(parts.hostname or "") and parts.port != 0
    except ValueError:
        is_usable = False
    else:
        is_usable = is_usable and not (parts.query or parts.fragment or parts.username or parts.password)
    if not is_usable or any(c.isspace() or not c.isprintable() for c in url):
        raise ValueError(f"not a base URL: {url!a}; expected http://HOST:PORT or https://HOST:PORT/PATH")
    return url.rstrip("/")


def _is_host(text: str) -> bool:
    """Return whether `text`, the host of a URL without brackets, can be looked up: a name, or an address."""
    if ":" in text:
        text = text.partition("%")[0]  # the zone
    elif not _FOUR_NUMBERS.fullmatch(text):
        return is_certificate_name(text.removesuffix("."))
    with suppress(ValueError):
        ip_address(text)
        return True
    return False
