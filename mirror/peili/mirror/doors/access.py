"""Who may use a door: what an `Auth` decides for each request."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from starlette.requests import HTTPConnection
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peili.mirror.doors.response import ResponseWriter
from peili.mirror.oci.requests import DENIED, HTTPError
from peili.mirror.peer_api.peers import IDENTITY_HEADER
from peili.mirror.plugins.calls import CallFailed, call
from peili.mirror.plugins.interfaces import Context
from peili.mirror.server.socket_writer import wrap_send
from peili.mirror.support.tasks import is_own_failure
from peili.mirror.tls.identities import PEER_IDENTITY

Auth: TypeAlias = Callable[[HTTPConnection], bool | str | Awaitable[bool | str]]
"""Decides whether a request may use a door. May be a coroutine function.

For the peer door, it may return the id of the host that sent the request, if it knows that. Then the host can claim and
report something only about itself.

The mirror calls it on its event loop for each request. Access is denied if it raises, or if the awaitable that it
returned takes longer than ``Limits.first_byte_timeout`` seconds.
"""


def anyone(connection: HTTPConnection) -> bool:
    """An `Auth` that allows every request."""
    return True


def loopback_only(connection: HTTPConnection) -> bool:
    """An `Auth` that allows only requests from this host: the client's address must be a loopback address.

    A client without an address, for example on a unix socket, is denied. Do not use it behind a proxy on this host:
    each request would have a loopback address.
    """
    address = _client_address(connection)
    return address is not None and address.is_loopback


def clients_in(networks: Iterable[str]) -> Callable[[HTTPConnection], bool]:
    """Return an `Auth` that allows requests from this host, as `loopback_only` does, and from some networks.

    Args:
        networks: Networks such as ``10.0.0.0/24``, and single addresses.

    Raises:
        ValueError: One of `networks` is not a network. The message names it.
    """
    allowed: list[IPv4Network | IPv6Network] = [ip_network(each) for each in networks]

    def auth(connection: HTTPConnection) -> bool:
        address = _client_address(connection)
        return address is not None and (address.is_loopback or any(address in network for network in allowed))

    return auth


def or_this_host(auth: Auth) -> Auth:
    """Return an `Auth` that allows what `auth` allows, and every request from an address of this host itself."""

    def either(connection: HTTPConnection) -> bool | str | Awaitable[bool | str]:
        client, server = connection.client, connection.scope.get("server")
        is_own = client is not None and server is not None and client.host == server[0]
        return loopback_only(connection) or is_own or auth(connection)

    return either


def _client_address(connection: HTTPConnection) -> IPv4Address | IPv6Address | None:
    """Return the address of the client. An IPv4 address on an IPv6 socket is returned as an IPv4 address."""
    if connection.client is None:
        return None
    try:
        address = ip_address(connection.client.host.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


class AccessCheck:
    """Passes on the requests that `auth` allows. Answers 403 to the others, and to all requests while `auth` fails.

    Args:
        app: The door.
        door: The name of the door, for the log.
        auth: See `Auth`.
        context: Its ``limits.first_byte_timeout`` bounds `auth`, its log receives the errors of `auth`, and a warning
            for the first request that is refused.
        identity: The id of this host. Each response carries it in a header.
    """

    def __init__(self, app: ASGIApp, door: str, auth: Auth, context: Context, *, identity: str | None = None) -> None:
        self._app = app
        self._door = door
        self._auth = auth
        self._context = context
        self._is_logged = False
        self._header = None if identity is None else (IDENTITY_HEADER.lower().encode(), identity.encode())
        self._lifespan = Router()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)  # answers that start-up is complete; a door has nothing to start
            return
        if self._header is not None:
            send = _add_header(send, self._header)
        decision = await self._decide(HTTPConnection(scope))
        if decision:
            if isinstance(decision, str):
                scope[PEER_IDENTITY] = decision
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            if decision is not None:
                self._log_refusal(HTTPConnection(scope))
            error = HTTPError(403, DENIED, "access denied")
            await ResponseWriter(scope, send, self._context.limits.reader_timeout).error(error)

    def _log_refusal(self, connection: HTTPConnection) -> None:
        """Log the first refused request."""
        if not self._is_logged:
            self._is_logged = True
            client = connection.client.host if connection.client is not None else "a client without an address"
            self._context.log.warning(
                "refused a request from %s to the %s door (later ones are not logged)", client, self._door
            )

    async def _decide(self, connection: HTTPConnection) -> bool | str | None:
        """Return what `auth` decides; None if it fails."""
        try:
            decision = self._auth(connection)
            if not inspect.isawaitable(decision):
                return _decision(decision)
        except BaseException as error:
            if not is_own_failure(error):
                raise
            self._context.log.exception("the access check failed")
            return None
        try:
            return _decision(await call(lambda: decision, self._context, "the access check"))
        except CallFailed:
            return None


def _decision(value: object) -> bool | str:
    """Return what an `Auth` returned. It is third-party code, so the type of the value is not certain."""
    return value if isinstance(value, str) else bool(value)


def _add_header(send: Send, header: tuple[bytes, bytes]) -> Send:
    """Return a `send` that adds `header` to the response."""

    async def send_with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), header]}
        await send(message)

    return wrap_send(send, send_with_header)
