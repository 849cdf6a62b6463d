"""One exchange with a registry over HTTP: its redirects, its bounds, and who gets which headers."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import httpx

from peili.mirror.limits import Limits
from peili.mirror.support.threads import DaemonThreads
from peili.mirror.upstream.api_roots import ApiRoot
from peili.mirror.upstream.destinations import check_host, connection_check
from peili.mirror.upstream.exchanges import (
    CannotAsk,
    Exchange,
    ExchangeFailed,
    RegistryReply,
    TooLarge,
    UnusableReply,
)
from peili.mirror.upstream.pools import ConnectionPools
from peili.mirror.upstream.unlogged import hide_url, hiding_results

_MOST_REDIRECTS = 5
_LONGEST_REASON = 200


class RegistryTransport:
    """Sends requests to registries. Used on one event loop. Call `aclose` at the end.

    The variables ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` are honoured. No other configuration
    of this host's user is read, for example no ``.netrc``.

    Args:
        limits: ``connect_timeout`` and ``upstream_requests``, the number of connections.
        threads: Reads certificates.
    """

    def __init__(self, limits: Limits, threads: DaemonThreads) -> None:
        self._pools = ConnectionPools(limits, threads)

    async def aclose(self) -> None:
        """Close all connections. Requests that are under way fail. Idempotent."""
        await self._pools.aclose()

    async def send(self, root: ApiRoot, exchange: Exchange) -> RegistryReply:
        """Send a request, follow its redirects, and read the response. The caller bounds the time.

        A redirect to another origin is followed without the Authorization header and without the headers of `root`, and
        never from https to http. One from http to https fails, because such a registry has no authority.

        Raises:
            NotDialled: It leads to this host or to a metadata service, although `root` is only assumed.
            CannotAsk: A certificate can't be used, or one of the two hosts does not accept that of the other.
            ExchangeFailed: There is no response that can be used.
        """
        try:
            async with self._pools.lend(root) as pool:
                return await self._send(pool, root, exchange)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError, ImportError, ValueError) as error:
            raise (CannotAsk if _is_about_tls(error) else ExchangeFailed)(_reason(error)) from error

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


def _is_about_tls(error: BaseException | None) -> bool:
    """Return whether the two hosts do not agree about TLS. A connection that ends in the handshake does not show it."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None and not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError))


def _reason(error: Exception) -> str:
    """Return one line that says what went wrong. It shows nothing of a malformed response, which may have secrets."""
    text = " ".join(str(error).split())
    if isinstance(error, httpx.ProtocolError):
        text = text.partition(":")[0]
    name = type(error).__name__
    return f"{name}: {text[:_LONGEST_REASON]}" if text else name
