"""The routes of the directory, through which this host is a home for other hosts. See docs/protocol.md."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from peili.mirror.membership.directory.directory import Directory
from peili.mirror.peer_api.directory import (
    HELLO_ROUTE,
    HOLDERS_ROUTE,
    HOLDINGS_ROUTE,
    HoldersQuery,
    Holdings,
)
from peili.mirror.peer_api.leases import ACQUIRE_ROUTE, LEASES_ROUTE, AcquireQuery, LeaseReports
from peili.mirror.peer_api.messages import JSON_HEADERS, MAX_MESSAGE
from peili.mirror.peer_api.peers import IDENTITY_HEADER, Peer
from peili.mirror.support.deadlines import Deadline
from peili.mirror.tls.identities import PEER_NAMES, has_proven_itself, peer_identity

_MAX_REQUESTS = 256
"""How many messages are read at the same time. Further ones are answered with 429."""
_MAX_CACHED = 4096
"""How many texts of addresses are remembered. To parse one takes a third of the time that a message takes."""


class DirectoryRoutes:
    """Answers the requests of other hosts.

    Args:
        directory: Returns the directory of the router; None while the router does not run.
    """

    def __init__(self, directory: Callable[[], Directory | None]) -> None:
        self._directory = directory
        self._reading = 0

    def routes(self) -> Sequence[BaseRoute]:
        """Return the routes, for the paths below the router's part of the peer door."""
        return (
            Route(HELLO_ROUTE, self._hello, methods=["GET"]),  # this includes HEAD
            Route(HOLDINGS_ROUTE, self._message(_take_holdings), methods=["POST"]),
            Route(HOLDERS_ROUTE, self._message(_answer_query), methods=["POST"]),
            Route(ACQUIRE_ROUTE, self._message(_grant), methods=["POST"]),
            Route(LEASES_ROUTE, self._message(_take_reports), methods=["POST"]),
        )

    async def _hello(self, _: Request) -> Response:
        return Response(status_code=200 if self._directory() is not None else 503)

    def _message(
        self, handle: Callable[[Directory, Request, bytes], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint that reads a message and calls `handle`, which raises ValueError if it is malformed."""

        async def endpoint(request: Request) -> Response:
            directory = self._directory()
            if directory is None:
                return _problem(503, "this router is not running")
            if self._reading >= _MAX_REQUESTS:
                return _problem(429, "too many requests at the same time")
            self._reading += 1
            try:
                async with Deadline(directory.limits.lookup_timeout):
                    body = await _read_body(request)
            except TimeoutError:
                return _problem(408, "the request did not arrive in time")
            finally:
                self._reading -= 1
            if body is None:
                return _problem(413, f"a message has at most {MAX_MESSAGE} bytes")
            try:
                return await handle(directory, request, body)
            except ValueError as error:
                return _problem(400, str(error))

        return endpoint


def _problem(status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status_code=status)


async def _read_body(request: Request) -> bytes | None:
    """Return the body; None if it is too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_MESSAGE:
            return None
    return bytes(body)


async def _take_holdings(directory: Directory, request: Request, body: bytes) -> Response:
    """Record what a member reports about itself. Reports about other members are refused."""
    identity = _member(directory, request)
    if identity is None:
        return _unknown_member()
    message = Holdings.parse(body)
    if message.sequence == 0:
        directory.note_restart(identity)
    is_accepted = directory.home.take(identity, message)
    return Response(status_code=204) if is_accepted else _problem(409, "send all")


async def _answer_query(directory: Directory, request: Request, body: bytes) -> Response:
    answer = await directory.home.holders(HoldersQuery.parse(body), is_proven=has_proven_itself(request))
    return Response(answer.encode(), headers=JSON_HEADERS)


async def _grant(directory: Directory, request: Request, body: bytes) -> Response:
    """Say where a member gets a key. Nobody can claim one for another member."""
    identity = _member(directory, request)
    if identity is None:
        return _unknown_member()
    query = AcquireQuery.parse(body, identity)
    answer = await directory.home.acquire_for(query, is_proven=has_proven_itself(request))
    return Response(answer.encode(), headers=JSON_HEADERS)


async def _take_reports(directory: Directory, request: Request, body: bytes) -> Response:
    """Record what a member reports about what it receives."""
    identity = _member(directory, request)
    if identity is None:
        return _unknown_member()
    return Response(directory.home.report(identity, LeaseReports.parse(body)).encode(), headers=JSON_HEADERS)


def _member(directory: Directory, request: Request) -> str | None:
    """Return the id of the member that a request is from; None if it is from nobody that this host knows."""
    identity = request.headers.get(IDENTITY_HEADER, "")
    member = directory.members.member(identity)
    if member is None:
        directory.note_stranger()
        return None
    if not _is_from(member, identity, request):
        return None
    directory.note_message(member)
    return identity


def _unknown_member() -> Response:
    return _problem(403, "no member with this certificate or address has this id")


def _is_from(peer: Peer, identity: str, request: Request) -> bool:
    """Return whether a request can be from `peer`.

    If its certificate or the `Auth` of the mirror shows an id, that counts. Else its certificate must show a name of
    the peer, or one of the peer's URLs must have the address of the client. Without a certificate, a name for a host in
    a URL is enough.
    """
    shown = peer_identity(request)
    if shown is not None:
        return shown == identity
    certified: Collection[str] | None = request.scope.get(PEER_NAMES)
    if certified is not None and not {each.lower() for each in certified}.isdisjoint(_names(peer)):
        return True
    addresses = _addresses(peer.urls)
    is_named = certified is None and None in addresses
    return is_named or (request.client is not None and _ip_address(request.client.host) in addresses - {None})


def _names(peer: Peer) -> set[str]:
    """Return the names that a certificate of `peer` shows, in lower case."""
    hosts = {urlsplit(url).hostname or "" for url in peer.urls}
    return hosts if peer.tls_name is None else {peer.tls_name.lower()}


@lru_cache(_MAX_CACHED)
def _addresses(urls: tuple[str, ...]) -> frozenset[IPv4Address | IPv6Address | None]:
    """Return the addresses in the URLs of a peer, and None if one of them has a name."""
    return frozenset(_ip_address(urlsplit(url).hostname or "") for url in urls)


@lru_cache(_MAX_CACHED)
def _ip_address(text: str) -> IPv4Address | IPv6Address | None:
    with suppress(ValueError):
        address = ip_address(text.partition("%")[0])
        return getattr(address, "ipv4_mapped", None) or address
    return None
