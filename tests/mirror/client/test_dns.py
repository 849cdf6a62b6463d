"""Peers whose URLs have host names, while the lookup of names hangs."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from typing import Any

import pytest
from tests.mirror.client.test_client import DATA, fetch, peer_client
from tests.mirror.relay.peers import honest, peers
from tests.support.waiting import until

from peili.mirror import Limits, Peer, PeerUnavailable
from peili.mirror.client.client import PeerClient

pytestmark = pytest.mark.anyio


class NameServer:
    """Resolves every name of ``.example`` to this host, as soon as `answers` is set."""

    def __init__(self) -> None:
        self.lookups: list[str] = []
        self.answers = threading.Event()

    def look_up(self, host: str, *rest: Any, **options: Any) -> Any:
        if not host.endswith(".example"):
            return GETADDRINFO(host, *rest, **options)
        self.lookups.append(host)
        self.answers.wait(600)
        return GETADDRINFO("127.0.0.1", *rest, **options)


GETADDRINFO = socket.getaddrinfo
_HANGS = 300
_ENDS_WHILE_LOOKING_UP = f"""
import asyncio, socket, threading, time
from peili.mirror.client.dns import AddressResolver

looking = threading.Event()

def hangs(*_, **__):
    looking.set()
    time.sleep({_HANGS})

async def main():
    socket.getaddrinfo = hangs
    names = AddressResolver()
    waiting = asyncio.create_task(names.addresses("n.example", 80))
    await asyncio.to_thread(looking.wait)
    names.close()
    await asyncio.wait([waiting])

asyncio.run(main())
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.look_up)
    yield server
    server.answers.set()


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("peili name")]


def with_name(peer: Peer, name: str) -> Peer:
    """Return `peer` with a host name instead of its address."""
    return Peer(name, tuple(url.replace("127.0.0.1", f"{name}.example") for url in peer.urls))


async def test_hanging_lookups_do_not_block_other_work(server: NameServer) -> None:
    async with peers(DATA, honest) as [a], peer_client() as client:
        hanging = [fetch(client, with_name(a.peer, f"n{number}"), timeout=0.3) for number in range(40)]
        failed = await asyncio.gather(*hanging, return_exceptions=True)
        assert {type(each) for each in failed} == {PeerUnavailable}
        async with asyncio.timeout(60):
            assert await asyncio.to_thread(lambda: "other work") == "other work"
            assert await fetch(client, a.peer) == DATA


async def test_concurrent_requests_share_one_lookup(server: NameServer) -> None:
    async with peers(DATA, honest) as [a], peer_client() as client:
        waiting = [asyncio.create_task(fetch(client, with_name(a.peer, "n"))) for _ in range(3)]
        await until(lambda: server.lookups)
        waiting[0].cancel()
        server.answers.set()
        assert await asyncio.gather(*waiting[1:]) == [DATA] * 2
        assert server.lookups == ["n.example"]


async def test_an_abandoned_lookup_serves_the_next_request(server: NameServer) -> None:
    async with peers(DATA, honest) as [a], peer_client() as client:
        with pytest.raises(PeerUnavailable):
            await fetch(client, with_name(a.peer, "n"), timeout=0.3)
        again = asyncio.create_task(fetch(client, with_name(a.peer, "n")))
        await asyncio.sleep(0)
        server.answers.set()
        assert await again == DATA
        assert server.lookups == ["n.example"]


async def test_closing_does_not_wait_for_lookups(server: NameServer) -> None:
    client = PeerClient(Limits(connect_timeout=600))
    async with peers(DATA, honest) as [a]:
        asking = [client.head(with_name(a.peer, f"n{number}"), "/x", timeout=600) for number in range(20)]
        waiting = asyncio.gather(*asking, return_exceptions=True)
        await until(lambda: len(server.lookups) > 1)
        async with asyncio.timeout(60):  # less than the name server takes
            await client.aclose()
            assert {type(each) for each in await waiting} == {PeerUnavailable}
        with pytest.raises(PeerUnavailable, match="closed"):
            await client.head(with_name(a.peer, "m"), "/x", timeout=1)
    server.answers.set()
    await until(lambda: not threads())


async def test_a_lookup_leaves_no_thread(server: NameServer) -> None:
    async with peers(DATA, honest) as [a], peer_client() as client:
        waiting = asyncio.create_task(fetch(client, with_name(a.peer, "n")))
        await until(threads)
        server.answers.set()
        assert await waiting == DATA
        await until(lambda: not threads())


def test_a_process_exits_during_a_hanging_lookup() -> None:
    subprocess.run([sys.executable, "-c", _ENDS_WHILE_LOOKING_UP], check=True, timeout=60)  # it hangs for longer


async def test_an_unknown_name_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with peer_client() as client:
        with pytest.raises(PeerUnavailable, match="Name or service not known") as caught:
            await client.head(Peer("a", ("http://nobody.example:80",)), "/x", timeout=1)
        assert caught.value.reason == "unreachable"
