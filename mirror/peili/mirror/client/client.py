"""Speaks HTTP to peers: picks the URL that works, checks the right name in a certificate, never uses a proxy.

By connections of our own (peerpool.py): a question to a peer costs a fraction of what it does by httpx, and
among a hundred hosts there are thousands a second; and a host that embeds us is spared 8 MiB. Errors of the network end
here; callers see PeerUnavailable.
"""

from __future__ import annotations

import ssl
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, urlsplit

from peili.mirror.client.connection import RemoteProtocolError, Response, ResponseHead, ServerDisconnected
from peili.mirror.client.pool import NOT_IN_TIME, ConnectError, ConnectionPool
from peili.mirror.client.transport import Origin
from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.limits import Limits
from peili.mirror.peer_api.peers import Peer
from peili.mirror.support.deadlines import Deadline

IDENTITY_HEADER = "Peili-Id"
"""On every answer of a peer door: the id of the host that answers."""

_MAX_PREFERENCES = 4096
_IN_PATHS = "/:?=&%@!$'()*+,;~[]"
"""What a path with a query may contain besides letters and digits; all else is escaped."""


@dataclass(slots=True)
class _Call:
    """What is asked for, below whatever URL."""

    method: str
    path: str
    headers: Mapping[str, str]
    connecting: bool = False
    """Whether there is no connection yet."""


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
        self._tls = tls
        self._pool = ConnectionPool(tls)

    async def __aenter__(self) -> Self:
        """Make the client usable, again if it was closed."""
        if self._pool.is_closed:
            self._pool = ConnectionPool(self._tls)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection; who still reads from one is told that it broke. Idempotent."""
        self._pool.close()

    async def head(
        self, peer: Peer, path: str, *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> ResponseHead:
        """The answer, whatever its status, to HEAD of `path` (from the slash on) below the peer's URL.

        All of it has `timeout` seconds, however many URLs are tried. Raises PeerUnavailable.
        """
        answer = await self.open("HEAD", peer, path, timeout=timeout, headers=headers)
        answer.close()
        return answer.head

    async def open(
        self, method: str, peer: Peer, path: str, *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Response:
        """The answer, whatever its status; its body is read into buffers of the caller's, who closes the answer.

        All of it, until the answer's head is here, has `timeout` seconds, however many URLs are tried and connections
        are made; what is read from it is for the caller to bound, and to read inside of `reading`. URLs are tried in
        the order that the peer prefers, beginning with the one that worked last; the next is tried only where no
        connection could be made. Raises PeerUnavailable.
        """
        call = _Call(method, path, headers or {})
        with map_exceptions(peer):
            patience = Deadline(timeout)
            try:
                async with patience:
                    return await self._ask(peer, call, patience)
            except TimeoutError as error:
                if patience.expired() and call.connecting:
                    raise ConnectError(NOT_IN_TIME) from error
                raise

    async def _ask(self, peer: Peer, call: _Call, patience: Deadline) -> Response:
        """Ask one URL after the other. To connect to one takes its share of the time that is left, at most."""
        urls = self._urls(peer)
        problem: Exception = PeerUnavailable(f"peer {peer.id} has no URL")
        for place, url in enumerate(urls):
            share = min(patience.left / (len(urls) - place), self._limits.connect_timeout)
            try:
                answer = await self._ask_at(Origin.of(url, peer.tls_name), url, call, share)
            except (ConnectError, UnicodeError) as error:
                self._preferred.pop(peer.id, None)
                problem = error
            else:
                self._prefer(peer, url)
                return answer
        raise problem

    async def _ask_at(self, origin: Origin, url: str, call: _Call, connect_timeout: float) -> Response:
        """The answer of `url`, on a kept connection where there is one."""
        request = self._request(origin, url, call)
        if (kept := self._pool.kept(origin)) is not None:
            call.connecting = False
            try:
                return await kept.ask(call.method, request)
            except ServerDisconnected:
                pass  # it was closed just then; a fresh one tells what the peer has to say
        call.connecting = True
        connection = await self._pool.connect(origin, connect_timeout)
        call.connecting = False
        return await connection.ask(call.method, request)

    def _request(self, origin: Origin, url: str, call: _Call) -> bytes:
        """The head of the request."""
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        target = quote(urlsplit(url).path + call.path, safe=_IN_PATHS)
        fields = {"Host": f"{host}:{origin.port}", **self._headers, **call.headers}
        lines = [f"{name}: {value}" for name, value in fields.items()]
        if any("\r" in line or "\n" in line for line in lines):
            raise ValueError("a header can't have more than one line")
        return "\r\n".join([f"{call.method} {target} HTTP/1.1", *lines, "\r\n"]).encode("latin-1")

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
def map_exceptions(peer: Peer) -> Generator[None]:
    """Translate what is raised while a peer is spoken to into PeerUnavailable. UnicodeError: a name that is none."""
    try:
        yield
    except (UnicodeError, ConnectError, RemoteProtocolError, OSError) as error:
        raise _unavailable(peer, error) from error  # OSError: TLS's are, too, and timeouts


def _unavailable(peer: Peer, error: Exception) -> PeerUnavailable:
    what = str(error) or type(error).__name__
    return PeerUnavailable(f"peer {peer.id}: {what}", _reason(error))


def _reason(error: Exception) -> str:
    match error:
        case TimeoutError():
            return FailureReason.SILENT
        case RemoteProtocolError() | OSError():
            return FailureReason.BROKEN
        case _:
            return FailureReason.UNREACHABLE
