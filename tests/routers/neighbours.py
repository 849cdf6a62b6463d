"""Real peers for the tests of routers: small Starlette apps behind uvicorn, and sockets that do not answer."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp
from tests.support.ports import free_port

from peili.mirror import Context, Holder, Key, Limits, MembershipRouter, Peer, Router, Selection, Store
from peili.mirror.testing import context_for

LOG = logging.getLogger("peili.test")
IDENTITY = "this-host"
PATIENT = Limits(lookup_timeout=20)
"""By default nobody's answer comes too late, on however busy a machine."""


class Neighbour:
    """A peer that answers as it is told to. `url` is known while it is served."""

    def __init__(self, identity: str | None, *keys: Key, status: int = 404) -> None:
        self.identity = identity
        self.keys = set(keys)
        self.status = status  # for the keys that it does not have
        self.extra: dict[str, str] = {}  # headers over and above, or instead of, the usual ones
        self.asked: list[str] = []
        self.probed = 0  # how often it was asked whether it lives
        self.at_once = 0  # requests being answered now …
        self.most_at_once = 0  # … and at the worst of times
        self.open = asyncio.Event()  # nothing is answered while it is not set
        self.open.set()
        self.url = ""

    @property
    def peer(self) -> Peer:
        return Peer(self.identity or self.url, (self.url,))

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v2/", self._root, methods=["HEAD"]),
                Route("/_router/keys/{key:path}", self._key, methods=["HEAD"]),
            ]
        )

    async def _root(self, _: Request) -> Response:
        self.probed += 1
        await self.open.wait()
        return self._response(200)

    async def _key(self, request: Request) -> Response:
        key = request.path_params["key"]
        self.asked.append(key)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.open.wait()
        finally:
            self.at_once -= 1
        if key not in {str(each) for each in self.keys}:
            return self._response(self.status)
        headers = {"Docker-Content-Digest": key, "Peili-Complete": "true", "Peili-Size": "7"}
        return self._response(200, headers)

    def _response(self, status: int, headers: dict[str, str] | None = None) -> Response:
        identity = {"Peili-Id": self.identity} if self.identity is not None else {}
        return Response(status_code=status, headers={**identity, **(headers or {}), **self.extra})


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield  # they are pytest's


@asynccontextmanager
async def served(app: ASGIApp, address: str = "127.0.0.1", port: int = 0) -> AsyncGenerator[str, None]:
    """`app` behind uvicorn; its base URL."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family)
    host = f"[{address}]" if ":" in address else address
    url = f"http://{host}:{listener.getsockname()[1]}"
    server = _Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve([listener]))
    try:
        await until(lambda: server.started)
        yield url
    finally:
        server.should_exit = True
        await serving
        listener.close()


@asynccontextmanager
async def neighbours(*those: Neighbour) -> AsyncGenerator[list[Peer], None]:
    """All of them served; as peers."""
    async with asyncio.TaskGroup() as tasks:
        ends = asyncio.Event()
        up = [asyncio.Event() for _ in those]
        for each, started in zip(those, up, strict=True):
            tasks.create_task(_serve_until(ends, started, each))
        for started in up:
            await started.wait()
        try:
            yield [each.peer for each in those]
        finally:
            for each in those:
                each.open.set()
            ends.set()


async def _serve_until(ends: asyncio.Event, started: asyncio.Event, neighbour: Neighbour) -> None:
    async with served(neighbour.app()) as neighbour.url:
        started.set()
        await ends.wait()


@contextmanager
def silent_url() -> Generator[str]:
    """The URL of something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def black_hole_url() -> Generator[str]:
    """The URL of something that does not even take connections: its queue is full, so the kernel drops them."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def refusing_url() -> str:
    """A URL where nobody listens."""
    return f"http://127.0.0.1:{free_port()}"


@asynccontextmanager
async def entered(
    router: Router,
    *,
    limits: Limits | None = None,
    identity: str = IDENTITY,
    store: Store | None = None,
    selection: Selection | None = None,
    peer: Peer | None = None,
) -> AsyncGenerator[Context, None]:
    """`router` running, as the mirror of the host `identity` would run it; `peer` is what its peer door makes it."""
    about = context_for(
        router, identity=identity, store=store, selection=selection, limits=limits or PATIENT, peer=peer, log=LOG
    )
    async with about as context, router.run(context):
        yield context


async def holders(router: Router, key: Key) -> list[Holder]:
    """All that a lookup finds."""
    return [holder async for holder in router.lookup(key)]


async def holder_ids(router: Router, key: Key) -> list[str]:
    """The ids of all that a lookup finds, sorted."""
    return sorted(holder.peer.id for holder in await holders(router, key))


def peer_ids(router: MembershipRouter) -> list[str]:
    """The ids of a router's peers, sorted."""
    return sorted(peer.id for peer in router.peers())


async def until(condition: Callable[[], object], *, within: float = 60) -> None:
    """Wait for `condition` to hold, with a deadline."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - conditions of all kinds, few of which have an event
            await asyncio.sleep(0.005)
