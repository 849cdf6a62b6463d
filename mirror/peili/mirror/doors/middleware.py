"""The ASGI middleware around the doors and around the routes of a router. `Mirror` shows how the layers are nested."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias, cast

from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peili.mirror.accounting.accounting import Accounting
from peili.mirror.doors.response import ResponseWriter
from peili.mirror.metrics.counters import LOCAL, Metrics
from peili.mirror.metrics.requests import RequestRecord
from peili.mirror.metrics.spans import Spans
from peili.mirror.oci.requests import DENIED, LIMIT_OF_STATUS, HTTPError, check_head
from peili.mirror.peer_api.peers import IDENTITY_HEADER
from peili.mirror.plugins.calls import CallFailed, call
from peili.mirror.plugins.interfaces import Context
from peili.mirror.server.socket_writer import CountingSocketWriter, SocketSend, get_socket_writer, wrap_send
from peili.mirror.tls.peer_tls import PEER_IDENTITY

ROUTER_PATH = "/_router"
"""Requests to the peer door below this path go to the router's routes. No repository name begins with an underscore."""
RESOLVER_PATH = "/_resolver"
"""The same for the resolver's routes."""
_SCOPE_KEY = "peili.request_record"
_NO_ENDPOINT = "none"
_OPS_PATHS = frozenset(
    {"/", "/livez", "/readyz", "/metrics", "/status", "/history", "/events", "/find", "/try", "/ping", "/images"}
)

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
        except Exception:  # `auth` is third-party code; if it fails, access is denied
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


def request_record(scope: Scope) -> RequestRecord:
    """Return the record of the request of `scope`. `RequestMetrics` creates it, and reads it in the end."""
    return cast("RequestRecord", scope.setdefault(_SCOPE_KEY, RequestRecord("", _NO_ENDPOINT)))


class RequestMetrics:
    """Counts the requests to a door, and the bytes of content that it sends.

    Args:
        app: The door.
        door: The name of the door in the metrics.
        metrics: Where to count.
        accounting: Learns of each request to the local door that has ended.
        spans: Makes a span for each request, if the program has set up OpenTelemetry.
    """

    def __init__(self, app: ASGIApp, door: str, metrics: Metrics, accounting: Accounting, spans: Spans) -> None:
        self._app = app
        self._door = door
        self._metrics = metrics
        self._accounting = accounting
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        inner_path = scope["path"][len(scope.get("root_path", "")) :]
        endpoint = "router" if inner_path.startswith(f"{ROUTER_PATH}/") else _NO_ENDPOINT
        record = scope[_SCOPE_KEY] = RequestRecord(self._door, endpoint, scope["method"] == "GET")
        record.client = (scope.get("client") or ("",))[0]
        self._metrics.active.add(record)
        try:
            with self._spans.request(scope, record) if self._spans.are_on else nullcontext():
                await self._app(scope, receive, self._count_bytes(send, record))
        finally:
            self._metrics.active.discard(record)
            self._count_request(scope, record)

    def _count_bytes(self, send: Send, record: RequestRecord) -> Send:
        def count(size: int) -> None:
            if record.has_content and size:
                record.sent += size
                self._metrics.sent.add(self._door, record.source, amount=size)

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.start(message)
            await send(message)
            if message["type"] == "http.response.body":
                record.is_finished = not message.get("more_body", False)
                count(len(message.get("body", b"")))
            elif message["type"] == "http.response.pathsend":
                record.is_finished = True
                count(record.length)

        writer = get_socket_writer(send)
        return counting_send if writer is None else SocketSend(counting_send, CountingSocketWriter(writer, count))

    def _count_request(self, scope: Scope, record: RequestRecord) -> None:
        metrics, door = self._metrics, self._door
        status = "none" if record.status is None else str(record.status)
        method = scope["method"] if scope["method"] in {"GET", "HEAD"} else "other"
        source = record.source if record.has_content else ""
        metrics.requests.add(door, record.endpoint, method, status, source)
        metrics.request_seconds.add(time.monotonic() - record.started, door, record.endpoint, record.answer)
        if record.is_cut:
            metrics.cut.add(door)
        if door == LOCAL:
            user_agent: bytes = next((value for name, value in scope["headers"] if name == b"user-agent"), b"")
            metrics.clients.count(user_agent.decode("latin-1"), time.time())
            self._accounting.ended(record)


class OpsMiddleware:
    """Passes on the requests for the pages of the ops app to that app, and all others to `app`.

    Args:
        app: The local door.
        ops: The ops app.
    """

    def __init__(self, app: ASGIApp, ops: ASGIApp) -> None:
        self._app = app
        self._ops = ops

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._ops if scope.get("path") in _OPS_PATHS else self._app
        await app(scope, receive, send)


class PluginRouteMiddleware:
    """Refuses requests with a malformed or too large head, and answers 503 if a route of the router fails.

    An error of a route is logged and not passed on to the host agent.

    Args:
        app: The app with the routes.
        context: Its limits bound the head of a request, its log receives the errors of routes.
    """

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self._app = app
        self._limits = context.limits
        self._limited = context.limited
        self._log = context.log.getChild("router")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def noting_send(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            if scope["type"] == "http":
                check_head(scope, self._limits)
            await self._app(scope, receive, noting_send)
        except HTTPError as error:
            if error.status in LIMIT_OF_STATUS:
                self._limited(LIMIT_OF_STATUS[error.status])
            await ResponseWriter(scope, send, self._limits.reader_timeout).error(error)
        except Exception:  # noqa: BLE001 - the routes are third-party code
            self._log.exception("a plug-in failed at %s", scope["path"])
            if not has_started:
                await PlainTextResponse("a plug-in failed\n", status_code=503)(scope, receive, send)
