"""Real peers for tests of routers: small Starlette apps in uvicorn, and sockets that do not answer."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp
from tests.support.ports import free_port
from tests.support.waiting import until

from peili.mirror import Context, Holder, Key, Limits, MembershipRouter, Peer, Router, Selection, Store
from peili.mirror.testing import context_for

LOG = logging.getLogger("peili.test")
IDENTITY = "this-host"
PATIENT = Limits(lookup_timeout=20)
"""The default limits of `entered`: no answer comes too late, even on a busy machine."""


class Neighbour:
    """A peer whose answers a test controls. It has its `url` while it is served."""

    def __init__(self, identity: str | None, *keys: Key, status: int = 404) -> None:
        self.identity = identity
        self.keys = set(keys)
        self.status = status  # of the answer for a key that it does not have
        self.extra: dict[str, str] = {}  # headers that are added or replaced
        self.asked: list[str] = []
        self.probed = 0  # the number of probes
        self.at_once = 0  # running requests
        self.most_at_once = 0  # the maximum of `at_once`
        self.open = asyncio.Event()  # while it is not set, requests wait
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
        yield  # pytest handles signals


@asynccontextmanager
async def served(app: ASGIApp, address: str = "127.0.0.1", port: int = 0) -> AsyncGenerator[str, None]:
    """Serve `app` with uvicorn. Yields its base URL."""
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
async def served_together(*apps: ASGIApp) -> AsyncGenerator[list[str]]:
    """Serve all `apps`, each with a server of its own. Yields their base URLs."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    async def serve(app: ASGIApp, url: asyncio.Future[str]) -> None:
        async with served(app) as found:
            url.set_result(found)
            await stop.wait()

    async with asyncio.TaskGroup() as tasks:
        urls: list[asyncio.Future[str]] = [loop.create_future() for _ in apps]
        for app, url in zip(apps, urls, strict=True):
            tasks.create_task(serve(app, url))
        try:
            yield [await url for url in urls]
        finally:
            stop.set()


@asynccontextmanager
async def neighbours(*them: Neighbour) -> AsyncGenerator[list[Peer], None]:
    """Serve all neighbours. Yields them as peers."""
    async with served_together(*(each.app() for each in them)) as urls:
        for each, url in zip(them, urls, strict=True):
            each.url = url
        try:
            yield [each.peer for each in them]
        finally:
            for each in them:
                each.open.set()


@contextmanager
def silent_url() -> Generator[str]:
    """Yield the URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def black_hole_url() -> Generator[str]:
    """Yield the URL of a server that accepts no connection: its queue is full, so the kernel drops the packets."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def refusing_url() -> str:
    """Return a URL where nothing listens."""
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
    """Enter `router` like the mirror of the host `identity`. `peer` is this host, if it has a peer door."""
    creating = context_for(
        router, identity=identity, store=store, selection=selection, limits=limits or PATIENT, peer=peer, log=LOG
    )
    async with creating as context, router.run(context):
        yield context


async def holders(router: Router, key: Key) -> list[Holder]:
    """Return all holders that a lookup finds."""
    return [holder async for holder in router.lookup(key)]


async def holder_ids(router: Router, key: Key) -> list[str]:
    """Return the ids of all holders that a lookup finds, sorted."""
    return sorted(holder.peer.id for holder in await holders(router, key))


def peer_ids(router: MembershipRouter) -> list[str]:
    """Return the ids of a router's peers, sorted."""
    return sorted(peer.id for peer in router.peers())
