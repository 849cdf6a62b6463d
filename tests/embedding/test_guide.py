"""The examples in docs/embedding.md work as they stand, and its tables are complete."""

from __future__ import annotations

import ast
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.requests import HTTPConnection
from tests.support.plain_http import plain_client
from tests.support.waiting import until

import peili.mirror
from peili.mirror import Limits, MembershipRouter, Mirror, PushRouter
from peili.mirror.testing import context_for
from peili.mirror.tls.key_file import create_key_file
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
PRELUDE = """
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import Mount
from peili.mirror import *
"""


async def run(example: int, **given: object) -> dict[str, Any]:
    """Run one of the blocks, which may have ``async with`` at the top level."""
    names: dict[str, Any] = {**given, "__name__": "guide"}
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    exec(PRELUDE, names)
    if (waiting := eval(compile(BLOCKS[example], "embedding.md", "exec", flags=flags), names)) is not None:
        await waiting
    return names


def mirror() -> Mirror:
    return Mirror(MemoryStore(), MemoryRouter())


async def test_an_app_with_all_three_doors() -> None:
    names = await run(0, mirror=(one := mirror()))
    app = names["app"]
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        await one.wait_ready(30)
        for path in ("/v2/", "/peili/v2/", "/ops/readyz", "/ops/metrics"):
            assert (await client.get(path)).status_code == 200, path


async def test_an_agent_with_its_own_lifespan() -> None:
    names = await run(1, mirror=(one := mirror()))
    async with names["lifespan"](None):
        assert one.ready()
    assert not one.ready()


async def test_an_agent_without_a_web_server() -> None:
    worked: list[int] = []

    async def work(local: tuple[str, ...], peer: tuple[str, ...]) -> None:
        async with plain_client() as client:
            answers = [await client.get(f"http://{each}/v2/") for each in (*local, *peer)]
        worked.extend(each.status_code for each in answers)

    await run(2, mirror=mirror(), work=work)
    assert worked == [200, 200]


async def test_hosts_with_a_shared_key(tmp_path: Path) -> None:
    create_key_file(tmp_path / "key")
    worked: list[tuple[str, ...]] = []

    async def work(urls: tuple[str, ...]) -> None:
        worked.append(urls)

    names = await run(3, key_file=tmp_path / "key", store=MemoryStore(), router=PushRouter(), work=work)
    assert names["mirror"].identity.id == "node-1"
    [[url]] = worked
    assert url.startswith("https://127.0.0.1:")


async def test_access_and_members() -> None:
    is_node = (await run(4, addresses_of_nodes={"10.0.0.2"}))["is_node"]
    clients = (("10.0.0.2", 1), ("10.0.0.3", 1), None)
    answers = [is_node(HTTPConnection({"type": "http", "client": client})) for client in clients]
    assert answers == [True, False, False]
    router = PushRouter()
    await run(5, router=router, nodes=[SimpleNamespace(name="node-2", address="10.0.0.3")])
    async with Mirror(MemoryStore(), router):
        await until(router.ready)
        assert [peer.urls for peer in router.peers()] == [("https://10.0.0.3:6443/peili",)]


async def test_a_router_of_the_agents_own_says_who_the_members_are() -> None:
    async def watch_nodes() -> AsyncGenerator[list[SimpleNamespace], None]:
        yield [SimpleNamespace(name="node-2", address="192.0.2.2")]

    router: MembershipRouter = (await run(6, watch_nodes=watch_nodes))["ClusterRouter"]()
    async with context_for(router, limits=Limits()) as context, router.run(context):
        await until(router.ready)
        assert [peer.urls for peer in router.peers()] == [("https://192.0.2.2:6443/peili",)]


async def test_metrics() -> None:
    registry = CollectorRegistry()
    await run(7, registry=registry, mirror=mirror())
    assert registry.get_sample_value("peili_ready", {"part": "store"}) == 0
    registry = CollectorRegistry()
    await run(8, registry=registry, blue=mirror(), green=mirror())
    assert registry.get_sample_value("peili_ready", {"part": "store", "mirror": "green"}) == 0


def test_the_table_has_every_metric_and_no_other() -> None:
    listed = set(re.findall(r"`(peili_\w+)`", TEXT))
    assert listed == {family.name for family in mirror().figures()}


def test_what_it_names_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
    for name in ("Collector", "Limits", "MembershipRouter", "Peer", "PushRouter", "Watchdog", "loopback_only"):
        assert f"`{name}" in TEXT or f"{name}(" in TEXT or f"={name}`" in TEXT
        assert name in peili.mirror.__all__
