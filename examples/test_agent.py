"""Tests of an agent that embeds a mirror. The fixture is another host that has an image, and the agent pulls it.

pytest examples/test_agent.py
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from socket import create_server
from typing import NamedTuple

import httpx
import pytest

from asyncio_agent import Agent  # the agent under test
from peili.mirror import Mirror, NotFound, PushRouter, serve
from peili.mirror.testing import Image, make_layout, pull
from peili.stores.memory import MemoryStore
from peili.stores.oci_layout import OciLayoutStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Neighbour(NamedTuple):
    """Another host: the URL of its peer door, and the image that it has."""

    url: str
    image: Image


@pytest.fixture
async def neighbour(tmp_path: Path) -> AsyncGenerator[Neighbour]:
    image = make_layout(tmp_path / "image", layers=[100_000, 3_000_000])
    router = PushRouter()
    router.set([])  # ready, with no peers
    mirror = Mirror(OciLayoutStore(image.path), router)
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0"):
        await mirror.wait_ready(30)
        yield Neighbour(mirror.identity.urls[0], image)


@pytest.mark.parametrize("knows", [True, False])
async def test_the_agent_pulls_from_the_nodes_that_it_knows(neighbour: Neighbour, knows: bool) -> None:
    agent = Agent(MemoryStore(), [neighbour.url] if knows else [])
    with create_server(("127.0.0.1", 0)) as local, create_server(("127.0.0.1", 0)) as peer:
        running = asyncio.create_task(agent.run(local, peer))
        door = f"http://127.0.0.1:{local.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=door) as runtime:
            if knows:
                assert await pull(runtime, neighbour.image, "docker.io/library/demo") > 3_000_000
            else:
                with pytest.raises(NotFound):
                    await pull(runtime, neighbour.image, "docker.io/library/demo")
        agent.stopping.set()
        await running
