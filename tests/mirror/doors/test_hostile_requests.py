"""Both doors refuse malformed and hostile requests quickly, and continue to work."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.mirror.doors.in_memory_host import DOORS, client_for, error_codes, in_memory_host
from tests.mirror.doors.served_host import ServedHost, served_host
from tests.support.memory import resident

from peili.mirror import Limits, Mirror, PushRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

DIGEST = "sha256:" + "0" * 64
QUICK = 30.0
HOST = b"Host: localhost\r\n"


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/library%2fredis/manifests/v1", 400),
        ("/v2/library%2Fredis/manifests/v1", 400),
        ("/v2/..%2f..%2fetc/blobs/" + DIGEST, 400),
        ("/v2/library%5credis/manifests/v1", 400),
        ("/v2/library%00/manifests/v1", 400),
        ("/v2/%2e%2e/manifests/v1", 400),
        ("/v2/x/blobs/sha256:%2e%2e%2fetc", 400),
        ("/v2/x/blobs/sha256:" + "/" * 64, 404),
        ("/v2/x/blobs/sha1:" + "0" * 40, 400),
        ("/v2/x/blobs/sha256:" + "0" * 63 + "%0a", 400),
        ("/v2/x/manifests/" + "v" * 129, 400),
        ("/v2/" + "x" * 256 + "/manifests/v1", 400),
        ("/v2/x/manifests/" + "v" * 5000, 414),
        ("/v2/x/manifests/v1?ns=" + "v" * 5000, 414),
        ("/v2/x/manifests/v1?ns=%00", 400),
        ("/v2/x/manifests/v1?ns=..", 400),
        ("/v2/x/manifests/v1?ns=%ff%fe", 400),
        ("/v2/%ff%fe/manifests/v1", 400),
        ("//v2/x/manifests/v1", 404),
    ],
)
async def test_malformed_paths_are_refused(door: str, path: str, status: int) -> None:
    async with in_memory_host() as host, client_for(host.door(door)) as client:
        response = await client.get(path)
        assert response.status_code == status


@pytest.mark.parametrize("door", DOORS)
async def test_too_many_headers_and_bodies_are_refused(door: str) -> None:
    async with in_memory_host() as host, client_for(host.door(door)) as client:
        response = await client.get("/v2/", headers=[(f"X-{n}", "") for n in range(120)])
        assert (response.status_code, error_codes(response)) == (431, ["UNSUPPORTED"])
        response = await client.request("GET", "/v2/", content=b"body")
        assert (response.status_code, error_codes(response)) == (413, ["SIZE_INVALID"])
        assert response.headers["Connection"] == "close"
        response = await client.request("GET", "/v2/", content=b"")
        assert response.status_code == 200


async def test_the_routes_of_a_router_have_the_same_limits() -> None:
    key = "/_router/keys/registry.example/demo:v1"
    mirror = Mirror(MemoryStore(), PushRouter())
    async with mirror, client_for(mirror.peer) as client:
        assert (await client.head(f"/_router/keys/{'x' * 5000}")).status_code == 414
        assert (await client.head(key, headers=[(f"X-{n}", "") for n in range(120)])).status_code == 431
        assert (await client.post(key, content=b"body")).status_code == 405
        assert (await client.head(key)).status_code == 404


HOSTILE = {
    "garbage": os.urandom(4096),
    "garbage with lines": b"\r\n\r\n\x00\xff\r\n" * 100,
    "TLS": bytes.fromhex("16030100a5010000a10303") + os.urandom(160),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /v2/\r\n\r\n",
    "no host": b"GET /v2/x/manifests/V?V HTTP/1.1\r\n\r\n",
    "dots": b"GET /v2/../../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
    "dots in a digest": b"GET /v2/x/blobs/sha256:../../../etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n",
    "encoded slash": b"GET /v2/a%2fb/manifests/v1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "raw bytes in the path": b"GET /v2/\xff\xfe/manifests/v1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "another's URL": b"GET http://169.254.169.254/latest/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT": b"CONNECT 169.254.169.254:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "PUT": b"PUT /v2/x/manifests/v1 HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello",
    "POST that never sends its body": b"POST /v2/x/blobs/uploads/ HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 99999999\r\n\r\n",
    "body": b"GET /v2/ HTTP/1.1\r\n" + HOST + b"Content-Length: 1048576\r\n\r\n" + b"x" * 1048576,
    "chunked body": b"GET /v2/ HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"10000\r\n"
    + b"x" * 65536,
    "both lengths": b"GET /v2/ HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": b"GET /v2/ HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
    "two lengths": b"GET /v2/ HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "path of 1 MiB": b"GET /v2/" + b"x" * (1 << 20) + b"/manifests/v1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "10,000 headers": b"GET /v2/ HTTP/1.1\r\n" + HOST + b"".join(b"X-%d: y\r\n" % n for n in range(10_000)) + b"\r\n",
    "header of 1 MiB": b"GET /v2/ HTTP/1.1\r\n" + HOST + b"X: " + b"y" * (1 << 20) + b"\r\n\r\n",
    "websocket": b"GET /v2/x/manifests/- HTTP/1.1\r\n" + HOST + b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
}


async def first_bytes(address: str, request: bytes) -> bytes:
    """Return the first bytes of the response; nothing if the connection was closed."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(QUICK):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request)
            await writer.drain()
            return await reader.read(12)
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()


@pytest.fixture
async def host() -> AsyncGenerator[ServedHost]:
    async with served_host(limits=Limits(header_timeout=1)) as running_host:
        yield running_host


@pytest.mark.parametrize("request_", HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_bytes_lead_to_4xx_or_a_closed_connection(
    host: ServedHost, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for door in DOORS:
        answered = await first_bytes(host.address(door), request_)
        assert answered == b"" or answered.startswith(b"HTTP/1.1 4"), answered
        assert (await first_bytes(host.address(door), b"GET /v2/ HTTP/1.1\r\n" + HOST + b"\r\n")).endswith(b" 200")
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures memory by /proc")
async def test_hostile_bytes_do_not_grow_the_memory(host: ServedHost) -> None:
    async def round_() -> None:
        for door in DOORS:
            await asyncio.gather(*(first_bytes(host.address(door), each) for each in HOSTILE.values()))
        gc.collect()

    for _ in range(3):
        await round_()
    before = resident()
    for _ in range(10):
        await round_()
    assert resident() - before < 16 << 20


async def test_pipelined_requests_are_answered_in_order(host: ServedHost) -> None:
    one = b"HEAD /v2/ HTTP/1.1\r\n" + HOST + b"\r\n"
    last = b"HEAD /v1/ HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    address, _, port = host.address("local").rpartition(":")
    reader, writer = await asyncio.open_connection(address, int(port))
    writer.write(one * 20 + last)
    async with asyncio.timeout(QUICK):
        answers = await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    assert answers.count(b"HTTP/1.1 200") == 20
    assert answers.rpartition(b"HTTP/1.1 ")[2].startswith(b"404")


async def is_closed(address: str, request: bytes) -> bool:
    """Whether the server closes a connection on which `request` was sent and no response was read."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(QUICK):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request)
            await writer.drain()
            await reader.read(-1)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
    return True


async def test_a_connection_with_many_waiting_requests_is_closed(host: ServedHost) -> None:
    flood = b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000
    for door in DOORS:
        assert await is_closed(host.address(door), flood)
    assert host.mirror.metrics.limited.family().samples["pipeline",] == 2


async def test_the_body_does_not_count_as_head(host: ServedHost) -> None:
    post = b"POST /v2/ HTTP/1.1\r\n" + HOST + b"Content-Length: 131072\r\n\r\n" + b"x" * 131072
    for door in DOORS:
        assert (await first_bytes(host.address(door), post)).endswith(b" 405")
    assert host.mirror.metrics.limited.family().samples["header_size",] == 0


async def test_the_sizes_of_several_heads_are_not_added(host: ServedHost) -> None:
    one = b"HEAD /v2/ HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 3000 + b"\r\n\r\n"
    assert (await first_bytes(host.address("local"), one * 15)).endswith(b" 200")
