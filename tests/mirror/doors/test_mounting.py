"""The doors in the app of a host agent: below a prefix, below /v2, behind middleware."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount
from starlette.types import ASGIApp, Message
from tests.mirror.doors.in_memory_host import DOORS, TAGS, InMemoryHost, client_for, in_memory_host

pytestmark = pytest.mark.anyio

MOUNTS: dict[str, tuple[str, Callable[[ASGIApp], ASGIApp]]] = {
    "at the root": ("", lambda door: door),
    "in an app, at the root": ("", lambda door: Starlette(routes=[Mount("/", door)])),
    "in an app, under /v2": ("", lambda door: Starlette(routes=[Mount("/v2", door)])),
    "in an app, under a prefix": ("/peili", lambda door: Starlette(routes=[Mount("/peili", door)])),
    "under a prefix that ends in /v2": ("/a", lambda door: Starlette(routes=[Mount("/a/v2", door)])),
    "in an app in an app": (
        "/a/b",
        lambda door: Starlette(routes=[Mount("/a", Starlette(routes=[Mount("/b", door)]))]),
    ),
    "under /v2 of an app under a prefix": (
        "/a",
        lambda door: Starlette(routes=[Mount("/a", Starlette(routes=[Mount("/v2", door)]))]),
    ),
}


async def check(client: httpx.AsyncClient, host: InMemoryHost, prefix: str) -> None:
    assert (await client.get(f"{prefix}/v2/")).json() == {}
    blob = await client.get(prefix + host.blob_path)
    assert (blob.status_code, blob.content) == (200, host.data)
    # A repository may be called v2/x: only the /v2 of the API is removed.
    manifest = await client.get(f"{prefix}/v2/v2/x/manifests/v1?ns=registry.example")
    assert (manifest.status_code, manifest.content) == (200, host.manifest_data)
    missing = await client.get(f"{prefix}/v2/x/manifests/v1?ns=registry.example")
    assert missing.status_code == 404
    page = await client.get(f"{prefix}/v2/registry.example/demo/tags/list?n=2")
    rest = await client.get(page.links["next"]["url"])
    assert page.json()["tags"] + rest.json()["tags"] == list(TAGS)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("where", MOUNTS)
async def test_a_door_works_at_every_mount_point(door: str, where: str) -> None:
    prefix, mount = MOUNTS[where]
    async with in_memory_host() as host, client_for(mount(host.door(door))) as client:
        await check(client, host, prefix)


@pytest.mark.parametrize("door", DOORS)
async def test_gzip_middleware_does_not_change_blobs(door: str) -> None:
    async with in_memory_host() as host:
        app = Starlette(routes=[Mount("/", host.door(door))], middleware=[Middleware(GZipMiddleware)])
        async with client_for(app) as client:
            response = await client.get(host.blob_path, headers={"Accept-Encoding": "gzip"})
            assert response.headers["Content-Encoding"] == "identity"
            assert response.headers["Content-Length"] == str(len(host.data))
            assert response.content == host.data


async def test_one_app_can_have_all_doors_and_the_lifespan() -> None:
    host = InMemoryHost()
    mirror = host.mirror
    routes = [Mount("/v2", mirror.local), Mount("/peili", mirror.peer), Mount("/ops", mirror.ops)]
    app = Starlette(routes=routes, lifespan=mirror.lifespan)
    async with client_for(app) as client:
        assert (await client.get("/ops/readyz")).status_code == 503
        async with app.router.lifespan_context(app):
            await mirror.wait_ready(30)
            assert (await client.get("/ops/readyz")).status_code == 200
            await check(client, host, "")
            await check(client, host, "/peili")
        assert (await client.get("/ops/readyz")).status_code == 503


@pytest.mark.parametrize("door", DOORS)
async def test_a_door_can_be_mounted_before_the_mirror_is_entered(door: str) -> None:
    host = InMemoryHost()
    async with client_for(host.door(door)) as client:
        assert (await client.get("/v2/")).status_code == 200
        response = await client.get("/v2/registry.example/demo/blobs/sha256:" + "0" * 64)
        assert response.status_code == 404


@pytest.mark.parametrize("door", DOORS)
async def test_a_door_alone_supports_the_lifespan_protocol(door: str) -> None:
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    answers: list[str] = []

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        answers.append(message["type"])

    await InMemoryHost().door(door)({"type": "lifespan", "asgi": {}, "state": {}}, receive, send)
    assert answers == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
