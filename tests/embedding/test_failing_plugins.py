"""A failing plug-in never stops the host agent: the agent's routes and the mirror's routes continue to answer."""

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
from peili.mirror.resolvers import LocalResolver
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

SHORT_LIMITS = Limits(
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


class PluginError(Exception):
    """The error of the plug-in. peili does not know this class."""


def break_method(plugin: Plugin, method: str, moment: str) -> None:
    """Let `method` fail from now on: when it is called, when it is awaited, or at the first step of its iterator."""

    def fail_when_called(*_: object, **__: object) -> Any:
        raise PluginError(method)

    async def fail_when_awaited(*_: object, **__: object) -> Any:
        raise PluginError(method)

    async def fail_at_first_step(*_: object, **__: object) -> AsyncGenerator[Any]:
        raise PluginError(method)
        yield

    replacements = {"called": fail_when_called, "awaited": fail_when_awaited, "first step": fail_at_first_step}
    setattr(plugin, method, replacements[moment])


def moments(method: str) -> list[str]:
    """Return the moments at which `method` can fail."""
    if method in {"watch", "lookup"}:
        return ["called", "first step"]
    if method in {"run", "ready", "peers", "routes"}:
        return ["called"]
    return ["called", "awaited"]


async def home(request: Request) -> PlainTextResponse:
    return PlainTextResponse("the agent's page")


def client_for(app: Starlette) -> httpx.AsyncClient:
    """Return a client that raises every exception that the agent's server would see."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=("127.0.0.1", 1)), base_url="http://localhost")


async def request_everything(client: httpx.AsyncClient, stored: Digest) -> None:
    """Request all routes. The runtime gets the content or 404, and no client gets an internal error."""
    for method in ("GET", "HEAD"):
        for path in (f"blobs/{stored}", f"blobs/{Digest.of(b'not here')}", "manifests/v1", "manifests/v2", "tags/list"):
            answer = await client.request(method, f"/v2/registry.example/demo/{path}")
            assert answer.status_code in {200, 404}, path
            answer = await client.request(method, f"/peili/v2/registry.example/demo/{path}")
            assert answer.status_code in {200, 404, 503}, path
    for key in (stored, TAG):
        assert (await client.head(f"/peili/_router/keys/{key}")).status_code in {200, 404, 503}
    assert (await client.get("/v2/")).status_code == 200
    assert (await client.get("/ops/livez")).status_code == 200
    assert (await client.get("/ops/readyz")).status_code in {200, 503}
    assert (await client.get("/ops/metrics")).status_code == 200
    assert (await client.get("/")).text == "the agent's page"


@pytest.mark.parametrize(
    ("part", "method", "moment"), [(part, method, moment) for part, method in CASES for moment in moments(method)]
)
async def test_all_routes_answer_when_a_method_of_a_plugin_fails(
    part: str, method: str, moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    store, router, resolver = MemoryStore(), PushRouter(), LocalResolver()
    stored = store.add(b"content")
    store.tag(TAG, stored)
    router.set([])
    plugin: Plugin = {"store": store, "router": router, "resolver": resolver}[part]
    break_method(plugin, method, moment)
    mirror = Mirror(store, router, resolver, limits=SHORT_LIMITS)
    doors = [Mount("/v2", mirror.local), Mount("/peili", mirror.peer), Mount("/ops", mirror.ops)]
    app = Starlette(routes=[Route("/", home), *doors], lifespan=mirror.lifespan)
    async with client_for(app) as client:
        for _ in range(2):
            async with app.router.lifespan_context(app):
                await request_everything(client, stored.digest)
                await mirror.drain(0.1)
            await request_everything(client, stored.digest)
        assert (await client.get(f"/v2/registry.example/demo/blobs/{stored.digest}")).status_code in {200, 404}


@pytest.mark.parametrize("part", ["store", "router", "resolver"])
async def test_a_plugin_that_is_not_ready_does_not_affect_the_others(part: str) -> None:
    store, router, resolver = MemoryStore(), PushRouter(), LocalResolver()
    stored = store.add(b"content")
    router.set([])
    mirror = Mirror(store, router, resolver, limits=SHORT_LIMITS)
    app = Starlette(routes=[Route("/", home), Mount("/v2", mirror.local)], lifespan=mirror.lifespan)
    async with app.router.lifespan_context(app), client_for(app) as client:
        await until(mirror.ready)
        plugin: Plugin = {"store": store, "router": router, "resolver": resolver}[part]
        break_method(plugin, "ready", "called")
        expected = {"store": True, "router": True, "resolver": True} | {part: False}
        assert mirror.readiness() == expected
        assert (await client.get(f"/v2/registry.example/demo/blobs/{stored.digest}")).content == b"content"
        assert (await client.get("/")).text == "the agent's page"
