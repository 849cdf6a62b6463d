"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from tests.support.waiting import until

from peili.mirror import Limits, MembershipRouter, Mirror
from peili.mirror.doors.auth import anyone
from peili.mirror.testing import context_for

pytestmark = pytest.mark.anyio

README = Path(__file__).parent.parent / "README.md"


def run(example: int, **given: object) -> dict[str, Any]:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, Any] = {**given, "__name__": "readme"}
    exec(compile(blocks[example], "README.md", "exec"), names)
    return names


async def test_a_host_embeds_a_mirror_on_its_own_port() -> None:
    names = run(0, is_a_node=anyone, cluster_tls=None)
    mirror: Mirror = names["mirror"]
    async with (
        mirror.lifespan(None),
        httpx.AsyncClient(transport=httpx.ASGITransport(names["app"]), base_url="http://host") as client,
    ):
        assert (await client.get("/v2/")).status_code == 200
        assert (await client.get("/peili/v2/")).headers["peili-id"] == "node-1"
        missing = await client.get(f"/v2/library/redis/blobs/sha256:{64 * '0'}?ns=docker.io")
        assert missing.status_code == 404


async def test_a_router_of_one_s_own_says_who_the_members_are() -> None:
    async def watch_nodes() -> AsyncGenerator[list[SimpleNamespace], None]:
        yield [SimpleNamespace(name="node-2", address="192.0.2.2")]

    router: MembershipRouter = run(1, watch_nodes=watch_nodes)["ClusterRouter"]()
    async with context_for(router, limits=Limits()) as context, router.run(context):
        await until(router.ready)
        assert [peer.urls for peer in router.peers()] == [("https://192.0.2.2:6443/peili",)]
