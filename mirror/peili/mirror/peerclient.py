"""Speaks HTTP to peers: picks the URL that works, checks the right name in a certificate, never uses a proxy.

By connections of our own (peerpool.py): a question to a peer costs a fraction of what it does by httpx, and
among a hundred hosts there are thousands a second; and a host that embeds us is spared 8 MiB. Errors of the network end
here; callers see PeerUnavailable.
"""

from __future__ import annotations

import ssl
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from urllib.parse import quote, urlsplit

from peili.mirror.errors import PeerUnavailable
from peili.mirror.limits import Limits
from peili.mirror.peerconnection import Answer, Head, Malformed
from peili.mirror.peerpool import NotConnected, PeerPool
from peili.mirror.peers import FAILED_BROKEN, FAILED_SILENT, FAILED_UNREACHABLE, Peer
from peili.mirror.wire import Origin

IDENTITY_HEADER = "Peili-Id"
"""On every answer of a peer door: the id of the host that answers."""

_MAX_PREFERENCES = 4096
_IN_PATHS = "/:?=&%@!$'()*+,;~[]"
"""What a path with a query may contain besides letters and digits; all else is escaped."""


class PeerClient:
    """An HTTP client for peers. May be used concurrently, on one loop; `aclose` when done.

    Ignores proxy settings of the environment, follows no redirect, keeps connections for reuse. `tls` is used for
    https URLs; None means the system's certificate authorities. `headers` go with every request.
    """

    def __init__(
        self, limits: Limits, *, tls: ssl.SSLContext | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self._limits = limits
        self._preferred: dict[str, str] = {}  # peer id -> the URL that worked last
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "peili", **(headers or {})}
        self._pool = PeerPool(tls)

    async def aclose(self) -> None:
        """Close every connection; who still reads from one is told that it broke. Idempotent."""
        self._pool.close()

    async def head(self, peer: Peer, path: str, *, timeout: float, headers: Mapping[str, str] | None = None) -> Head:
        """The answer, whatever its status, to HEAD of `path` (from the slash on) below the peer's URL.

        Each URL of the peer gets `timeout` seconds. Raises PeerUnavailable.
        """
        answer = await self.open("HEAD", peer, path, timeout=timeout, headers=headers)
        answer.close()
        return answer.head

    async def open(
        self, method: str, peer: Peer, path: str, *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """The answer, whatever its status; its body is read into buffers of the caller's, who closes the answer.

        `timeout` bounds the wait for its head, in seconds; what is read from it is for the caller to bound, and to
        read inside of `reading`. URLs are tried in the order that the peer prefers, beginning with the one that worked
        last; the next is tried only where no connection could be made. Raises PeerUnavailable.
        """
        connect_timeout = min(timeout, self._limits.connect_timeout)
        problem: Exception = PeerUnavailable(f"peer {peer.id} has no URL")
        with reading(peer):
            for url in self._urls(peer):
                try:
                    origin, request = self._request(method, url, path, peer.tls_name, headers or {})
                    answer = await self._pool.ask(
                        origin, method, request, timeout=timeout, connect_timeout=connect_timeout
                    )
                except (NotConnected, UnicodeError) as error:
                    self._preferred.pop(peer.id, None)
                    problem = error
                else:
                    self._prefer(peer, url)
                    return answer
            raise problem

    def _request(
        self, method: str, url: str, path: str, tls_name: str | None, headers: Mapping[str, str]
    ) -> tuple[Origin, bytes]:
        """Whom to ask, and the head of the request. Raises UnicodeError for a host's name that is none."""
        base = urlsplit(url)
        origin = Origin.of(url, tls_name)
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        target = quote(base.path + path, safe=_IN_PATHS)
        fields = {"Host": f"{host}:{origin.port}", **self._headers, **headers}
        lines = [f"{name}: {value}" for name, value in fields.items()]
        if any("\r" in line or "\n" in line for line in lines):
            raise ValueError("a header can't have more than one line")
        return origin, "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "\r\n"]).encode("latin-1")

    def _urls(self, peer: Peer) -> tuple[str, ...]:
        first = self._preferred.get(peer.id)
        if first not in peer.urls:
            return peer.urls
        return (first, *(url for url in peer.urls if url != first))

    def _prefer(self, peer: Peer, url: str) -> None:
        if len(peer.urls) > 1:
            if len(self._preferred) >= _MAX_PREFERENCES:
                self._preferred.clear()
            self._preferred[peer.id] = url


@contextmanager
def reading(peer: Peer) -> Generator[None]:
    """Translate what is raised while a peer is spoken to into PeerUnavailable. UnicodeError: a name that is none."""
    try:
        yield
    except (UnicodeError, NotConnected, Malformed, OSError) as error:
        raise _unavailable(peer, error) from error  # OSError: TLS's are, too, and timeouts


def _unavailable(peer: Peer, error: Exception) -> PeerUnavailable:
    what = str(error) or type(error).__name__
    return PeerUnavailable(f"peer {peer.id}: {what}", _reason(error))


def _reason(error: Exception) -> str:
    match error:
        case TimeoutError():
            return FAILED_SILENT
        case Malformed() | OSError():
            return FAILED_BROKEN
        case _:
            return FAILED_UNREACHABLE
