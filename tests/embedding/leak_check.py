"""A program that enters and exits mirrors under traffic, and fails if tasks, threads or open files remain.

test_leaks.py runs it with every warning as an error:

    python -X dev -W error -m tests.embedding.leak_check serve|starlette|fastapi TLS-DIRECTORY LAYOUT
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

import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.support.certificates import Certificate
from tests.support.plain_http import plain_client
from tests.support.waiting import until

from peili.mirror import Limits, Mirror, Peer, PushRouter, Router, Store, serve
from peili.routers.mdns import MdnsRouter
from peili.routers.static import StaticRouter
from peili.stores.containerd import ContainerdStore
from peili.stores.memory import MemoryStore
from peili.stores.oci_layout import OciLayoutStore

CONTENT = bytes(range(256)) * 40_000  # more than the socket buffers, so that it stays in flight if nobody reads it
SHORT_LIMITS = Limits(drain_timeout=0.2, lookup_timeout=20, stop_timeout=60)


@asynccontextmanager
async def run_with_serve(mirror: Mirror, tls: Certificate) -> AsyncGenerator[str]:
    """Run the mirror with `serve()` on given sockets, the peer door with TLS. Yields the URL of the local door."""
    with socket.create_server(("127.0.0.1", 0)) as local, socket.create_server(("127.0.0.1", 0)) as peer:
        async with mirror, serve(mirror, local=local, peer=peer, peer_ssl=tls.server_context()) as serving:
            yield f"http://{serving.local_addresses[0]}"


@asynccontextmanager
async def run_in_app(mirror: Mirror, app: Starlette) -> AsyncGenerator[str]:
    """Mount the doors in an app that has the mirror's lifespan, and run it. Yields the URL of the app."""
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
async def run_mirror(framework: str, mirror: Mirror, tls: Certificate) -> AsyncGenerator[str]:
    """Run the mirror in this framework. Yields the URL for its runtime, without the path `/v2`."""
    match framework:
        case "serve":
            running = run_with_serve(mirror, tls)
        case "starlette":
            running = run_in_app(mirror, Starlette(lifespan=mirror.lifespan))
        case _:
            running = run_in_app(mirror, FastAPI(lifespan=mirror.lifespan))
    async with running as url:
        yield url


def other_mirrors(layout: Path, client_ssl: ssl.SSLContext) -> list[Mirror]:
    """Return mirrors with the built-in plug-ins that open files, sockets or threads."""
    plugins: list[tuple[Store, Router]] = [
        (OciLayoutStore(layout), MdnsRouter.from_config({"interfaces": ["lo"]})),
        (ContainerdStore("/nowhere/containerd.sock"), StaticRouter([])),
    ]
    return [Mirror(*each, client_ssl=client_ssl, limits=SHORT_LIMITS) for each in plugins]


async def run_round(framework: str, tls: Certificate, layout: Path) -> None:
    """Let one host pull from another while further mirrors run, and exit all of them at once."""
    asyncio.get_running_loop().slow_callback_duration = 60  # else debug mode prints a warning on a busy machine
    store, router, client_ssl = MemoryStore(), PushRouter(), tls.client_context()
    holder = Mirror(store, PushRouter(), client_ssl=client_ssl, limits=SHORT_LIMITS)
    puller = Mirror(MemoryStore(), router, client_ssl=client_ssl, limits=SHORT_LIMITS)
    path = f"/v2/registry.example/demo/blobs/{store.add(CONTENT).digest}"
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(plain_client(trust_env=False))
        await stack.enter_async_context(run_mirror(framework, holder, tls))
        url = await stack.enter_async_context(run_mirror(framework, puller, tls))
        for each in other_mirrors(layout, client_ssl):
            other_url = await stack.enter_async_context(run_mirror(framework, each, tls))
            assert (await runtime.get(other_url + path)).status_code == 404
        router.set([Peer("holder", holder.identity.urls)])
        await until(puller.ready)
        assert (await runtime.get(url + path)).content == CONTENT
        if framework == "serve":  # exit while a response is not read; another uvicorn would log an error for that
            await runtime.send(runtime.build_request("GET", url + path), stream=True)
        else:
            await runtime.aclose()
    remaining = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not remaining, f"tasks remain: {remaining}"


def open_files() -> list[str]:
    """Return what each open socket or file is. Epolls and pipes are not in it: grpc's C core has a varying number."""
    links = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.exists()]
    return sorted(link.partition("[")[0] for link in links if link.startswith(("socket:", "/")))


def main(framework: str, tls: str, layout: str) -> None:
    asyncio.run(run_round(framework, Certificate.below(Path(tls)), Path(layout)))
    gc.collect()
    files = open_files()  # including those that libraries such as grpc open once and keep
    asyncio.run(run_round(framework, Certificate.below(Path(tls)), Path(layout)))
    gc.collect()
    assert open_files() == files, f"files remain: {files} became {open_files()}"
    assert threading.enumerate() == [threading.main_thread()], f"threads remain: {threading.enumerate()}"
    print("no leaks")  # noqa: T201 - a program: it prints


if __name__ == "__main__":
    main(*sys.argv[1:])
