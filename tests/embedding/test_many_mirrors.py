"""Mirrors in one process share no state, and a mirror can be entered and exited in any task and on any event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Mount
from tests.support.plain_http import plain_client
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Context, Mirror, NotFound, Peer, PushRouter, serve
from peili.mirror.testing import make_layout, pull
from peili.routers.memory import MemoryRouter
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore
from peili.stores.oci_layout import OciLayoutStore

DEMO, SECRET = "registry.example/demo", "registry.example/secret"


class LoggingStore(MemoryStore):
    """Logs a line when it is entered."""

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        context.log.info("entered as %s", context.identity)
        yield


class LoggingRouter(MemoryRouter):
    """Logs a line when it is entered."""

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        context.log.info("entered as %s", context.identity)
        async with super().run(context):
            yield


@asynccontextmanager
async def client_for(app: Starlette) -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


def sent_bytes(registry: CollectorRegistry, door: str, source: str) -> float | None:
    return registry.get_sample_value("peili_sent_bytes_total", {"door": door, "source": source})


@pytest.mark.anyio
async def test_two_mirrors_in_one_app_have_own_stores_routers_filters_and_metrics(tmp_path: Path) -> None:
    """Blue has an image, and green relays it from there."""
    image = make_layout(tmp_path / "image", layers=[100_000, 2_000_000])
    router = PushRouter()
    blue = Mirror(OciLayoutStore(image.path), StaticRouter([]), identity="blue", registries=["registry.example"])
    green = Mirror(MemoryStore(), router, identity="green", exclude=["secret"])
    registries = CollectorRegistry(), CollectorRegistry()
    for registry, mirror in zip(registries, (blue, green), strict=True):
        registry.register(mirror)
    app = Starlette(routes=[Mount("/blue", blue.local), Mount("/green", green.local)])
    async with blue, green, serve(blue, local="127.0.0.1:0", peer="127.0.0.1:0"), client_for(app) as host:
        router.set([Peer("blue", blue.identity.urls)])
        await blue.wait_ready(30)
        await green.wait_ready(30)
        size = await pull(host, image, DEMO, prefix="/blue/v2")
        assert await pull(host, image, SECRET, prefix="/blue/v2") == size
        assert await pull(host, image, DEMO, prefix="/green/v2") == size
        for prefix, repository in (("/green/v2", SECRET), ("/blue/v2", "other.example/demo")):
            with pytest.raises(NotFound):
                await pull(host, image, repository, prefix=prefix)
    assert [sent_bytes(registries[0], *each) for each in (("local", "store"), ("peer", "store"))] == [2 * size, size]
    assert [sent_bytes(registries[1], *each) for each in (("local", "store"), ("local", "peer"))] == [0, size]


@pytest.mark.anyio
async def test_each_mirror_logs_to_its_own_logger(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logs = logging.getLogger("agent.blue"), logging.getLogger("agent.green")
    one, two = (
        Mirror(LoggingStore(), LoggingRouter(), identity=log.name[6:], auth=failing, local_auth=failing, log=log)
        for log in logs
    )
    app = Starlette(routes=[Mount("/blue", one.local), Mount("/green", two.peer)])
    async with one, two, client_for(app) as host:
        assert (await host.get("/blue/v2/")).status_code == 403
        assert (await host.get("/green/v2/")).status_code == 403
    logged = {(each.name, each.getMessage()) for each in caplog.records if each.name.startswith(("agent", "peili"))}
    expected = {(log.name, "the access check failed") for log in logs}
    for log in logs:
        for plugin in ("LoggingStore", "LoggingRouter"):
            expected.add((f"{log.name}.{plugin}", f"entered as {log.name[6:]}"))
    assert logged == expected


def failing(connection: object) -> bool:
    raise LookupError("out of order")


async def enter_and_exit(mirror: Mirror) -> None:
    """Enter and exit the mirror in one task, in two tasks, in a task group, and with `serve()` under a timeout."""
    async with mirror:
        assert mirror.ready()
    await asyncio.create_task(mirror.__aenter__())
    assert mirror.ready()
    await asyncio.create_task(mirror.__aexit__(None, None, None))
    async with asyncio.TaskGroup() as group:
        stop = asyncio.Event()

        async def run_until_stopped() -> None:
            async with mirror:
                await stop.wait()

        group.create_task(run_until_stopped())
        await until(mirror.ready)
        stop.set()
    async with (
        asyncio.timeout(60),
        mirror,
        serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving,
        plain_client() as client,
    ):
        for address in (*serving.local_addresses, *serving.peer_addresses):
            assert (await client.get(f"http://{address}/v2/")).status_code == 200
    assert not mirror.ready()


def test_a_mirror_can_be_entered_and_exited_in_any_task_and_loop_any_number_of_times() -> None:
    router = PushRouter()
    router.set([])
    mirror = Mirror(MemoryStore(), router)
    for _ in range(3):
        asyncio.run(enter_and_exit(mirror))


@pytest.mark.anyio
async def test_threads_can_set_members_while_the_mirror_is_entered_and_exited() -> None:
    router, done = PushRouter(), threading.Event()
    mirror = Mirror(MemoryStore(), router)
    pushed = [0, 0]

    def push(which: int) -> None:
        while not done.is_set():
            pushed[which] += 1
            router.set(Peer(f"{which}-{n}", (f"http://192.0.2.{n}:1",)) for n in range(1, 1 + pushed[which] % 4))

    def pushed_more_than(least: int) -> bool:
        return min(pushed) > least

    threads = [threading.Thread(target=push, args=[which]) for which in range(2)]
    for each in threads:
        each.start()
    try:
        for least in (100, 200, 300):
            async with mirror:
                await until(mirror.ready)
                await until(partial(pushed_more_than, least))
    finally:
        done.set()
        for each in threads:
            each.join()
    async with mirror:
        router.set([Peer("last", ("http://192.0.2.9:1",))])
        await until(lambda: [peer.id for peer in router.peers()] == ["last"])
