"""Speaks HTTP to peers: picks the URL that works, checks the right name in a certificate, never uses a proxy.

httpx errors end here; callers see PeerUnavailable.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager

import httpx

from peili.mirror.errors import PeerUnavailable
from peili.mirror.limits import Limits
from peili.mirror.peers import FAILED_BROKEN, FAILED_SILENT, FAILED_UNREACHABLE, Peer

IDENTITY_HEADER = "Peili-Id"
"""On every answer of a peer door: the id of the host that answers."""

_MAX_PREFERENCES = 4096


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
        self.http = httpx.AsyncClient(
            verify=tls if tls is not None else True,
            trust_env=False,
            follow_redirects=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "peili", **(headers or {})},
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=15),
        )

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        await self.http.aclose()

    async def head(
        self, peer: Peer, path: str, *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """The answer, whatever its status, to HEAD of `path` (from the slash on) below the peer's URL.

        Each URL of the peer gets `timeout` seconds. Raises PeerUnavailable.
        """
        async with self.stream("HEAD", peer, path, timeout=timeout, headers=headers) as response:
            with reading(peer):
                await response.aread()  # there is no body, but only an answer read to its end frees its connection
            return response

    @asynccontextmanager
    async def stream(
        self, method: str, peer: Peer, path: str, *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[httpx.Response, None]:
        """The answer to a request, its body not yet read; reading it may raise httpx's errors.

        `timeout` bounds each single wait, in seconds. URLs are tried in the order that the peer prefers, beginning
        with the one that worked last; the next is tried only where no connection could be made. Raises
        PeerUnavailable.
        """
        with reading(peer):
            response = await self._send(method, peer, path, timeout, headers)
        try:
            yield response
        finally:
            await response.aclose()

    async def _send(
        self, method: str, peer: Peer, path: str, timeout: float, headers: Mapping[str, str] | None
    ) -> httpx.Response:
        extensions = {"sni_hostname": peer.tls_name} if peer.tls_name else {}
        times = httpx.Timeout(timeout, connect=min(timeout, self._limits.connect_timeout), pool=None)
        if self.http.is_closed:
            raise PeerUnavailable(f"peer {peer.id}: this client is closed")
        problem: Exception = PeerUnavailable(f"peer {peer.id} has no URL")
        for url in self._urls(peer):
            request = self.http.build_request(method, url + path, headers=headers, timeout=times, extensions=extensions)
            try:
                response = await self._send_once(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                self._preferred.pop(peer.id, None)
                problem = error
            else:
                self._prefer(peer, url)
                return response
        raise problem

    async def _send_once(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self.http.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            # A kept connection that the peer closed just now looks like this; a fresh one tells which it was.
            return await self.http.send(request, stream=True)

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
    """Translate what httpx raises while a peer is spoken to into PeerUnavailable. UnicodeError: a name that is none."""
    try:
        yield
    except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, ssl.SSLError, UnicodeError) as error:
        what = str(error) or type(error).__name__
        raise PeerUnavailable(f"peer {peer.id}: {what}", _reason(error)) from error


def _reason(error: Exception) -> str:
    match error:
        case httpx.ReadTimeout() | httpx.WriteTimeout():
            return FAILED_SILENT
        case httpx.ReadError() | httpx.WriteError() | httpx.RemoteProtocolError():
            return FAILED_BROKEN
        case _:
            return FAILED_UNREACHABLE
