"""The subjects of the conformance kits for the built-in routers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.routers.talos_output import member, printed
from tests.support.name_server import NameServer, name_server
from typing_extensions import override
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from peili.mirror import AddressKinds, Have, Key, MembershipRouter, Peer, PushRouter
from peili.mirror.testing import MembershipSubject, RouterSubject
from peili.mirror.testing.router_kit import IDENTITY
from peili.routers.dns import DnsRouter
from peili.routers.file import FileRouter
from peili.routers.mdns import MdnsRouter
from peili.routers.mdns.service import to_service
from peili.routers.memory import MemoryNetwork, MemoryRouter
from peili.routers.static import StaticRouter
from peili.routers.talos import TalosRouter


class StaticSubject(MembershipSubject):
    """A router whose members can't change."""

    def __init__(self, router: MembershipRouter) -> None:
        self.router = router

    @override
    async def set(self, members: Sequence[Peer]) -> bool:
        return False


class PushSubject(MembershipSubject):
    def __init__(self, router: PushRouter) -> None:
        self.router = self._pushed = router

    @override
    async def set(self, members: Sequence[Peer]) -> bool:
        self._pushed.set(members)
        return True


class RelocatedTalos(TalosRouter):
    """A Talos router with the URLs of the kit: Talos's members all have the same port, and none is on loopback."""

    urls: Mapping[str, tuple[str, ...]] = {}

    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        async with aclosing(super().members()) as sets:
            async for peers in sets:
                yield [replace(peer, urls=self.urls[peer.id], dialled=AddressKinds.ANY) for peer in peers]


class TalosSubject(MembershipSubject):
    """A file with the output of ``talosctl get members -o json``, replaced at each change."""

    def __init__(self, file: Path) -> None:
        self.router = self._talos = RelocatedTalos.from_config({"file": str(file), "interval": 0.05})
        self._file = file

    @override
    async def set(self, members: Sequence[Peer]) -> bool:
        self._talos.urls = {**self._talos.urls, **{peer.id: peer.urls for peer in members}}
        new = self._file.with_suffix(".new")
        new.write_text(printed([member(peer.id, f"10.0.0.{number}") for number, peer in enumerate(members, 1)]))
        new.replace(self._file)
        return True


class RelocatedDns(DnsRouter):
    """A DNS router with the kit's URLs, which have their own paths. The ids of the kit are the names of targets."""

    urls: Mapping[str, tuple[str, ...]] = {}

    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        async with aclosing(super().members()) as sets:
            async for peers in sets:
                names = [peer.id.partition(".")[0] for peer in peers]
                yield [Peer(name, self.urls[name]) for name in names]


class DnsSubject(MembershipSubject):
    """SRV records of a real server, replaced at each change."""

    def __init__(self, server: NameServer) -> None:
        options = {"srv": "_peili._tcp.test", "servers": server.servers, "min_ttl": 0.1}
        self.router = self._dns = RelocatedDns.from_config(options)
        self._server = server

    @override
    async def set(self, members: Sequence[Peer]) -> bool:
        self._dns.urls = {**self._dns.urls, **{peer.id: peer.urls for peer in members}}
        records = [f"_peili._tcp SRV 0 0 5051 {peer.id}" for peer in members]
        await self._server.set(*records, *(f"{peer.id} A 10.0.0.{n}" for n, peer in enumerate(members, 1)))
        return True


class FileSubject(MembershipSubject):
    """A file with JSON, replaced at each change."""

    def __init__(self, file: Path) -> None:
        self.router = FileRouter(file, interval=0.05)
        self._file = file

    @override
    async def set(self, members: Sequence[Peer]) -> bool:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps([{"id": peer.id, "urls": peer.urls} for peer in members]))
        new.replace(self._file)
        return True


class MemorySubject(RouterSubject):
    """A memory router, and one other host in its network."""

    def __init__(self, kind: type[MemoryRouter] = MemoryRouter) -> None:
        self._network = MemoryNetwork()
        self._other = Peer("other", ("http://127.0.0.1:9",))
        self._network.hosts["other"] = self._other
        self._network.holdings["other"] = {}
        self.router = kind(self._network)

    @override
    async def hold(self, key: Key) -> Peer:
        self._network.holdings["other"][key] = Have(key, 10)
        return self._other

    @override
    async def drop(self, key: Key) -> None:
        del self._network.holdings["other"][key]

    @override
    async def receive(self, key: Key) -> Peer:
        self._network.holdings["other"][key] = Have(key, 10, complete=False, available=3)
        return self._other

    @override
    async def seen(self, key: Key) -> bool | None:
        have = self._network.holdings[IDENTITY].get(key)
        return have is not None and have.complete


class MdnsSubject(MembershipSubject):
    """A router on loopback, and a responder that announces the other hosts there."""

    def __init__(self, zeroconf: AsyncZeroconf) -> None:
        self.router = MdnsRouter(interfaces=["127.0.0.1"])
        self._zeroconf = zeroconf
        self._announced: dict[str, AsyncServiceInfo] = {}
        self._announcing: list[asyncio.Future[None]] = []

    @override
    async def set(self, members: Sequence[Peer]) -> bool:
        wanted = {member.id: to_service(member, {}, ()) for member in members}
        for name in self._announced.keys() - wanted.keys():
            await (await self._zeroconf.async_unregister_service(self._announced.pop(name)))  # pyright: ignore[reportUnknownMemberType] - zeroconf does not state the type of its Awaitable
        for name in wanted.keys() - self._announced.keys():
            self._announced[name] = wanted[name]
            # In a task, because zeroconf repeats the announcement for most of a second.
            self._announcing.append(asyncio.ensure_future(self._announce(wanted[name])))
        return True

    async def _announce(self, info: AsyncServiceInfo) -> None:
        # Cooperating: the names are unique, so zeroconf need not probe them, which takes most of a second.
        await (await self._zeroconf.async_register_service(info, cooperating_responders=True))  # pyright: ignore[reportUnknownMemberType] - zeroconf does not state the type of its Awaitable

    async def aclose(self) -> None:
        for each in self._announcing:
            each.cancel()
        await asyncio.gather(*self._announcing, return_exceptions=True)
        await self._zeroconf.async_close()


@asynccontextmanager
async def mdns_router(members: Sequence[Peer]) -> AsyncGenerator[MembershipSubject]:
    """Run an mDNS router. The caller makes sure that nothing else on this machine uses the service type."""
    subject = MdnsSubject(AsyncZeroconf(interfaces=["127.0.0.1"]))
    try:
        await subject.set(members)
        yield subject
    finally:
        await subject.aclose()


@asynccontextmanager
async def static_router(members: Sequence[Peer]) -> AsyncGenerator[MembershipSubject]:
    yield StaticSubject(StaticRouter(members))


@asynccontextmanager
async def push_router(members: Sequence[Peer]) -> AsyncGenerator[MembershipSubject]:
    router = PushRouter()
    router.set(members)
    yield PushSubject(router)


@asynccontextmanager
async def talos_router(members: Sequence[Peer]) -> AsyncGenerator[MembershipSubject]:
    with TemporaryDirectory() as directory:
        subject = TalosSubject(Path(directory) / "members.json")
        await subject.set(members)
        yield subject


@asynccontextmanager
async def dns_router(members: Sequence[Peer]) -> AsyncGenerator[MembershipSubject]:
    async with name_server() as server:
        subject = DnsSubject(server)
        await subject.set(members)
        yield subject


@asynccontextmanager
async def file_router(members: Sequence[Peer]) -> AsyncGenerator[MembershipSubject]:
    with TemporaryDirectory() as directory:
        subject = FileSubject(Path(directory) / "peers.json")
        await subject.set(members)
        yield subject


@asynccontextmanager
async def memory_router() -> AsyncGenerator[RouterSubject]:
    yield MemorySubject()
