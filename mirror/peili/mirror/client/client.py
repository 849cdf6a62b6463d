"""The HTTP client for peers.

The client chooses a URL of the peer that works, checks the name in its certificate, and never uses a proxy. It
translates errors of the network to `PeerUnavailable`.

It does not use httpx. A hundred hosts exchange thousands of requests a second, and httpx would take several times as
long per request. It would also take 8 MiB of memory in each host agent.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, urlsplit

from peili.mirror.client.connecting import Origin
from peili.mirror.client.connection import (
    RemoteProtocolError,
    Response,
    ResponseHead,
    ServerDisconnected,
)
from peili.mirror.client.pool import CONNECT_TIMEOUT, ConnectError, ConnectionPool
from peili.mirror.errors import FailureReason, PeerUnavailable
from peili.mirror.limits import Limits
from peili.mirror.peer_api.peers import IDENTITY_HEADER, Peer, is_identity
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.newest import put_newest
from peili.mirror.tls.peer_tls import PeerTLS

_MAX_PREFERENCES = 4096
_SAFE_IN_TARGET = "/:?=&%@!$'()*+,;~[]"
"""What a path with a query may contain in addition to letters and digits. Other characters are escaped."""
_USUAL_TARGET = re.compile(r"[A-Za-z0-9/:._-]+")
"""Nothing to escape, which is found out faster than by escaping."""


@dataclass(frozen=True, slots=True)
class _BaseURL:
    """The parts of a URL of a peer.

    Attributes:
        host: The host name in ASCII, or the address.
        path: The path, which requests extend.
        host_header: The value of the header Host.
    """

    is_secure: bool
    host: str
    port: int
    path: str
    host_header: str

    @classmethod
    def parse(cls, url: str) -> _BaseURL:
        """Return the parts of `url`. Raises UnicodeError if its host is not a host name."""
        parts = urlsplit(url)
        is_secure = parts.scheme == "https"
        host, port = parts.hostname or "", parts.port or (443 if is_secure else 80)
        if not host.isascii() or ".." in host:
            host = host.encode("idna").decode("ascii")
        return cls(is_secure, host, port, parts.path, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


@dataclass(frozen=True, slots=True)
class Contact:
    """The last response of a peer.

    Attributes:
        last_seen: When its head arrived, in seconds since 1970.
        round_trip: How many seconds the last HEAD request took, without connecting; None if there was none.
        identity: The id that the peer answered with; None if it answered without one.
    """

    last_seen: float
    round_trip: float | None
    identity: str | None


class PeerClient:
    """An HTTP client for peers.

    It ignores the proxy settings of the environment, follows no redirects and keeps connections for reuse. It may be
    used concurrently, on one event loop. Call `aclose` at the end, or use ``async with``.

    Args:
        limits: ``connect_timeout`` bounds each attempt to connect.
        tls: How to connect to https URLs. None means with the certificate authorities of the system. With a `PeerTLS`,
            http URLs cannot be used.
        headers: Headers of every request.
        add_headers: Called with the headers of each request before it is sent; adds more, such as those of a trace.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        tls: ssl.SSLContext | PeerTLS | None = None,
        headers: Mapping[str, str] | None = None,
        add_headers: Callable[[dict[str, str]], None] = lambda _: None,
    ) -> None:
        self._limits = limits
        self._preferred: dict[str, str] = {}  # peer id -> the URL that worked last
        self._contacts: dict[str, Contact] = {}  # by the peer's id
        self._base_urls: dict[str, _BaseURL] = {}  # by the URL
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "peili", **(headers or {})}
        self._add_headers = add_headers
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
        """Close all connections. Tasks that still read from one receive an error. Idempotent."""
        self._pool.close()

    async def head(
        self, peer: Peer, path: str, *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> ResponseHead:
        """Send a HEAD request. Arguments and errors are those of `open`.

        Returns:
            The head of the response, whatever its status.
        """
        response = await self.open("HEAD", peer, path, timeout=timeout, headers=headers)
        response.close()
        return response.head

    async def open(
        self, method: str, peer: Peer, path: str, *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Send a request and wait for the head of the response.

        The URLs of the peer are tried in its order of preference, but the one that worked last comes first. The next
        URL is tried only if no connection could be made.

        Args:
            method: GET or HEAD.
            peer: The peer.
            path: The path below the base URL of the peer, with a slash at its start.
            timeout: Seconds for everything up to the head of the response, however many URLs are tried.
            headers: More headers of the request.

        Returns:
            The response, whatever its status. The caller closes it, and reads its body with its own timeout, within
            `map_exceptions`.

        Raises:
            PeerUnavailable: No URL could be connected to, or the peer did not answer in HTTP/1.1 in time.
        """
        request = _Request(method, path, headers or {})
        with map_exceptions(peer, request):
            async with Deadline(timeout) as deadline:
                return await self._try_urls(peer, request, deadline)

    async def request(
        self,
        method: str,
        peer: Peer,
        path: str,
        body: bytes | None,
        *,
        timeout: float,
        max_response: int,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[ResponseHead, bytes]:
        """Send a request, and read the whole response.

        The URLs are tried as by `open`. A request with a body is sent at most once: if the connection ends after the
        client began to send, the peer may have acted on it, so the caller decides whether to repeat it. Its connection
        is kept only after a status from 200 to 299: a server that refuses a request need not have read its body, and
        would take the rest of it for the next request.

        Args:
            method: The method, for example POST.
            peer: The peer.
            path: The path below the base URL of the peer, with a slash at its start.
            body: The body of the request; None for a GET, which may be sent again.
            timeout: Seconds for everything, up to the end of the response.
            max_response: The largest body of a response that is read, in bytes.
            headers: More headers of the request. With ``Connection: close``, the connection is not kept.

        Returns:
            The head and the body of the response, whatever its status.

        Raises:
            PeerUnavailable: As for `open`. Also, if the body of the response is too large or its length is not stated.
        """
        request = _Request(method, path, headers or {}, None if method == "GET" and not body else body)
        with map_exceptions(peer, request):
            async with Deadline(timeout) as deadline:
                response = await self._try_urls(peer, request, deadline)
                try:
                    return response.head, await response.read(max_response)
                finally:
                    response.close(keep=not body or 200 <= response.head.status < 300)

    def contact(self, peer: Peer) -> Contact | None:
        """Return when `peer` answered last; None if it has not, or if too many others have since then."""
        return self._contacts.get(peer.id)

    def name_of(self, peer: Peer) -> str:
        """Return the name of `peer` for people: its id, or the one that it answered with if only its URL is known."""
        contact = self._contacts.get(peer.id)
        identity = contact.identity if contact is not None else None
        return identity if peer.id in peer.urls and identity and is_identity(identity) else peer.id

    def _note_contact(self, peer: Peer, request: _Request, response: Response) -> None:
        previous = self._contacts.get(peer.id)
        round_trip = previous.round_trip if previous is not None else None
        if request.method == "HEAD":
            round_trip = time.monotonic() - request.started
        contact = Contact(time.time(), round_trip, response.head.header(IDENTITY_HEADER))
        put_newest(self._contacts, peer.id, contact, _MAX_PREFERENCES)

    async def _try_urls(self, peer: Peer, request: _Request, deadline: Deadline) -> Response:
        """Try one URL after the other. An attempt to connect takes at most its share of the remaining time."""
        urls = peer.urls
        if (preferred := self._preferred.get(peer.id)) in urls:
            urls = (preferred, *(url for url in urls if url != preferred))
        last_error: Exception | None = None
        for index, url in enumerate(urls):
            connect_timeout = min(deadline.remaining / (len(urls) - index), self._limits.connect_timeout)
            try:
                response = await self._send_to(peer, url, request, connect_timeout)
            except (ConnectError, UnicodeError) as error:
                self._preferred.pop(peer.id, None)
                last_error = error
            else:
                self._note_contact(peer, request, response)
                if len(urls) > 1:
                    if len(self._preferred) >= _MAX_PREFERENCES:
                        self._preferred.clear()  # costs each peer one attempt at most
                    self._preferred[peer.id] = url
                return response
        raise last_error or PeerUnavailable(f"peer {peer.id} has no URL")

    async def _send_to(self, peer: Peer, url: str, request: _Request, connect_timeout: float) -> Response:
        """Send the request to `url`, on an idle connection if there is one."""
        base = self._base_url(url)
        origin, data = self._origin(base, url, peer), self._encode(base, request)
        if (idle := self._pool.take_idle(origin)) is not None:
            request.begin()
            try:
                return await idle.request(request.method, data)
            except ServerDisconnected:
                if request.body is not None:
                    raise  # the peer may have read it
                # The peer has closed the idle connection. A new one shows whether the peer is reachable.
        request.is_connecting = True
        connection = await self._pool.connect(origin, connect_timeout)
        request.begin()
        return await connection.request(request.method, data)

    def _base_url(self, url: str) -> _BaseURL:
        base = self._base_urls.get(url)
        if base is None:
            base = _BaseURL.parse(url)
            if len(self._base_urls) >= _MAX_PREFERENCES:
                self._base_urls.clear()  # they are parsed again
            self._base_urls[url] = base
        return base

    def _origin(self, base: _BaseURL, url: str, peer: Peer) -> Origin:
        """Return where to connect to. Raises ConnectError for an http URL if mutual TLS is required."""
        name = peer.tls_name or base.host
        if isinstance(self._tls, PeerTLS):
            if not base.is_secure:
                raise ConnectError(f"{url} must be an https URL, because hosts connect to peers with mutual TLS")
            name = self._tls.name_to_check(peer.tls_name, base.host)
        return Origin(base.is_secure, base.host, base.port, name, peer.dialled)

    def _encode(self, base: _BaseURL, request: _Request) -> bytes:
        """Return the bytes of a request."""
        target = base.path + request.path
        if not _USUAL_TARGET.fullmatch(target):
            target = quote(target, safe=_SAFE_IN_TARGET)
        headers = {"Host": base.host_header, **self._headers, **request.headers}
        if request.body is not None:
            headers["Content-Length"] = str(len(request.body))
        self._add_headers(headers)
        text = "".join([f"{request.method} {target} HTTP/1.1\r\n", *map(_header_line, headers.items()), "\r\n"])
        head = text.encode("latin-1")
        return head + request.body if request.body else head


def _header_line(header: tuple[str, str]) -> str:
    name, value = header
    if "\r" in value or "\n" in value or "\r" in name or "\n" in name:
        raise ValueError("a header has more than one line")
    return f"{name}: {value}\r\n"


@dataclass(slots=True)
class _Request:
    """A request, without the URL of the peer.

    Attributes:
        path: The path below the base URL of the peer.
        body: The body. A request without one may be sent again if the connection ends before the response begins.
        is_connecting: Whether the request waits for a connection.
        started: When the request was sent, on a connection.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None = None
    is_connecting: bool = False
    started: float = 0.0

    def begin(self) -> None:
        """Note that there is a connection, on which the request is sent now."""
        self.is_connecting = False
        self.started = time.monotonic()


@contextmanager
def map_exceptions(peer: Peer, request: _Request | None = None) -> Generator[None]:
    """Translate the errors of a request, or of reading its response.

    Args:
        peer: The peer that the request is sent to.
        request: The request while it is sent; None while a body is read.

    Raises:
        PeerUnavailable: In place of an error of the network or of HTTP. Its reason depends on the error.
    """
    try:
        yield
    except (TimeoutError, OSError, RemoteProtocolError, ConnectError, UnicodeError) as error:
        if isinstance(error, TimeoutError) and request is not None and request.is_connecting:
            raise PeerUnavailable(f"peer {peer.id}: {CONNECT_TIMEOUT}", FailureReason.UNREACHABLE) from error
        match error:  # errors of TLS are OSErrors, and UnicodeError means a malformed host name
            case TimeoutError():
                reason = FailureReason.SILENT
            case RemoteProtocolError() | OSError():
                reason = FailureReason.BROKEN
            case _:
                reason = FailureReason.UNREACHABLE
        text = str(error) or ("no answer in time" if reason == FailureReason.SILENT else type(error).__name__)
        raise PeerUnavailable(f"peer {peer.id}: {text}", reason) from error
