"""HTTP/1.1 to peers: which responses are accepted, and which connections are reused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.mirror.client.test_client import peer_client
from tests.mirror.relay.peers import (
    Exchange,
    Script,
    ScriptedPeer,
    honest,
    listening,
    no_http,
    peers,
    short_after,
    silent,
)
from tests.mirror.relay.pulling import SHORT, content
from tests.support.certificates import make_certificate
from tests.support.waiting import until

from peili.mirror import Limits, Peer, PeerUnavailable
from peili.mirror.client import pool
from peili.mirror.client.client import PeerClient, map_exceptions
from peili.mirror.client.connection import MAX_HEAD_SIZE, RemoteProtocolError, parse_head

pytestmark = pytest.mark.anyio

DATA = b"content of a peer"
TOKENS = st.text("abcdefghijklmnopqrstuvwxyzABC-0123456789", min_size=1, max_size=20).map("X-{}".format)
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40)


async def fetch(client: PeerClient, peer: Peer, method: str = "GET", *, timeout: float = 20) -> bytes:
    """Return the whole body."""
    answer = await client.open(method, peer, "/x", timeout=timeout)
    try:
        body = memoryview(bytearray(answer.length or 0))
        filled = 0
        with map_exceptions(peer):
            while count := await answer.readinto(body[filled:]):
                filled += count
        return bytes(body[:filled])
    finally:
        answer.close()


@given(st.integers(200, 599), st.dictionaries(TOKENS, VALUES, max_size=10))
def test_parse_head_returns_status_and_headers(status: int, fields: dict[str, str]) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    head = parse_head(f"HTTP/1.1 {status} some words\r\n{lines}\r\n".encode())
    assert head.status == status
    merged: dict[str, str] = {}
    for name, value in fields.items():
        key = name.lower()
        merged[key] = f"{merged[key]}, {value}" if key in merged else value
    assert head.headers == merged
    assert head.keep_alive


@given(st.binary(max_size=200))
def test_parse_head_raises_only_remote_protocol_error(data: bytes) -> None:
    try:
        head = parse_head(b"HTTP/1.1 200 x\r\n" + data + b"\r\n\r\n")
    except RemoteProtocolError:
        return
    assert head.status == 200


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 x\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 x\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 x\r\nContent-Length : 5\r\n\r\n",
        b"HTTP/1.1 200 x\r\nNo colon\r\n\r\n",
        b"HTTP/7.3 200 x\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 x\r\n",
        b"",
    ],
)
def test_an_ambiguous_head_is_refused(head: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_head(head)


@pytest.mark.parametrize(
    ("line", "version", "kept"),
    [
        ("", "1.1", True),
        ("Connection: close\r\n", "1.1", False),
        ("Connection: Close, x\r\n", "1.1", False),
        ("", "1.0", False),
    ],
)
async def test_a_connection_is_reused_if_the_peer_keeps_it_open(line: str, version: str, kept: bool) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(f"HTTP/{version} 200 x\r\n{line}Content-Length: 3\r\n\r\nabc".encode())

    async with peers(DATA, script) as [a], peer_client() as client:
        for _ in range(3):
            assert await fetch(client, a.peer) == b"abc"
        assert a.connections == (1 if kept else 3)


async def test_a_response_may_arrive_in_any_pieces() -> None:
    whole = b"HTTP/1.1 103 x\r\nLink: </y>\r\n\r\nHTTP/1.1 200 x\r\nContent-Length: 17\r\n\r\n" + DATA

    async def script(exchange: Exchange) -> None:
        for at in range(len(whole)):
            await exchange.send(whole[at : at + 1])
            await asyncio.sleep(0)

    async with peers(DATA, script) as [a], peer_client() as client:
        assert await fetch(client, a.peer) == DATA
        assert await fetch(client, a.peer) == DATA
        assert a.connections == 1


async def test_the_size_of_a_head_is_limited() -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 x\r\n")
        while True:
            await exchange.send(b"X-Header: and so on\r\n" * 1000)

    async with peers(DATA, endless) as [a], peer_client() as client:
        with pytest.raises(PeerUnavailable, match=str(MAX_HEAD_SIZE)) as caught:
            await fetch(client, a.peer)
        assert caught.value.reason == "broken"
        await until(lambda: a.open == 0)


@pytest.mark.parametrize(
    ("script", "reason"),
    [(silent, "silent"), (short_after(5), "broken"), (no_http, "broken")],
)
async def test_each_failure_has_its_reason(script: Script, reason: str) -> None:
    async with peers(DATA, script) as [a], peer_client() as client:
        with pytest.raises(PeerUnavailable) as caught:
            await fetch(client, a.peer, timeout=1)
        assert caught.value.reason == reason
        await until(lambda: a.open == 0)


async def test_an_idle_connection_that_closes_on_a_request_is_replaced_once() -> None:
    async def once(exchange: Exchange) -> None:
        """Close the connection at its second request, like a peer whose keep-alive time is over just then."""
        if len(a.exchanges) > 1 and a.exchanges[0].writer is exchange.writer:
            exchange.close()
        else:
            await honest(exchange)

    async with peers(DATA, once) as [a], peer_client() as client:
        assert await fetch(client, a.peer) == DATA
        assert await fetch(client, a.peer) == DATA
        assert (len(a.requests), a.connections) == (3, 2)


async def test_an_idle_connection_that_the_peer_closed_is_not_used() -> None:
    async def closing(exchange: Exchange) -> None:
        await honest(exchange)
        exchange.close()

    async with peers(DATA, closing) as [a], peer_client() as client:
        for _ in range(3):
            assert await fetch(client, a.peer) == DATA
            await until(lambda: a.open == 0)
        assert (len(a.requests), a.connections) == (3, 3)


async def test_after_an_unread_body_the_connection_is_not_reused() -> None:
    data = content(100_000)
    async with peers(data, honest) as [a], peer_client() as client:
        answer = await client.open("GET", a.peer, "/x", timeout=20)
        assert await answer.readinto(memoryview(bytearray(10))) == 10
        answer.close()
        await until(lambda: a.open == 0)
        assert await fetch(client, a.peer) == data
        assert a.connections == 2


async def test_bytes_after_a_response_are_not_the_next_response() -> None:
    async def chatty(exchange: Exchange) -> None:
        await honest(exchange)
        await exchange.send(b"HTTP/1.1 200 x\r\nContent-Length: 6\r\n\r\nforged")

    async with peers(DATA, chatty) as [a], peer_client() as client:
        for _ in range(3):
            answer = await client.open("GET", a.peer, "/x", timeout=20)
            await until(lambda: a.exchanges[-1].sent > len(DATA) + 100)
            body = memoryview(bytearray(len(DATA)))
            assert await answer.readinto(body) == len(DATA)
            assert bytes(body) == DATA
            answer.close()


@pytest.mark.parametrize("turns", [0, 10], ids=["in the kernel", "in the reader"])
@pytest.mark.parametrize("by", ["tcp", "tls"])
async def test_a_late_body_is_not_the_next_response(by: str, turns: int, tmp_path: Path) -> None:
    go_on, sent = asyncio.Event(), asyncio.Event()

    async def late(exchange: Exchange) -> None:
        await honest(exchange)
        if exchange.request.method == "HEAD":
            await go_on.wait()
            await exchange.send(b"HTTP/1.1 200 x\r\nContent-Length: 6\r\n\r\nforged")
            sent.set()

    node = make_certificate(tmp_path)
    a, client = ScriptedPeer("a", DATA, late), PeerClient(Limits(**SHORT), tls=node.client_context())
    async with listening(a, tls=node.server_context() if by == "tls" else None):
        assert (await client.head(a.peer, "/x", timeout=20)).status == 200
        go_on.set()
        await sent.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        assert await fetch(client, a.peer) == DATA
        assert a.connections == 2
        await client.aclose()


@pytest.mark.parametrize("by", ["tcp", "tls"])
@pytest.mark.parametrize("when", ["before the request", "during the request"])
@pytest.mark.parametrize("how", ["closes", "resets"])
async def test_an_idle_connection_that_ends_is_replaced(by: str, when: str, how: str, tmp_path: Path) -> None:
    async def script(exchange: Exchange) -> None:
        first = exchange.writer is a.exchanges[0].writer
        if not first or len(a.exchanges) == 1:
            await honest(exchange)
        if first and (len(a.exchanges) == 1) == (when == "before the request"):
            exchange.close() if how == "closes" else exchange.reset()

    node = make_certificate(tmp_path)
    a, client = ScriptedPeer("a", DATA, script), PeerClient(Limits(**SHORT), tls=node.client_context())
    async with listening(a, tls=node.server_context() if by == "tls" else None):
        assert (await client.head(a.peer, "/x", timeout=20)).status == 200
        await until(lambda: not a.open or when == "during the request")
        assert await fetch(client, a.peer) == DATA
        assert a.connections == 2
        await client.aclose()


async def test_the_response_to_head_has_no_body() -> None:
    async with peers(DATA, honest) as [a], peer_client() as client:
        for _ in range(3):
            assert (await client.head(a.peer, "/x", timeout=20)).header("Content-Length") == str(len(DATA))
        assert await fetch(client, a.peer) == DATA
        assert a.connections == 1


async def test_idle_connections_are_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "KEEP_ALIVE", 0.1)
    async with peers(DATA, honest) as [a], peer_client() as client:
        await fetch(client, a.peer)
        assert a.open == 1
        await until(lambda: a.open == 0)


async def test_closing_the_client_ends_reads_with_an_error() -> None:
    async with peers(DATA, silent) as [a], peer_client() as client:
        waiting = asyncio.create_task(client.open("GET", a.peer, "/x", timeout=10))
        await until(lambda: a.requests)
        await client.aclose()
        with pytest.raises(PeerUnavailable):
            await waiting
        await until(lambda: a.open == 0)
        with pytest.raises(PeerUnavailable, match="closed"):
            await client.open("GET", a.peer, "/x", timeout=20)


async def test_line_breaks_cannot_split_a_request() -> None:
    async with peers(DATA, honest) as [a], peer_client() as client:
        await client.head(a.peer, "/x y\r\nHost: z", timeout=20)
        assert a.requests[0].path == "/x%20y%0D%0AHost:%20z"
        with pytest.raises(ValueError, match="more than one line"):
            await client.head(a.peer, "/x", timeout=0.5, headers={"A": "b\r\nC: d"})
        assert len(a.requests) == 1


async def test_ipv6_and_a_path_in_the_url() -> None:
    async with listening(ScriptedPeer("a", DATA, honest), "::1") as a, peer_client() as client:
        assert await fetch(client, Peer("a", (f"{a.urls[0]}/peili",))) == DATA
        assert a.requests[0].path == "/peili/x"
        assert a.requests[0].headers["host"] == a.urls[0].removeprefix("http://")


async def test_every_request_has_the_headers_of_the_client() -> None:
    client = PeerClient(Limits(**SHORT), headers={"Authorization": "Bearer of-the-cluster"})
    async with peers(DATA, honest) as [a]:
        await fetch(client, a.peer)
        await client.head(a.peer, "/x", timeout=20)
        await client.aclose()
    assert [each.headers["authorization"] for each in a.requests] == ["Bearer of-the-cluster"] * 2
