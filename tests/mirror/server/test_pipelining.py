"""Pipelined requests on one connection: each is answered as if it had arrived alone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from tests.mirror.doors.server_kinds import on_uvicorn

from peili.mirror import Mirror, http_protocol
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"


def post(body: bytes, *, chunks: Sequence[int] = ()) -> bytes:
    head = b"POST / HTTP/1.1\r\nHost: a.example\r\n"
    if not chunks:
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunked = b""
    for size in chunks:
        chunked, body = chunked + b"%x\r\n%s\r\n" % (size, body[:size]), body[size:]
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


def body_length_app(mirror: Mirror) -> ASGIApp:
    """Return an app that answers with the length of the request's body."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        body = b"%d;" % size
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


BLANKS = b"\r\n\r\n" * 1000
TRAINS = {
    "heads": ([GET] * 20 + [LAST], [0] * 21),
    "a body and a head": ([post(b"x" * 100_000), LAST], [100_000, 0]),
    "a body full of blank lines": ([GET, post(BLANKS), LAST], [0, 4000, 0]),
    "a body that looks like requests": ([post(GET * 200), GET, LAST], [len(GET) * 200, 0, 0]),
    "short bodies": ([*(post(b"x" * n) for n in range(1, 20)), LAST], [*range(1, 20), 0]),
    "chunks": ([post(b"x" * 50_000, chunks=[1, 4096, 20_000]), GET, LAST], [50_000, 0, 0]),
}


@pytest.mark.parametrize(
    ("train", "how"),
    [
        *((train, how) for train in TRAINS for how in ("at once", "in pieces")),
        *((train, "byte by byte") for train, (requests, _) in TRAINS.items() if sum(map(len, requests)) < 10_000),
    ],
)
async def test_pipelined_requests_are_answered_in_order(train: str, how: str) -> None:
    requests, sizes = TRAINS[train]
    data = b"".join(requests)
    mirror = Mirror(MemoryStore(), MemoryRouter())
    chance = random.Random(train)
    async with mirror, on_uvicorn(body_length_app, http=http_protocol())(mirror) as (address, _), asyncio.timeout(60):
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        while data:
            size = {"at once": len(data), "in pieces": chance.randint(1, 5000), "byte by byte": 1}[how]
            writer.write(data[:size])
            await writer.drain()
            await asyncio.sleep(0)
            data = data[size:]
        answers = await reader.read(-1)
        writer.transport.abort()
    assert [int(each.rpartition(b"\r\n\r\n")[2]) for each in answers.split(b";")[:-1]] == sizes
