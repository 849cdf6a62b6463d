"""Each program in examples/ works on real sockets and exits without warnings."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
from tests.examples.programs import running
from tests.support.certificates import Authority
from tests.support.ports import free_port

import fastapi_agent
from peili.mirror import NotFound
from peili.mirror.testing import Image, make_layout, pull
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

REPOSITORY = "docker.io/library/demo"


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return make_layout(tmp_path / "image", layers=[100_000, 2_000_000], tags=[f"{REPOSITORY}:v1"])


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A layout of another image."""
    return make_layout(tmp_path / "other", layers=[10]).path


@asynccontextmanager
async def client(url: str, verify: ssl.SSLContext | bool = True) -> AsyncGenerator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, verify=verify, timeout=60, trust_env=False) as it:
        yield it


async def pull_when_found(runtime: httpx.AsyncClient, image: Image, *, prefix: str = "/v2") -> int:
    """Pull an image, and return its size. If the peer needs longer than a lookup may take, try again, as a runtime."""
    async with asyncio.timeout(60):
        while True:
            with suppress(NotFound):
                return await pull(runtime, image, REPOSITORY, prefix=prefix)


async def test_an_agent_without_a_web_server(image: Image, empty: Path, tmp_path: Path) -> None:
    doors = r"local door (\S+) peer door (\S+)"
    with running("asyncio_agent", tmp_path, "--layout", image.path) as other:
        url = f"http://{other.wait_for(doors)[2]}"
        with running("asyncio_agent", tmp_path, "--layout", empty, url) as agent:
            async with client(f"http://{agent.wait_for(doors)[1]}") as runtime:
                assert await pull_when_found(runtime, image) > 2_000_000


async def test_an_agent_on_fastapi(image: Image, empty: Path, tmp_path: Path) -> None:
    urls = [f"http://{host}:{free_port(host)}" for host in ("127.0.0.1", "127.0.0.2")]
    with (
        running("fastapi_agent", tmp_path, "node-1", urls[0], "--layout", empty) as one,
        running("fastapi_agent", tmp_path, "node-2", urls[1], "--layout", image.path) as two,
    ):
        for each in (one, two):
            each.wait_for("Uvicorn running")
        async with client(urls[0]) as host, client(urls[1]) as other:
            with pytest.raises(NotFound):
                await pull(host, image, REPOSITORY, prefix="/images/v2")
            assert (await other.get("/images/peer/v2/")).status_code == 403  # it does not know 127.0.0.1 yet
            for agent, nodes in ((host, {"node-2": urls[1]}), (other, {"node-1": urls[0]})):
                assert (await agent.put("/nodes", json=nodes)).status_code == 200
            size = await pull_when_found(host, image, prefix="/images/v2")
            metrics = (await host.get("/metrics")).text
            counted = re.search(r'^peili_sent_bytes_total{door="local",source="peer"} (\S+)$', metrics, re.MULTILINE)
            assert counted is not None
            assert float(counted[1]) >= size
            assert (await other.get("/images/peer/v2/")).status_code == 200
            assert (await other.put("/nodes", json={})).status_code == 200
            assert (await other.get("/images/peer/v2/")).status_code == 403  # node-1 has left


@pytest.mark.parametrize(("address", "status"), [("127.0.0.1", 200), ("10.0.0.9", 403)])
async def test_only_this_host_sets_the_nodes_of_the_fastapi_agent(address: str, status: int) -> None:
    app = fastapi_agent.build("node-1", "http://10.0.0.2:8000", MemoryStore())

    def client_at(address: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app, client=(address, 1)), base_url="http://10.0.0.2:8000"
        )

    async with app.router.lifespan_context(app), client_at(address) as setter, client_at("10.0.0.9") as node:
        assert (await setter.put("/nodes", json={"node-9": "http://10.0.0.9:8000"})).status_code == status
        assert (await node.get("/images/peer/v2/")).status_code == status


async def test_an_agent_on_starlette_with_its_own_tls_and_nodes(image: Image, empty: Path, tmp_path: Path) -> None:
    nodes = tmp_path / "nodes"
    addresses = [f"127.0.0.1:{free_port()}", f"127.0.0.2:{free_port('127.0.0.2')}"]
    nodes.write_text("".join(f"node-{n} {address}\n" for n, address in enumerate(addresses, 1)))
    authority = Authority(tmp_path / "authority")
    tls = [authority.issue(tmp_path / f"tls-{n}", address.split(":")[0]) for n, address in enumerate(addresses, 1)]
    with (
        running(
            "starlette_agent", tmp_path, "node-1", "--nodes", nodes, "--tls", tmp_path / "tls-1", "--layout", empty
        ) as one,
        running(
            "starlette_agent", tmp_path, "node-2", "--nodes", nodes, "--tls", tmp_path / "tls-2", "--layout", image.path
        ) as two,
    ):
        for each in (one, two):
            each.wait_for("Uvicorn running")
        async with client(f"https://{addresses[0]}", tls[0].client_context()) as host:
            assert (await host.get("/")).json()["node"] == "node-1"
            assert await pull_when_found(host, image) > 2_000_000
        no_certificate = ssl.create_default_context(cafile=authority.cert)
        async with client(f"https://{addresses[1]}", no_certificate) as unknown:
            with pytest.raises(httpx.TransportError):
                await unknown.get("/peili/v2/")
        async with client(f"https://{addresses[1]}", tls[0].client_context()) as node:
            assert (await node.get("/peili/v2/")).status_code == 200
            nodes.write_text("node-1")  # an incomplete line: the previous list stays
            two.wait_for("keeping the previous nodes")
            assert (await node.get("/peili/v2/")).status_code == 200
            nodes.write_text(f"node-2 {addresses[1]}\n")
            async with asyncio.timeout(60):
                while (await node.get("/peili/v2/")).status_code != 403:  # noqa: ASYNC110 - it is in another process
                    await asyncio.sleep(0.05)
