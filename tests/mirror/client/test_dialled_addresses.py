"""Only the kinds of addresses that a peer may have are dialled, whatever its URL says or its name resolves to."""

from __future__ import annotations

import socket
from contextlib import aclosing

import pytest
from tests.mirror.relay.peers import honest, peers
from tests.mirror.relay.pulling import SHORT

from peili.mirror import AddressKinds, Limits, Peer, PeerUnavailable
from peili.mirror.client.client import PeerClient

pytestmark = pytest.mark.anyio

ROUTED = AddressKinds.ROUTED


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
async def test_loopback_is_dialled_only_if_the_peer_may_have_it(host: str) -> None:
    async with peers(b"x", honest) as [a], aclosing(PeerClient(Limits(**SHORT))) as client:
        url = f"http://{host}:{a.urls[0].rpartition(':')[2]}"
        for dialled in (AddressKinds.ANY, ROUTED | AddressKinds.LOOPBACK):
            await client.head(Peer("a", (url,), dialled=dialled), "/v2/", timeout=20)
        asked = len(a.requests)
        with pytest.raises(PeerUnavailable, match="is not dialled, because it is not an address of another host"):
            await client.head(Peer("a", (url,), dialled=ROUTED), "/v2/", timeout=20)
        assert len(a.requests) == asked


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "0.0.0.0", "[::]", "169.254.7.7", "[fe80::1%251]", "[64:ff9b::a9fe:a9fe]"]
)
async def test_other_addresses_are_refused_before_a_packet_is_sent(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: object) -> None:
        raise AssertionError("a socket was made")

    async with aclosing(PeerClient(Limits(**SHORT))) as client:
        monkeypatch.setattr(socket, "socket", unexpected)
        with pytest.raises(PeerUnavailable, match="is not dialled"):
            await client.head(Peer("a", (f"http://{host}:80",), dialled=ROUTED), "/v2/", timeout=20)


async def test_a_name_is_checked_after_it_was_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a good and a bad address leads to the good one only."""
    found: list[tuple[int, str]] = []

    def resolve(host: str, port: int, **_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(socket.AF_INET, 1, 6, "", (each, port)) for each in ("169.254.169.254", "127.0.0.1")]

    async def connect(_: object, tcp_socket: object, address: tuple[str, int]) -> None:
        found.append((address[1], address[0]))
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr("asyncio.selector_events.BaseSelectorEventLoop.sock_connect", connect)
    peer = Peer("a", ("http://peer.example:5051",), dialled=AddressKinds.LOOPBACK)
    async with aclosing(PeerClient(Limits(**SHORT))) as client:
        with pytest.raises(PeerUnavailable):
            await client.head(peer, "/v2/", timeout=20)
    assert found == [(5051, "127.0.0.1")]
