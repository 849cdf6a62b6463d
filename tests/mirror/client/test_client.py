"""`PeerClient` against real sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from tests.mirror.relay.peers import (
    Exchange,
    Script,
    ScriptedPeer,
    answers,
    breaks_connections,
    honest,
    listening,
    no_http,
    peers,
    refusing_url,
    silent,
)
from tests.mirror.relay.pulling import SHORT, SMALL, content, pulling
from tests.support.neighbours import black_hole_url
from tests.support.stream_server import stream_server
from tests.support.waiting import until

from peili.mirror import Digest, Holder, Limits, Peer, PeerUnavailable
from peili.mirror.client.client import PeerClient, map_exceptions
from peili.mirror.support.deadlines import Deadline

pytestmark = pytest.mark.anyio

DATA = b"content of a peer"


@asynccontextmanager
async def peer_client(**limits: Any) -> AsyncGenerator[PeerClient]:
    made = PeerClient(Limits(**{**SHORT, **limits}))
    try:
        yield made
    finally:
        await made.aclose()


async def fetch(client: PeerClient, peer: Peer, timeout: float = 20) -> bytes:
    """Return the body of ``/x``."""
    answer = await client.open("GET", peer, "/x", timeout=timeout)
    try:
        body = memoryview(bytearray(answer.length or 0))
        with map_exceptions(peer):
            return bytes(body[: await answer.readinto(body)])
    finally:
        answer.close()


async def test_an_unreachable_first_url_is_skipped() -> None:
    async with peers(DATA, honest) as [a], peer_client() as client:
        assert await fetch(client, Peer("a", (refusing_url(), *a.urls))) == DATA
        assert len(a.requests) == 1


async def test_a_first_url_that_never_answers_is_skipped_in_time() -> None:
    with black_hole_url() as black_hole:
        async with peers(DATA, honest) as [a], peer_client(connect_timeout=0.5) as client:
            assert await fetch(client, Peer("a", (black_hole, *a.urls)), timeout=60) == DATA


def answer_with_delays(*delays: float, drops: int | None = None) -> Script:
    """Answer each request after the next one of `delays`. Close the connection instead at the request number `drops`.

    Delays are measured as the client measures its timeouts, so that a machine that stands still delays neither side.
    """
    waits = iter(enumerate(delays))

    async def script(exchange: Exchange) -> None:
        index, delay = next(waits)
        with suppress(TimeoutError):
            async with Deadline(delay):
                await asyncio.Event().wait()
        if index == drops:
            exchange.close()
        else:
            await honest(exchange)

    return script


async def test_all_urls_share_one_timeout() -> None:
    with black_hole_url() as black_hole:
        async with peers(DATA, answer_with_delays(2.4)) as [a], peer_client() as client:
            with pytest.raises(PeerUnavailable) as caught:
                await fetch(client, Peer("a", (black_hole, *a.urls)), timeout=3)
            assert (caught.value.reason, len(a.requests)) == ("silent", 1)


async def test_the_remaining_time_is_for_the_next_url() -> None:
    async with peers(DATA, answer_with_delays(2.1)) as [a], peer_client() as client:
        assert await fetch(client, Peer("a", (refusing_url(), *a.urls)), timeout=3) == DATA


async def test_a_dropped_connection_does_not_restart_the_timeout() -> None:
    async with peers(DATA, answer_with_delays(0, 2.4, 2.4, drops=1)) as [a], peer_client() as client:
        assert await fetch(client, a.peer) == DATA
        with pytest.raises(PeerUnavailable) as caught:
            await fetch(client, a.peer, timeout=3)
        assert (caught.value.reason, len(a.requests), a.connections) == ("silent", 3, 2)


async def test_unreachable_urls_fail_in_time() -> None:
    with black_hole_url() as one, black_hole_url() as other:
        async with peer_client() as client:
            with pytest.raises(PeerUnavailable) as caught:
                await fetch(client, Peer("a", (one, other)), timeout=0.5)
            assert caught.value.reason == "unreachable"


async def test_the_url_that_worked_is_tried_first() -> None:
    turned_away = list[asyncio.StreamReader]()

    async def turn_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        turned_away.append(reader)

    async with stream_server(turn_away) as port, peers(DATA, honest) as [a], peer_client() as client:
        for _ in range(3):
            assert await fetch(client, Peer("a", (f"https://127.0.0.1:{port}", *a.urls))) == DATA
        assert len(turned_away) == 1


async def test_after_a_failure_the_other_url_is_used() -> None:
    first = ScriptedPeer("a", DATA, honest)
    async with peers(DATA, honest) as [second], peer_client() as client:
        async with listening(first):
            peer = Peer("a", (*first.urls, *second.urls))
            assert await fetch(client, peer) == DATA
            assert second.requests == []
        assert await fetch(client, peer) == DATA
        assert len(second.requests) == 1


async def test_ipv6() -> None:
    async with listening(ScriptedPeer("a", DATA, honest), "::1") as a, peer_client() as client:
        assert a.urls[0].startswith("http://[::1]:")
        assert await fetch(client, a.peer) == DATA


async def test_a_relay_uses_the_url_that_works() -> None:
    data = content(SMALL)
    async with listening(ScriptedPeer("a", data, honest), "::1") as a:
        peer = Peer("a", (refusing_url(), *a.urls))
        async with pulling([Holder(peer, complete=True)]) as host:
            assert (await host.get(Digest.of(data))).body == data


async def test_a_base_url_may_have_a_path() -> None:
    async with peers(DATA, honest) as [a], peer_client() as client:
        assert await fetch(client, Peer("a", (f"{a.urls[0]}/peili",))) == DATA
        assert a.requests[0].path == "/peili/x"


async def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, refusing_url())
    async with peers(DATA, honest) as [a], peer_client() as client:
        assert await fetch(client, a.peer) == DATA


async def test_a_redirect_is_returned_and_not_followed() -> None:
    async with peers(DATA, answers(307, location="/elsewhere")) as [a], peer_client() as client:
        assert (await client.head(a.peer, "/x", timeout=20)).status == 307
        assert len(a.requests) == 1


@pytest.mark.parametrize(
    ("script", "reason", "timeout"),
    [(silent, "silent", 0.3), (breaks_connections, "broken", 60), (no_http, "broken", 60)],
)
async def test_network_errors_become_peer_unavailable(script: Script, reason: str, timeout: float) -> None:
    async with peers(DATA, script) as [a], peer_client() as client:
        with pytest.raises(PeerUnavailable) as caught:
            await fetch(client, a.peer, timeout=timeout)
        assert caught.value.reason == reason
        assert "peer a" in str(caught.value)
        await until(lambda: a.open == 0)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1",
        "http://does-not-exist.invalid:80",
        "https://127.0.0.1:1",
        "http://xn--a.example:80",
    ],
)
async def test_malformed_hosts_are_unreachable(url: str) -> None:
    async with peer_client() as client:
        with pytest.raises(PeerUnavailable) as caught:
            await fetch(client, Peer("a", (url,)))
        assert caught.value.reason == "unreachable"


async def test_a_peer_without_tls_is_unreachable_by_https() -> None:
    async with peers(DATA, no_http) as [a], peer_client() as client:
        with pytest.raises(PeerUnavailable):
            await fetch(client, Peer("a", (a.urls[0].replace("http:", "https:"),)))


async def test_a_peer_without_a_url_is_unreachable() -> None:
    async with peer_client() as client:
        with pytest.raises(PeerUnavailable, match="has no URL"):
            await fetch(client, Peer("a", ()))


async def test_a_closed_client_raises() -> None:
    async with peers(DATA, honest) as [a], peer_client() as client:
        await client.aclose()
        with pytest.raises(PeerUnavailable, match="closed"):
            await fetch(client, a.peer)


async def test_a_cancelled_request_leaves_no_connection_open() -> None:
    async with peers(DATA, silent) as [a], peer_client() as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await fetch(client, a.peer)
        await until(lambda: a.open == 0)


async def test_the_last_contact_has_a_time_and_the_round_trip_of_a_head() -> None:
    async with peers(DATA, honest) as [a], peer_client() as client:
        peer, before = Peer("a", a.urls), time.time()
        assert client.contact(peer) is None
        await fetch(client, peer)
        contact = client.contact(peer)
        assert contact is not None
        assert contact.round_trip is None
        assert before <= contact.last_seen <= time.time()
        await client.head(peer, "/x", timeout=20)
        known = client.contact(peer)
        assert known is not None
        assert known.round_trip is not None
        assert 0 < known.round_trip < 20
        await fetch(client, peer)
        again = client.contact(peer)
        assert again is not None
        assert (again.round_trip, again.last_seen >= known.last_seen) == (known.round_trip, True)
        with pytest.raises(PeerUnavailable):
            await client.head(Peer("b", (refusing_url(),)), "/x", timeout=20)
        assert client.contact(Peer("b", ())) is None
