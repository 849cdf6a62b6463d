"""A request has exactly one valid Host header (RFC 9112, section 3.2), with each kind of server."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection
from starlette.types import Message
from tests.mirror.doors.in_memory_host import InMemoryHost, in_memory_host
from tests.mirror.doors.served_host import served_host
from tests.mirror.doors.server_kinds import SERVER_KINDS, ServerKind

pytestmark = pytest.mark.anyio

HEADS = {
    "none": (b"GET /v2/ HTTP/1.1\r\n", 400),
    "two": (b"GET /v2/ HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n", 400),
    "twice the same": (b"GET /v2/ HTTP/1.1\r\nHost: a.example\r\nhost: a.example\r\n", 400),
    "two and one of them empty": (b"GET /v2/ HTTP/1.1\r\nHost:\r\nHost: a.example\r\n", 400),
    "one": (b"GET /v2/ HTTP/1.1\r\nHost: a.example\r\n", 200),
    "with a port": (b"GET /v2/ HTTP/1.1\r\nhOST:\ta.example:5050 \r\n", 200),
    "with an underscore": (b"GET /v2/ HTTP/1.1\r\nHost: node_1\r\n", 200),
    "IPv6": (b"GET /v2/ HTTP/1.1\r\nHost: [fe80::1%25eth0]:5050\r\n", 200),
    "empty": (b"GET /v2/ HTTP/1.1\r\nHost:\r\n", 200),
    "a URL": (b"GET /v2/ HTTP/1.1\r\nHost: http://a.example/\r\n", 400),
    "a list": (b"GET /v2/ HTTP/1.1\r\nHost: a.example, b.example\r\n", 400),
    "no port": (b"GET /v2/ HTTP/1.1\r\nHost: a.example:http\r\n", 400),
    "a user": (b"GET /v2/ HTTP/1.1\r\nHost: me@a.example\r\n", 400),
    "bytes": (b"GET /v2/ HTTP/1.1\r\nHost: \xc3\xa4.example\r\n", 400),
    "HTTP/1.0 and none": (b"GET /v2/ HTTP/1.0\r\n", 200),
    "HTTP/1.0 and two": (b"GET /v2/ HTTP/1.0\r\nHost: a.example\r\nHost: a.example\r\n", 400),
    "another's URL and none": (b"GET http://a.example/v2/ HTTP/1.1\r\n", 400),
}


@pytest.fixture(params=SERVER_KINDS, ids=str)
def server_kind(request: pytest.FixtureRequest) -> ServerKind:
    chosen: ServerKind = request.param
    return chosen


@pytest.fixture
def anyio_backend(server_kind: ServerKind) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": server_kind.uvloop}


def deny(connection: HTTPConnection) -> bool:
    return False


async def statuses(address: str, request: bytes) -> list[int]:
    """Return the status codes of all responses until the connection is closed."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        answers = await reader.read(-1)
        writer.transport.abort()
    return [int(each[2:5]) for each in answers.split(b"HTTP/1.")[1:]]


@pytest.mark.parametrize("kind", HEADS)
async def test_a_request_without_a_valid_host_is_400(server_kind: ServerKind, kind: str) -> None:
    head, status = HEADS[kind]
    async with server_kind.host() as host:
        assert await statuses(host.address, head + b"Connection: close\r\n\r\n") == [status]


async def test_requests_after_the_refused_one_are_not_answered(server_kind: ServerKind) -> None:
    good = b"GET /v2/ HTTP/1.1\r\nHost: a.example\r\n\r\n"
    async with server_kind.host() as host:
        assert await statuses(host.address, good + HEADS["none"][0] + b"\r\n" + good) == [200, 400]


@pytest.mark.parametrize("server_kind", [SERVER_KINDS[0]], ids=str)
async def test_the_check_also_covers_ops_routes_and_denied_clients(server_kind: ServerKind) -> None:
    async with served_host(auth=deny) as host:
        for door, path in (("local", "/livez"), ("local", "/metrics"), ("peer", "/v2/"), ("peer", "/_router/keys/x")):
            request = f"GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode()
            assert await statuses(host.address(door), request) == [400]


async def status(app: Any, version: str, *hosts: bytes) -> int:
    """Return the status of the response of `app` to a request with these Host headers, which no server has checked."""
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "http_version": version,
        "method": "GET",
        "path": "/v2/",
        "raw_path": b"/v2/",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", each) for each in hosts],
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    found: int = messages[0]["status"]
    return found


@pytest.mark.parametrize("server_kind", [SERVER_KINDS[0]], ids=str)
@pytest.mark.parametrize("door", ["local", "peer", "ops"])
async def test_the_doors_check_if_the_server_does_not(server_kind: ServerKind, door: str) -> None:
    async with in_memory_host() as host:
        app = getattr(host.mirror, door)
        good = 404 if door == "ops" else 200
        assert await status(app, "1.1") == 400
        assert await status(app, "1.1", b"a", b"a") == 400
        assert await status(app, "1.1", b"a b") == 400
        assert await status(app, "1.1", b"localhost") == good
        assert await status(app, "1.0") == good
        assert await status(app, "2", b"a", b"b") == 400
        assert await status(app, "2", b"localhost", b"localhost") == good
        assert await status(app, "2") == good


@pytest.mark.parametrize("server_kind", [SERVER_KINDS[0]], ids=str)
async def test_the_refusal_has_an_error_code_of_the_spec(server_kind: ServerKind) -> None:
    host = InMemoryHost()
    transport = httpx.ASGITransport(host.mirror.local)
    async with host.mirror, httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/v2/", headers={"Host": "a/b"})
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "UNSUPPORTED")
        assert answer.headers["Connection"] == "close"
