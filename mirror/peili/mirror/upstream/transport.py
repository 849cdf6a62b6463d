"""One exchange with a registry over HTTP: connections, certificates, proxies, redirects and bounds.

It uses httpx, which knows proxies. Connections to peers have a client of their own, which is faster.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import TypeAlias

import httpx

from peili.mirror.limits import Limits
from peili.mirror.support.threads import DaemonThreads
from peili.mirror.upstream.destinations import check_host, connection_check
from peili.mirror.upstream.exchanges import (
    MOST_CHECKS,
    USER_AGENT,
    Exchange,
    ExchangeFailed,
    RegistryReply,
    TooLarge,
    UnusableReply,
)
from peili.mirror.upstream.roots import ApiRoot
from peili.mirror.upstream.unlogged import hide_url, hiding_results

_MOST_REDIRECTS = 5
_KEEP_ALIVE = 30.0
"""Seconds for which an unused connection is kept."""
_UNUSED_CONNECTIONS = 4
_MOST_POOLS = 64
"""Registries with certificates of their own that are used at the same time."""
_LONGEST_REASON = 200

_Trust: TypeAlias = tuple[bool, tuple[Path, ...], tuple[tuple[Path, Path], ...], bool]
"""What the TLS context depends on."""
_PoolKey: TypeAlias = tuple[_Trust, bool]
"""Roots that have this in common share a pool of connections: the TLS, and whether the addresses are checked."""


class RegistryTransport:
    """Sends requests to registries. Used on one event loop. Call `aclose` at the end.

    The variables ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` are honoured. No other configuration
    of this host's user is read, for example no ``.netrc``.

    Args:
        limits: ``connect_timeout`` and ``upstream_requests``, the number of connections.
        threads: Reads certificates.
    """

    def __init__(self, limits: Limits, threads: DaemonThreads) -> None:
        self._limits = limits
        self._threads = threads
        self._pools: dict[_PoolKey, httpx.AsyncClient] = {}
        self._is_closed = False

    async def aclose(self) -> None:
        """Close all connections. Requests that are under way fail. Idempotent."""
        self._is_closed = True
        while self._pools:
            await self._pools.popitem()[1].aclose()

    async def send(self, root: ApiRoot, exchange: Exchange) -> RegistryReply:
        """Send a request, follow its redirects, and read the response. The caller bounds the time.

        A redirect to another origin is followed without the Authorization header and without the headers of `root`, and
        never from https to http. One from http to https fails, because such a registry has no authority.

        Raises:
            NotDialled: It leads to this host or to a metadata service, although `root` is only assumed.
            ExchangeFailed: There is no response that can be used.
        """
        try:
            return await self._send(await self._pool(root), root, exchange)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError, ImportError, ValueError) as error:
            raise ExchangeFailed(_reason(error)) from error

    async def _send(self, pool: httpx.AsyncClient, root: ApiRoot, exchange: Exchange) -> RegistryReply:
        url, home, origin = httpx.URL(exchange.url), _origin(httpx.URL(root.url)), _origin(httpx.URL(exchange.url))
        for _ in range(_MOST_REDIRECTS + 1):
            # What is configured may be a credential, as is a token. Storage that a redirect leads to gets neither.
            headers = {**(root.headers if _origin(url) == home else {}), **exchange.headers}
            if exchange.authorization is not None and _origin(url) == origin:
                headers["Authorization"] = exchange.authorization
            async with _response(pool, exchange.method, url, headers, is_checked=root.is_assumed) as response:
                location = response.headers.get("location") if response.has_redirect_location else None
                if location is None:
                    return await _reply(response, exchange)
            following = url.join(location)
            if following.scheme not in {"http", "https"} or (url.scheme == "https" and following.scheme == "http"):
                raise UnusableReply("it redirects from https to another scheme")
            if exchange.stops_at_other_host and _origin(following) != origin:
                return RegistryReply(response.status_code, {}, location=str(following))
            url = following
        raise UnusableReply(f"it redirects more than {_MOST_REDIRECTS} times")

    async def _pool(self, root: ApiRoot) -> httpx.AsyncClient:
        trust: _Trust = (root.url.startswith("https:"), root.ca, root.client, root.skip_verify)
        key = (trust, root.is_assumed)
        if key not in self._pools:
            context = await self._threads.run(partial(_tls_context, trust))
            if len(self._pools) >= _MOST_POOLS:
                raise ExchangeFailed(f"more than {_MOST_POOLS} registries have certificates of their own")
            if self._is_closed:
                raise ExchangeFailed("the mirror is not running")
            self._pools.setdefault(key, self._new_pool(context))  # another task may have been faster
        return self._pools[key]

    def _new_pool(self, context: ssl.SSLContext) -> httpx.AsyncClient:
        most = self._limits.upstream_requests
        return httpx.AsyncClient(
            verify=context,
            # One requester's cookies are not for the next one.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            limits=httpx.Limits(
                max_connections=most + MOST_CHECKS,
                max_keepalive_connections=min(most, _UNUSED_CONNECTIONS),
                keepalive_expiry=_KEEP_ALIVE,
            ),
            timeout=httpx.Timeout(None, connect=self._limits.connect_timeout),  # the caller bounds the rest
        )


@asynccontextmanager
async def _response(
    pool: httpx.AsyncClient, method: str, url: httpx.URL, headers: Mapping[str, str], *, is_checked: bool
) -> AsyncGenerator[httpx.Response]:
    if is_checked:
        check_host(url.host)
    trace = hiding_results(connection_check(url.raw_host.decode("ascii")) if is_checked else None)
    request = pool.build_request(method, url, headers=headers, extensions={"trace": trace})
    response = await pool.send(hide_url(request), stream=True)
    try:
        yield response
    finally:
        await response.aclose()


async def _reply(response: httpx.Response, exchange: Exchange) -> RegistryReply:
    body = bytearray()
    if exchange.most:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise UnusableReply("it compresses its answer, although it was not asked to")
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > exchange.most:
                raise TooLarge(f"its answer is larger than {exchange.most} bytes")
    challenges = response.headers.get_list("www-authenticate")
    return RegistryReply(response.status_code, dict(response.headers), challenges, bytes(body))


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    ports = {"http": 80, "https": 443}
    return (url.scheme, url.host, url.port or ports.get(url.scheme))


def _tls_context(trust: _Trust) -> ssl.SSLContext:
    """Return the context for connections. Blocks. Raises OSError if a file can't be read or has no certificate."""
    is_used, authorities, client, skip_verify = trust
    if not is_used:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the system's authorities take long to load
    context = ssl.create_default_context()  # the system's authorities, also if there are more
    for file in authorities:
        context.load_verify_locations(cafile=file)
    for certificate, key in client:
        context.load_cert_chain(certificate, key)
    if skip_verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _reason(error: Exception) -> str:
    """Return one line that says what went wrong. It shows nothing of a malformed response, which may have secrets."""
    text = " ".join(str(error).split())
    if isinstance(error, httpx.ProtocolError):
        text = text.partition(":")[0]
    name = type(error).__name__
    return f"{name}: {text[:_LONGEST_REASON]}" if text else name
