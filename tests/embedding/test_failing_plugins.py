"""A plug-in that fails, whatever it fails at, never takes the host down: its own routes and the mirror's go on."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from tests.support.waiting import until

from peili.mirror import Digest, Limits, Mirror, Plugin, PushRouter, Reference
from peili.mirror.resolvers.resolvers import LocalResolver
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

QUICK = Limits(
    backoff_min=0.01, backoff_max=0.02, start_timeout=0.2, stop_timeout=0.2, drain_timeout=0.1, lookup_timeout=0.2
)
TAG = Reference("registry.example", "demo", "v1")
STORE = ("run", "ready", "resolve", "describe", "open", "watch", "images", "discard")
ROUTER = ("run", "ready", "lookup", "acquire", "advertise", "withdraw", "peers", "routes")
RESOLVER = ("run", "ready", "resolve")
CASES = [
    *(("store", each) for each in STORE),
    *(("router", each) for each in ROUTER),
    *(("resolver", each) for each in RESOLVER),
]


class Broken(Exception):
    """What the plug-in fails with: nothing that peili knows."""


def break_at(plugin: Plugin, method: str, how: str) -> None:
    """From now on `method` fails: when it is called, when it is awaited, or at its first step."""

    def called(*_: object, **__: object) -> Any:
        raise Broken(method)

    async def awaited(*_: object, **__: object) -> Any:
        raise Broken(method)

    async def stepped(*_: object, **__: object) -> AsyncGenerator[Any]:
        raise Broken(method)
        yield

    setattr(plugin, method, {"called": called, "awaited": awaited, "stepped": stepped}[how])


def ways(method: str) -> list[str]:
    if method in {"watch", "lookup"}:
        return ["called", "stepped"]
    if method in {"run", "ready", "peers", "routes"}:
        return ["called"]
    return ["called", "awaited"]


async def home(request: Request) -> PlainTextResponse:
    return PlainTextResponse("the host's")


def visiting(app: Starlette) -> httpx.AsyncClient:
    """Sees every exception that the host's server would."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=("127.0.0.1", 1)), base_url="http://host")


async def ask(client: httpx.AsyncClient, held: Digest) -> None:
    """Everything that there is. The runtime hears that it is here or 404; nobody hears of an error of ours."""
    for method in ("GET", "HEAD"):
        for path in (f"blobs/{held}", f"blobs/{Digest.of(b'not here')}", "manifests/v1", "manifests/v2", "tags/list"):
            answer = await client.request(method, f"/v2/registry.example/demo/{path}")
            assert answer.status_code in {200, 404}, path
            answer = await client.request(method, f"/peili/v2/registry.example/demo/{path}")
            assert answer.status_code in {200, 404, 503}, path
    for key in (held, TAG):
        assert (await client.head(f"/peili/_router/keys/{key}")).status_code in {200, 404, 503}
    assert (await client.get("/v2/")).status_code == 200
    assert (await client.get("/ops/livez")).status_code == 200
    assert (await client.get("/ops/readyz")).status_code in {200, 503}
    assert (await client.get("/ops/metrics")).status_code == 200
    assert (await client.get("/")).text == "the host's"


@pytest.mark.parametrize(
    ("part", "method", "how"), [(part, method, how) for part, method in CASES for how in ways(method)]
)
async def test_whatever_it_fails_at(part: str, method: str, how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    store, router, resolver = MemoryStore(), PushRouter(), LocalResolver()
    held = store.add(b"content")
    store.tag(TAG, held)
    router.set([])
    plugin: Plugin = {"store": store, "router": router, "resolver": resolver}[part]
    break_at(plugin, method, how)
    mirror = Mirror(store, router, resolver, limits=QUICK)
    doors = [Mount("/v2", mirror.local), Mount("/peili", mirror.peer), Mount("/ops", mirror.ops)]
    app = Starlette(routes=[Route("/", home), *doors], lifespan=mirror.lifespan)
    async with visiting(app) as client:
        for _ in range(2):
            async with app.router.lifespan_context(app):
                await ask(client, held.digest)
                await mirror.drain(0.1)
            await ask(client, held.digest)
        assert (await client.get(f"/v2/registry.example/demo/blobs/{held.digest}")).status_code in {200, 404}


@pytest.mark.parametrize("part", ["store", "router", "resolver"])
async def test_one_that_fails_while_others_use_it_leaves_these_alone(part: str) -> None:
    store, router, resolver = MemoryStore(), PushRouter(), LocalResolver()
    held = store.add(b"content")
    router.set([])
    mirror = Mirror(store, router, resolver, limits=QUICK)
    app = Starlette(routes=[Route("/", home), Mount("/v2", mirror.local)], lifespan=mirror.lifespan)
    async with app.router.lifespan_context(app), visiting(app) as client:
        await until(mirror.ready)
        plugin: Plugin = {"store": store, "router": router, "resolver": resolver}[part]
        break_at(plugin, "ready", "called")
        expected = {"store": True, "router": True, "resolver": True} | {part: False}
        assert mirror.readiness() == expected
        assert (await client.get(f"/v2/registry.example/demo/blobs/{held.digest}")).content == b"content"
        assert (await client.get("/")).text == "the host's"
