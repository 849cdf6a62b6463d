"""Small HTTP servers on loopback that answer the lookups of routers like the peer door of another host."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import override

from peili.mirror.errors import NotFound
from peili.mirror.membership.key_answers import answer_key
from peili.mirror.oci.references import Descriptor, Digest, Key, Reference
from peili.mirror.peer_api.keys import KEYS_ROUTE
from peili.mirror.peer_api.peers import IDENTITY_HEADER, Peer
from peili.mirror.testing.contexts import EmptyRouter, EmptyStore, context_for


class Neighbour(EmptyStore):
    """A peer that claims to have the given keys. It serves no content, because routers do not read any.

    Attributes:
        peer: The peer, with its URL.
    """

    def __init__(self, peer: Peer) -> None:
        super().__init__()
        self.peer = peer
        self._holdings: dict[Key, Descriptor] = {}

    def hold(self, key: Key, size: int) -> None:
        """Claim to have the complete content of `key`, with this size in bytes."""
        digest = key if isinstance(key, Digest) else Digest.of(str(key).encode())
        self._holdings[key] = self._holdings[digest] = Descriptor("application/octet-stream", digest, size)

    def drop(self, key: Key) -> None:
        """No longer claim to have `key`."""
        self._holdings.pop(key, None)

    @override
    async def resolve(self, reference: Reference) -> Descriptor:
        return self._held(reference)

    @override
    async def describe(self, digest: Digest) -> Descriptor:
        return self._held(digest)

    def _held(self, key: Key) -> Descriptor:
        try:
            return self._holdings[key]
        except KeyError:
            raise NotFound(f"{key} is not here") from None


class _NeighbourServer(uvicorn.Server):
    @contextmanager
    @override
    def capture_signals(self) -> Generator[None]:
        yield  # the test runner handles signals


@asynccontextmanager
async def neighbour(identity: str) -> AsyncGenerator[Neighbour]:
    """Start a peer with the id `identity`. It answers until this exits."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = Peer(identity, (f"http://127.0.0.1:{listener.getsockname()[1]}",))
        this = Neighbour(peer)
        async with context_for(EmptyRouter(), identity=identity, store=this) as context:

            async def lookup(request: Request) -> Response:
                response = await answer_key(context, request.path_params["key"])
                response.headers[IDENTITY_HEADER] = identity
                return response

            async def ping(_: Request) -> Response:
                return Response(headers={IDENTITY_HEADER: identity})

            app = Starlette(routes=[Route("/v2/", ping), Route(f"/_router{KEYS_ROUTE}", lookup)])
            async with _served(app, listener):
                yield this


@asynccontextmanager
async def _served(app: Starlette, listener: socket.socket) -> AsyncGenerator[None]:
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    server = _NeighbourServer(config)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving
