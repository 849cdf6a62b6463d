"""A failing plug-in never stops the host agent: the agent's routes and the mirror's routes continue to answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from tests.support.waiting import until

from peili.mirror import Digest, Limits, Mirror, Plugin, PushRouter, Reference, serve
from peili.mirror.resolvers import LocalResolver
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

SHORT_LIMITS = Limits(
    backoff_min=0.01, backoff_max=0.02, start_timeout=0.2, stop_timeout=0.2, drain_timeout=0.1, lookup_timeout=0.2
)
TAG = Reference("registry.example", "demo", "v1")
STORE = ("run", "ready", "resolve", "describe", "open", "watch", "images", "shows_in_flight")
ROUTER = ("run", "ready", "lookup", "acquire", "advertise", "withdraw", "peers", "unreachable", "routes")
RESOLVER = ("run", "ready", "resolve")
CASES = [
    *(("store", each) for each in STORE),
    *(("router", each) for each in ROUTER),
    *(("resolver", each) for each in RESOLVER),
]


class PluginError(Exception):
    """The error of the plug-in. peili does not know this class."""


def group_error(text: str) -> BaseException:
    """Return what a task group raises after its task was cancelled. No ``except Exception`` catches it."""
    return BaseExceptionGroup(text, [asyncio.CancelledError(), PluginError(text)])


ERRORS = (PluginError, asyncio.CancelledError, group_error)
"""What makes the error of a plug-in. Nobody has cancelled the plug-in."""


def break_method(
    plugin: Plugin, method: str, moment: str, make_error: Callable[[str], BaseException] = PluginError
) -> None:
    """Let `method` fail from now on: when it is called, when it is awaited, or at the first step of its iterator."""

    def fail_when_called(*_: object, **__: object) -> Any:
        raise make_error(method)

    async def fail_when_awaited(*_: object, **__: object) -> Any:
        raise make_error(method)

    async def fail_at_first_step(*_: object, **__: object) -> AsyncGenerator[Any]:
        raise make_error(method)
        yield

    def return_nothing(*_: object, **__: object) -> Any:
        return None

    async def return_nothing_later(*_: object, **__: object) -> Any:
        return None

    replacements = {
        "called": fail_when_called,
        "awaited": fail_when_awaited,
        "first step": fail_at_first_step,
        "not async": return_nothing,
        "async": return_nothing_later,
    }
    setattr(plugin, method, replacements[moment])


def moments(method: str) -> list[str]:
    """Return the moments at which `method` can fail."""
    if method in {"watch", "lookup"}:
        return ["called", "first step"]
    if method in {"run", "ready", "shows_in_flight", "peers", "unreachable", "routes"}:
        return ["called"]
    return ["called", "awaited"]


async def home(request: Request) -> PlainTextResponse:
    return PlainTextResponse("the agent's page")


def client_for(app: Starlette) -> httpx.AsyncClient:
    """Return a client that raises every exception that the agent's server would see."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=("127.0.0.1", 1)), base_url="http://localhost")


async def request_everything(client: httpx.AsyncClient, stored: Digest) -> None:
    """Request all routes. A pull gets the content or 404, and no client gets an internal error."""
    for method in ("GET", "HEAD"):
        for path in (f"blobs/{stored}", f"blobs/{Digest.of(b'not here')}", "manifests/v1", "manifests/v2", "tags/list"):
            answer = await client.request(method, f"/v2/registry.example/demo/{path}")
            assert answer.status_code in ({200, 404, 503} if path == "tags/list" else {200, 404}), path
            answer = await client.request(method, f"/peili/v2/registry.example/demo/{path}")
            assert answer.status_code in {200, 404, 503}, path
    for key in (stored, TAG):
        assert (await client.head(f"/peili/_router/keys/{key}")).status_code in {200, 404, 503}
    assert (await client.get("/v2/")).status_code == 200
    assert (await client.get("/ops/livez")).status_code == 200
    assert (await client.get("/ops/readyz")).status_code in {200, 503}
    assert (await client.get("/ops/metrics")).status_code == 200
    assert (await client.get("/")).text == "the agent's page"


@pytest.mark.parametrize("make_error", ERRORS, ids=lambda each: each.__name__)
@pytest.mark.parametrize(
    ("part", "method", "moment"), [(part, method, moment) for part, method in CASES for moment in moments(method)]
)
async def test_all_routes_answer_when_a_method_of_a_plugin_fails(
    part: str,
    method: str,
    moment: str,
    make_error: Callable[[str], BaseException],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    store, router, resolver = MemoryStore(), PushRouter(), LocalResolver()
    stored = store.add(b"content")
    store.tag(TAG, stored)
    router.set([])
    plugin: Plugin = {"store": store, "router": router, "resolver": resolver}[part]
    break_method(plugin, method, moment, make_error)
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


WRONG_SHAPES = [
    ("store", "run", "async", "MemoryStore.run is a coroutine function; it must be one with @asynccontextmanager"),
    ("store", "run", "not async", "MemoryStore.run (is @asynccontextmanager missing?) returned None"),
    ("store", "ready", "async", "MemoryStore.ready is a coroutine function; it must be a plain function"),
    ("store", "describe", "not async", "MemoryStore.describe returned None at once; it must be a coroutine function"),
    ("store", "describe", "async", "MemoryStore.describe returned None, which is no Descriptor"),
    ("store", "open", "async", "MemoryStore.open returned None, which is no Content"),
    ("store", "images", "async", "MemoryStore.images returned None, which is no Collection"),
    ("store", "shows_in_flight", "async", "MemoryStore.shows_in_flight is a coroutine function"),
    ("store", "watch", "not async", "MemoryStore.watch returned None, which is no AsyncGenerator"),
    ("router", "peers", "async", "PushRouter.peers is a coroutine function; it must be a plain function"),
    ("router", "acquire", "async", "PushRouter.acquire returned None, not Feed, Wait or Upstream"),
    (
        "resolver",
        "resolve",
        "not async",
        "LocalResolver.resolve returned None at once; it must be a coroutine",
    ),
    ("resolver", "tags_for", "not async", "LocalResolver.tags_for returned None at once"),
]


@pytest.mark.parametrize(
    ("part", "method", "moment", "words"), WRONG_SHAPES, ids=[f"{each[1]} {each[2]}" for each in WRONG_SHAPES]
)
async def test_the_log_says_which_method_has_a_wrong_shape_and_what_is_right(
    part: str, method: str, moment: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    store, router, resolver = MemoryStore(), PushRouter(), LocalResolver()
    stored = store.add(b"content")
    store.tag(TAG, stored)
    router.set([])
    plugin: Plugin = {"store": store, "router": router, "resolver": resolver}[part]
    break_method(plugin, method, moment)
    mirror = Mirror(store, router, resolver, limits=SHORT_LIMITS)
    doors = [Mount("/v2", mirror.local), Mount("/peili", mirror.peer), Mount("/ops", mirror.ops)]
    app = Starlette(routes=[Route("/", home), *doors])
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0"), client_for(app) as client:
        await request_everything(client, stored.digest)
        await until(lambda: words in caplog.text)  # the store is watched as soon as the own peer door has answered
