"""`PeerClient.request`: a request with a body, and a bounded response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.mirror.client.test_client import peer_client
from tests.support.neighbours import refusing_url, served
from tests.support.stream_server import stream_server
from tests.support.waiting import until

from peili.mirror import FailureReason, Peer, PeerUnavailable
from peili.mirror.client.client import PeerClient

pytestmark = pytest.mark.anyio

LARGE = bytes(range(256)) * 4096


async def echo(request: Request) -> Response:
    headers = {"X-Type": request.headers.get("content-type", ""), "X-Method": request.method}
    return Response(await request.body(), status_code=201, headers=headers)


@asynccontextmanager
async def echoing() -> AsyncGenerator[Peer]:
    async with served(Starlette(routes=[Route("/echo", echo, methods=["POST", "PUT"])])) as url:
        yield Peer("a", (url,))


@asynccontextmanager
async def raw(serve: Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]) -> AsyncGenerator[Peer]:
    """A peer that passes the head of each request to `serve`."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.LimitOverrunError):
            while True:
                await serve(await reader.readuntil(b"\r\n\r\n"), writer)

    async with stream_server(connected) as port:
        yield Peer("a", (f"http://127.0.0.1:{port}",))


async def post(client: PeerClient, peer: Peer, body: bytes = b"{}", most: int = 1000, timeout: float = 20) -> bytes:
    head, answer = await client.request("POST", peer, "/echo", body, timeout=timeout, max_response=most)
    assert head.status in {200, 201}
    return answer


@pytest.mark.parametrize("body", [b"", b"{}", LARGE], ids=len)
async def test_a_body_is_sent_and_the_response_is_read_to_its_end(body: bytes) -> None:
    async with echoing() as peer, peer_client() as client:
        for method in ("POST", "PUT"):
            head, answer = await client.request(
                method, peer, "/echo", body, timeout=20, max_response=len(LARGE), headers={"Content-Type": "text/x"}
            )
            assert (head.status, head.header("X-Method"), head.header("X-Type")) == (201, method, "text/x")
            assert answer == body


async def test_the_connection_is_used_again() -> None:
    async with echoing() as peer, peer_client() as client:
        for number in range(3):
            assert await post(client, peer, str(number).encode()) == str(number).encode()
            assert len(client._pool._idle) == 1  # pyright: ignore[reportPrivateUsage] - nothing else shows it


async def test_the_connection_is_closed_if_the_caller_says_so() -> None:
    async with echoing() as peer, peer_client() as client:
        await client.request("POST", peer, "/echo", b"1", timeout=20, max_response=9, headers={"Connection": "close"})
        assert not client._pool._idle  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("status", [400, 404, 413, 429, 503])
@pytest.mark.parametrize("body", [b"{}", LARGE], ids=len)
async def test_a_server_that_refuses_a_request_without_reading_it_does_not_break_the_next_one(
    status: int, body: bytes
) -> None:
    """The server takes what it has not read of a body for the next request."""

    async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
        is_whole = head.startswith((b"POST /echo HTTP/1.1\r\n", b"HEAD / HTTP/1.1\r\n"))
        line = f"HTTP/1.1 {status if head.startswith(b'POST') else 200} x".encode() if is_whole else b"HTTP/1.1 500 x"
        writer.write(line + b"\r\nContent-Length: 0\r\n\r\n")

    async with raw(serve) as peer, peer_client() as client:
        for _ in range(2):
            with suppress(PeerUnavailable):  # the connection may end before a large body is sent
                answer, _ = await client.request("POST", peer, "/echo", body, timeout=20, max_response=9)
                assert answer.status == status
            assert (await client.head(peer, "/", timeout=20)).status == 200


async def test_a_response_that_is_too_large_is_not_read() -> None:
    async with echoing() as peer, peer_client() as client:
        assert await post(client, peer, bytes(100), most=100) == bytes(100)
        with pytest.raises(PeerUnavailable, match="at most 99"):
            await post(client, peer, bytes(100), most=99)


async def test_a_response_without_a_length_is_an_error() -> None:
    async def serve(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")

    async with raw(serve) as peer, peer_client() as client:
        with pytest.raises(PeerUnavailable, match="size"):
            await post(client, peer)


async def test_a_request_is_not_repeated_once_it_may_have_been_read() -> None:
    requests: list[bytes] = []

    async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
        requests.append(head)
        if len(requests) > 1:
            writer.close()
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with raw(serve) as peer, peer_client() as client:
        await post(client, peer, b"")
        with pytest.raises(PeerUnavailable) as caught:
            await post(client, peer, b"")
        assert caught.value.reason == FailureReason.BROKEN
    assert len(requests) == 2


@pytest.mark.parametrize("body", [None, b""])
async def test_a_get_is_sent_again_if_a_kept_connection_ends(body: bytes | None) -> None:
    heads: list[bytes] = []

    async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        if len(heads) == 2:
            writer.close()
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with raw(serve) as peer, peer_client() as client:
        for _ in range(2):
            _, answer = await client.request("GET", peer, "/", body, timeout=20, max_response=9)
            assert answer == b"ok"
    assert len(heads) == 3
    assert all(b"content-length" not in head.lower() for head in heads)


async def test_a_kept_connection_that_was_closed_before_is_not_used() -> None:
    requests: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
        requests.append(head)
        writers.append(writer)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with raw(serve) as peer, peer_client() as client:
        await post(client, peer, b"")
        [idle] = client._pool._idle  # pyright: ignore[reportPrivateUsage]
        writers[0].close()
        await until(lambda: not idle.transport.is_quiet())
        await post(client, peer, b"")
    assert len(requests) == 2


@pytest.mark.parametrize("when", ["before the head", "in the body"])
async def test_the_whole_response_has_to_arrive_in_time(when: str) -> None:
    async def serve(_: bytes, writer: asyncio.StreamWriter) -> None:
        if when == "in the body":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")

    async with raw(serve) as peer, peer_client() as client:
        with pytest.raises(PeerUnavailable) as caught:
            await post(client, peer, timeout=0.2)
        assert caught.value.reason == FailureReason.SILENT
        assert not client._pool._idle  # pyright: ignore[reportPrivateUsage]


async def test_the_next_url_is_tried_if_no_connection_can_be_made() -> None:
    async with echoing() as peer, peer_client() as client:
        assert await post(client, Peer("a", (refusing_url(), *peer.urls)), b"x") == b"x"
        with pytest.raises(PeerUnavailable) as caught:
            await post(client, Peer("b", (refusing_url(),)))
        assert caught.value.reason == FailureReason.UNREACHABLE
