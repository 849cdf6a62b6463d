"""Peers whose URLs have names, while the look-up of names hangs."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from typing import Any

import pytest
from tests.mirror.client.test_client import DATA, client, fetch
from tests.mirror.relay.peers import honest, peers
from tests.mirror.relay.pulling import until

from peili.mirror import Limits, Peer, PeerUnavailable
from peili.mirror.client.client import PeerClient

pytestmark = pytest.mark.anyio


class NameServer:
    """Knows that every name of ``.example`` is this host, and says so once it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()

    def look_up(self, host: str, *rest: Any, **options: Any) -> Any:
        if not host.endswith(".example"):
            return GETADDRINFO(host, *rest, **options)
        self.asked.append(host)
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


def named(peer: Peer, name: str) -> Peer:
    """`peer` by a name, instead of its address."""
    return Peer(name, tuple(url.replace("127.0.0.1", f"{name}.example") for url in peer.urls))


async def test_look_ups_that_hang_leave_threads_to_others(server: NameServer) -> None:
    async with peers(DATA, honest) as [a], client() as speaking:
        hanging = [fetch(speaking, named(a.peer, f"n{number}"), timeout=0.3) for number in range(40)]
        failed = await asyncio.gather(*hanging, return_exceptions=True)
        assert {type(each) for each in failed} == {PeerUnavailable}
        async with asyncio.timeout(60):
            assert await asyncio.to_thread(lambda: "the host's own work") == "the host's own work"
            assert await fetch(speaking, a.peer) == DATA


async def test_a_name_is_looked_up_once_for_all_who_wait(server: NameServer) -> None:
    async with peers(DATA, honest) as [a], client() as speaking:
        waiting = [asyncio.create_task(fetch(speaking, named(a.peer, "n"))) for _ in range(3)]
        await until(lambda: server.asked)
        waiting[0].cancel()
        server.answers.set()
        assert await asyncio.gather(*waiting[1:]) == [DATA] * 2
        assert server.asked == ["n.example"]


async def test_a_look_up_that_was_given_up_serves_who_asks_next(server: NameServer) -> None:
    async with peers(DATA, honest) as [a], client() as speaking:
        with pytest.raises(PeerUnavailable):
            await fetch(speaking, named(a.peer, "n"), timeout=0.3)
        again = asyncio.create_task(fetch(speaking, named(a.peer, "n")))
        await asyncio.sleep(0)
        server.answers.set()
        assert await again == DATA
        assert server.asked == ["n.example"]


async def test_closing_waits_for_no_look_up(server: NameServer) -> None:
    speaking = PeerClient(Limits(connect_timeout=600))
    async with peers(DATA, honest) as [a]:
        asking = [speaking.head(named(a.peer, f"n{number}"), "/x", timeout=600) for number in range(20)]
        waiting = asyncio.gather(*asking, return_exceptions=True)
        await until(lambda: len(server.asked) > 1)
        async with asyncio.timeout(60):  # less than the name server takes
            await speaking.aclose()
            assert {type(each) for each in await waiting} == {PeerUnavailable}
        with pytest.raises(PeerUnavailable, match="closed"):
            await speaking.head(named(a.peer, "m"), "/x", timeout=1)
    server.answers.set()
    await until(lambda: not threads())


async def test_a_look_up_leaves_no_thread(server: NameServer) -> None:
    async with peers(DATA, honest) as [a], client() as speaking:
        waiting = asyncio.create_task(fetch(speaking, named(a.peer, "n")))
        await until(threads)
        server.answers.set()
        assert await waiting == DATA
        await until(lambda: not threads())


def test_a_process_does_not_wait_for_a_look_up_that_hangs_when_it_ends() -> None:
    subprocess.run([sys.executable, "-c", _ENDS_WHILE_LOOKING_UP], check=True, timeout=60)  # it hangs for longer


async def test_a_name_that_nobody_has_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with client() as speaking:
        with pytest.raises(PeerUnavailable, match="Name or service not known") as caught:
            await speaking.head(Peer("a", ("http://nobody.example:80",)), "/x", timeout=1)
        assert caught.value.reason == "unreachable"
