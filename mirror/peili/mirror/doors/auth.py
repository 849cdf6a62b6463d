"""Who may come in, and who answers."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, ip_address
from typing import TypeAlias

from starlette.requests import HTTPConnection
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peili.mirror.doors.response import ResponseWriter
from peili.mirror.limits import Limits
from peili.mirror.oci.refusal import DENIED, HTTPError
from peili.mirror.peer_api.peers import IDENTITY_HEADER
from peili.mirror.server.socket_writer import wrap_send
from peili.mirror.support.deadlines import Deadline

Auth: TypeAlias = Callable[[HTTPConnection], bool | Awaitable[bool]]
"""Whether a request may come in. Called on the mirror's loop for each request; may be a coroutine function. Nobody is
let in where it raises, or where what it returned takes longer than ``Limits.first_byte_timeout``.
"""


def anyone(connection: HTTPConnection) -> bool:
    """Lets everybody in."""
    return True


def loopback_only(connection: HTTPConnection) -> bool:
    """An `Auth` that lets only this host in: whose address is of the loopback. A client that has none, as on a unix
    socket, is not let in. Behind a proxy on this host everybody has such an address.
    """
    if connection.client is None:
        return False
    try:
        address = ip_address(connection.client.host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


class AccessCheck:
    """Lets in whom `auth` lets in, and answers 403 to others, and to everybody while `auth` fails. Every answer carries
    this host's id, if there is one. `limited` hears of each `auth` that took too long.
    """

    def __init__(
        self,
        app: ASGIApp,
        auth: Auth,
        limits: Limits,
        limited: Callable[[str], None],
        log: logging.Logger,
        *,
        identity: str | None = None,
    ) -> None:
        self._app = app
        self._auth = auth
        self._limits = limits
        self._limited = limited
        self._log = log
        self._header = None if identity is None else (IDENTITY_HEADER.lower().encode(), identity.encode())
        self._lifespan = Router()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)  # a door alone has nothing to start: its mirror has
            return
        if self._header is not None:
            send = _with_header(send, self._header)
        if await self._allows(HTTPConnection(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            refusal = HTTPError(403, DENIED, "this host is not let in here")
            await ResponseWriter(scope, send, self._limits.reader_timeout).refuse(refusal)

    async def _allows(self, connection: HTTPConnection) -> bool:
        try:
            allowed = self._auth(connection)
            return bool(await self._in_time(allowed) if inspect.isawaitable(allowed) else allowed)
        except Exception:  # noqa: BLE001 - it is the host's, and the door stays closed
            self._log.exception("who may come in could not be found out; nobody is let in")
            return False

    async def _in_time(self, answer: Awaitable[bool]) -> bool:
        patience = self._limits.first_byte_timeout
        bound = Deadline(patience)
        try:
            async with bound:
                return await answer
        except Exception as error:
            if not bound.expired():
                raise
            self._limited("first_byte_timeout")
            raise TimeoutError(f"no answer within {patience:g} s") from error


def _with_header(send: Send, header: tuple[bytes, bytes]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), header]}
        await send(message)

    return wrap_send(send, sending)
