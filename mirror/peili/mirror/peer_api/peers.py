"""Values that routers speak in: who there is, who has what, and what a host shall do next."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from urllib.parse import urlsplit

from peili.mirror.oci.references import Key


@dataclass(frozen=True, slots=True)
class Peer:
    """Another host that runs peili.

    `id` is identity; `urls` are not: preferred first, each with its own port and path, IPv6 in brackets, without a
    slash at the end. `tls_name`, where given, is what the certificate must show instead of the URL's host: a host's
    name or an IP address. `labels` (a zone, say) are for routers that know them. Raises ValueError for a URL or a name
    that is none, or an empty id.
    """

    id: str
    urls: tuple[str, ...]
    tls_name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a peer needs an id")
        if self.tls_name is not None and not is_certified_name(self.tls_name):
            name = self.tls_name[:64]
            raise ValueError(f"not a certificate's name: {name!a}; right is a host's name or an IP address")
        object.__setattr__(self, "urls", tuple(base_url(url) for url in self.urls))


_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE)
_HOST_NAME_LENGTH = 253


def is_certified_name(text: str) -> bool:
    """Whether a certificate can be asked for `text`: a host's name, in whatever script, or an IP address, no zone."""
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


_IDENTITY = re.compile(r"[!-~]{1,255}")


def is_identity(text: str) -> bool:
    """Whether `text` can be a host's id: it has to stand in a header."""
    return _IDENTITY.fullmatch(text) is not None


def base_url(url: str) -> str:
    """`url` as the base of a peer's door, without a slash at its end. Raises ValueError when it can't be one."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    else:
        usable = usable and not (parts.query or parts.fragment or parts.username or parts.password)
    if not usable or any(c.isspace() or not c.isprintable() for c in url):
        raise ValueError(f"not a base URL: {url!a}; right is http://HOST:PORT or https://HOST:PORT/PATH")
    return url.rstrip("/")


@dataclass(frozen=True, slots=True)
class Holder:
    """A peer that has the content of a key: whole (`complete`), or in flight with `available` bytes so far.

    `size` is the content's whole size in bytes where the peer said so; it is a claim, not a fact.
    """

    peer: Peer
    complete: bool
    available: int | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Want:
    """What a host is after: the content of `key` from byte `offset` on.

    `failed` maps the id of each peer that can't be used to the reason, a `FailureReason`.
    """

    key: Key
    offset: int = 0
    failed: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)


class LeaseEnd(StrEnum):
    """Why a lease is released, if no peer failed; see `FailureReason` for the other reasons."""

    DONE = "done"
    """The runtime has what it wanted, or does as the router advised."""
    GONE = "gone"
    """The runtime disconnected."""


class Lease:
    """What a router lends with its advice, so that it can see what became of it. This one records nothing.

    Used on the mirror's loop only. `progress` is called often, in the task of the runtime's request, and must not
    block; `release` is called exactly once, whatever happened, and must not raise. There is no progress after it.
    """

    def progress(self, offset: int) -> None:
        """Bytes up to `offset` have been handed to the runtime."""

    async def release(self, reason: str) -> None:
        """The advice is no longer used; `reason` is a `LeaseEnd` or a `FailureReason`.

        Called in a task of its own, which neither the runtime's leaving nor the end of its request ends, and for which
        the request does not wait. So it may run beside other leases' releases, and beside an `acquire` for the same
        key, by this very request too. Cancelled after ``limits.lookup_timeout`` seconds (1 by default). Draining waits
        for it, and so does leaving the mirror, before the router is left: at most ``limits.stop_timeout`` seconds, then
        it is cancelled. Only an answer that a host lets outlast the mirror releases later, and in its own task.
        """


@dataclass(frozen=True, slots=True)
class Feed:
    """Stream from one of `holders`, best first."""

    holders: tuple[Holder, ...]
    lease: Lease = field(default_factory=Lease)


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at `until`, in seconds of the running loop's clock (`loop.time()`)."""

    until: float


@dataclass(frozen=True, slots=True)
class Upstream:
    """Nobody near has it: let the runtime go upstream."""

    lease: Lease = field(default_factory=Lease)
