"""A program: mirrors come and go, with traffic; it fails if something is left behind. Run with every warning an error.

python -X dev -W error -m tests.embedding.coming_and_going serve|starlette|fastapi TLS-DIRECTORY LAYOUT
"""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import sys
import threading
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.support.certificates import Certificate
from tests.support.waiting import until

from peili.mirror import Limits, Mirror, Peer, PushRouter, Router, Store, serve
from peili.routers.mdns import MdnsRouter
from peili.routers.static import StaticRouter
from peili.stores.containerd import ContainerdStore
from peili.stores.memory import MemoryStore
from peili.stores.oci_layout import OciLayoutStore

CONTENT = bytes(range(256)) * 40_000  # more than sockets hold for a reader that does not read
QUICK = Limits(drain_timeout=0.2, lookup_timeout=20, stop_timeout=60)


@asynccontextmanager
async def by_serve(mirror: Mirror, tls: Certificate) -> AsyncGenerator[str]:
    """On given sockets, the peer door by TLS."""
    with socket.create_server(("127.0.0.1", 0)) as local, socket.create_server(("127.0.0.1", 0)) as peer:
        async with mirror, serve(mirror, local=local, peer=peer, peer_ssl=tls.server_context()) as serving:
            yield f"http://{serving.local_addresses[0]}"


@asynccontextmanager
async def on_uvicorn(mirror: Mirror, app: Starlette) -> AsyncGenerator[str]:
    """In a host's app, which brings the mirror's lifespan."""
    app.router.routes.extend([Mount("/v2", mirror.local), Mount("/peili", mirror.peer)])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=30))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        await until(lambda: server.started)
        mirror.listens_at([f"http://127.0.0.1:{listener.getsockname()[1]}/peili"])
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


@asynccontextmanager
async def embedded(how: str, mirror: Mirror, tls: Certificate) -> AsyncGenerator[str]:
    """The mirror in a host of this kind; where its runtime finds it."""
    match how:
        case "serve":
            shape = by_serve(mirror, tls)
        case "starlette":
            shape = on_uvicorn(mirror, Starlette(lifespan=mirror.lifespan))
        case _:
            shape = on_uvicorn(mirror, FastAPI(lifespan=mirror.lifespan))
    async with shape as url:
        yield url


def others(layout: Path, client_ssl: ssl.SSLContext) -> list[Mirror]:
    """Mirrors with the built-in plug-ins that have something to hold on to."""
    given: list[tuple[Store, Router]] = [
        (OciLayoutStore(layout), MdnsRouter.from_config({"interfaces": ["lo"]})),
        (ContainerdStore("/nowhere/containerd.sock"), StaticRouter([])),
    ]
    return [Mirror(*each, client_ssl=client_ssl, limits=QUICK) for each in given]


async def one_round(how: str, tls: Certificate, layout: Path) -> None:
    """One host pulls from another, and others are beside them. They leave all at once."""
    asyncio.get_running_loop().slow_callback_duration = 60  # debug mode would complain of a busy machine
    store, router, client_ssl = MemoryStore(), PushRouter(), tls.client_context()
    feeder = Mirror(store, PushRouter(), client_ssl=client_ssl, limits=QUICK)
    puller = Mirror(MemoryStore(), router, client_ssl=client_ssl, limits=QUICK)
    path = f"/v2/registry.example/demo/blobs/{store.add(CONTENT).digest}"
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        await stack.enter_async_context(embedded(how, feeder, tls))
        url = await stack.enter_async_context(embedded(how, puller, tls))
        for each in others(layout, client_ssl):
            beside = await stack.enter_async_context(embedded(how, each, tls))
            assert (await runtime.get(beside + path)).status_code == 404
        router.set([Peer("feeder", feeder.identity.urls)])
        await until(puller.ready)
        assert (await runtime.get(url + path)).content == CONTENT
        if how == "serve":  # they leave while an answer is not read; a host's own uvicorn would complain of that
            await runtime.send(runtime.build_request("GET", url + path), stream=True)
        else:
            await runtime.aclose()
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, f"tasks are left: {left}"


def open_files() -> list[str]:
    """Sockets and files, by what kind they are. grpc's C core has its own epolls and pipes, now more, now fewer."""
    links = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.exists()]
    return sorted(link.partition("[")[0] for link in links if link.startswith(("socket:", "/")))


def main(how: str, tls: str, layout: str) -> None:
    asyncio.run(one_round(how, Certificate.below(Path(tls)), Path(layout)))
    gc.collect()
    files = open_files()  # with those that are made once and kept, as grpc's
    asyncio.run(one_round(how, Certificate.below(Path(tls)), Path(layout)))
    gc.collect()
    assert open_files() == files, f"files are left: {files} became {open_files()}"
    assert threading.enumerate() == [threading.main_thread()], f"threads are left: {threading.enumerate()}"
    print("nothing is left")  # noqa: T201 - a program: it prints


if __name__ == "__main__":
    main(*sys.argv[1:])
