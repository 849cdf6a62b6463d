"""A registry that only a request has named is not asked at addresses of this host, or of metadata services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from tests.mirror.upstream.registries import BY_TAG, PATIENT, READABLE, SmallRegistry
from tests.support.neighbours import served
from tests.support.stream_server import stream_server

from peili.mirror.upstream.answers import Denied
from peili.mirror.upstream.api_roots import ApiRoot, default_roots, trusting
from peili.mirror.upstream.client import UpstreamClient

pytestmark = pytest.mark.anyio

REFUSED = "nobody has configured this registry"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost", "[::ffff:127.0.0.1]"])
async def test_a_registry_on_this_host_is_asked_only_if_it_is_configured(host: str) -> None:
    registry = SmallRegistry()
    async with served(registry) as url:
        question = replace(BY_TAG, registry=f"{host}:{url.rpartition(':')[2]}")

        def plain(name: str) -> list[ApiRoot]:
            return [ApiRoot.of(f"http://{name}", is_assumed=True)]

        for roots in (default_roots, plain):
            async with UpstreamClient(PATIENT, roots=roots) as client:
                answer = await client.ask(question)
                assert isinstance(answer, Denied), answer
                assert REFUSED in answer.why
        assert registry.asked == []
        async with UpstreamClient(
            PATIENT, roots=trusting(plain, lambda name: name == question.registry.lower())
        ) as client:
            assert await client.ask(question) == READABLE


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[fd00:ec2::254]", "100.100.100.200", "0.0.0.0", "169.254.7.7", "[64:ff9b::a9fe:a9fe]"]
)
async def test_link_local_and_metadata_addresses_are_not_asked(host: str) -> None:
    async with UpstreamClient(PATIENT) as client:
        answer = await client.ask(replace(BY_TAG, registry=host))
    assert isinstance(answer, Denied)
    assert REFUSED in answer.why


@dataclass
class Listener:
    """What a port was sent."""

    port: int
    received: bytes = b""
    connections: int = 0


@asynccontextmanager
async def listener() -> AsyncGenerator[Listener]:
    """Listen on loopback."""
    found = Listener(0)

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.connections += 1
        found.received += await reader.read()

    async with stream_server(note) as found.port:
        yield found


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_name_of_this_host_is_sent_nothing(scheme: str) -> None:
    """The system resolves "127.1" like a name."""
    async with listener() as found:
        root = ApiRoot.of(f"{scheme}://127.1:{found.port}", is_assumed=True)
        async with UpstreamClient(PATIENT, roots=lambda _: [root]) as client:
            assert isinstance(await client.ask(BY_TAG), Denied)
            assert await client.probe(BY_TAG.registry, 1) is None
        assert (found.received, found.connections) == (b"", 2)


async def test_a_connection_of_a_configured_registry_is_not_used_for_another_one() -> None:
    registry = SmallRegistry()
    async with served(registry) as url:
        port = url.rpartition(":")[2]
        roots = {
            each: ApiRoot.of(f"http://127.1:{port}", is_assumed=each == "b.example")
            for each in ("a.example", "b.example")
        }
        async with UpstreamClient(PATIENT, roots=lambda name: [roots[name]]) as client:
            assert await client.ask(replace(BY_TAG, registry="a.example")) == READABLE
            assert isinstance(await client.ask(replace(BY_TAG, registry="b.example")), Denied)
    assert len(registry.asked) == 1


async def test_a_redirect_leads_to_no_such_address_but_a_proxy_may_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, service = SmallRegistry(), SmallRegistry()
    async with served(proxy) as url, served(service) as service_url:
        monkeypatch.setenv("HTTP_PROXY", url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        root = ApiRoot.of("http://registry.example", is_assumed=True)
        async with UpstreamClient(PATIENT, roots=lambda _: [root]) as client:
            assert await client.ask(BY_TAG) == READABLE
            proxy.default = (307, {"Location": f"{service_url}/v2/"}, b"")
            answer = await client.ask(BY_TAG)
            assert isinstance(answer, Denied)
            assert REFUSED in answer.why
    assert service.asked == []
