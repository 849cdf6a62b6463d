"""Routers and resolvers that each break one promise, with the start of the promise that the kit must name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from uuid import uuid4

from starlette.routing import BaseRoute
from tests.conformance import broken_plugins
from typing_extensions import override

from peili.mirror import (
    Context,
    Descriptor,
    Feed,
    Have,
    Holder,
    Key,
    Lease,
    NotFound,
    Peer,
    PushRouter,
    Reference,
    Resolver,
    StoreEvent,
    Upstream,
    Wait,
    Want,
)
from peili.mirror.testing.router_kit import IDENTITY
from peili.routers.memory import MemoryRouter

SELF = Peer(IDENTITY, ("http://127.0.0.1:9",))


class EntersOnce(broken_plugins.EntersOnce, MemoryRouter):
    pass


class StaysEntered(broken_plugins.StaysEntered, MemoryRouter):
    pass


class EndedBySecondEntry(MemoryRouter):
    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        self._identity = None  # so that a second entry is accepted
        async with super().run(replace(context, identity=f"{context.identity}-{uuid4()}")):
            yield


class SlowReady(broken_plugins.SlowReady, MemoryRouter):
    pass


class PeersRaises(MemoryRouter):
    @override
    def peers(self) -> Collection[Peer]:
        self._check_running()
        return super().peers()


class DigestsOnly(MemoryRouter):
    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        if not isinstance(key, Reference):
            async for holder in super().lookup(key):
                yield holder


class NeverEnds(MemoryRouter):
    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        found = False
        async for holder in super().lookup(key):
            found = True
            yield holder
        if not found:
            await asyncio.Event().wait()


class NeverForgets(MemoryRouter):
    _seen: dict[Key, Holder]

    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        self._seen = getattr(self, "_seen", {})
        async for holder in super().lookup(key):
            self._seen[key] = holder
        if key in self._seen:
            yield self._seen[key]


class FindsItself(MemoryRouter):
    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        async for holder in super().lookup(key):
            yield holder
        if key in self.network.holdings.get(IDENTITY, {}):
            yield Holder(SELF, complete=True)


class RaisesWhenClosed(MemoryRouter):
    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        try:
            async for holder in super().lookup(key):
                yield holder
        except GeneratorExit:
            raise RuntimeError("closed too early") from None


class ReturnsFailedHolders(MemoryRouter):
    @override
    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        return await super().acquire(replace(want, failed={}))


class FeedsWithoutHolders(MemoryRouter):
    @override
    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        advice = await super().acquire(want)
        return Feed(()) if isinstance(advice, Upstream) else advice


class RaisesForUnknownKeys(MemoryRouter):
    @override
    async def withdraw(self, keys: Collection[Key]) -> None:
        holdings = self.network.holdings[self._check_running()]
        for key in keys:
            del holdings[key]


class AdvertisesNothing(MemoryRouter):
    @override
    async def advertise(self, have: Collection[StoreEvent]) -> None:
        pass


class TakesAllForComplete(MemoryRouter):
    @override
    async def advertise(self, have: Collection[StoreEvent]) -> None:
        await super().advertise([replace(event, complete=True) for event in have if isinstance(event, Have)])


class ReturnsNamesAsPeers(MemoryRouter):
    @override
    def peers(self) -> Collection[Peer]:
        names: Collection[object] = ["other"] if self._identity else []
        return names  # type: ignore[return-value]  # pyright: ignore[reportReturnType] - broken on purpose


class OneAtATime(MemoryRouter):
    _busy = False

    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        if self._busy:
            return
        self._busy = True
        try:
            await asyncio.sleep(0)
            async for holder in super().lookup(key):
                yield holder
        finally:
            self._busy = False


class SwallowsCancellation(MemoryRouter):
    @override
    async def withdraw(self, keys: Collection[Key]) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        await super().withdraw(keys)


class RoutesOnlyWhenEntered(MemoryRouter):
    @override
    def routes(self) -> Sequence[BaseRoute]:
        self._check_running()
        return ()


class FeedsAnyoneInFlight(MemoryRouter):
    @override
    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        return await super().acquire(replace(want, accepts_in_flight=True))


class FeedsNobodyInFlight(MemoryRouter):
    @override
    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        return await super().acquire(replace(want, accepts_in_flight=False))


class _LeaseOfOneUse(Lease):
    def __init__(self) -> None:
        self._used = False

    @override
    def use(self, holder: Holder) -> None:
        assert not self._used
        self._used = True


class BreaksInUse(MemoryRouter):
    @override
    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        advice = await super().acquire(want)
        return Feed(advice.holders, _LeaseOfOneUse()) if isinstance(advice, Feed) else advice


BROKEN_ROUTERS: dict[type[MemoryRouter], str] = {
    EntersOnce: "a router can be entered, exited and entered again",
    SlowReady: "ready returns true or false",
    StaysEntered: "entering and exiting can be cancelled",
    EndedBySecondEntry: "a second entry at the same time",
    PeersRaises: "a router that is not entered",
    DigestsOnly: "lookup finds the holders",
    NeverEnds: "lookup of a key that no host has ends",
    NeverForgets: "lookup does not find a host that no longer",
    FindsItself: "this host is never a holder or a peer",
    RaisesWhenClosed: "lookup may be closed before its end",
    ReturnsFailedHolders: "acquire returns the holders, without those that failed",
    FeedsAnyoneInFlight: "acquire returns a holder in flight to a host that accepts it, and to no other",
    FeedsNobodyInFlight: "acquire returns a holder in flight",
    BreaksInUse: "each lease takes use",
    FeedsWithoutHolders: "acquire of a key that no host has returns Upstream",
    RaisesForUnknownKeys: "advertise and withdraw may be repeated",
    ReturnsNamesAsPeers: "peers returns peers",
    AdvertisesNothing: "advertised keys are known to others",
    TakesAllForComplete: "content that is advertised as not complete",
    OneAtATime: "every method may be called concurrently",
    SwallowsCancellation: "every method can be cancelled",
    RoutesOnlyWhenEntered: "routes returns routes",
}


class ForgetsOne(PushRouter):
    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        async for peers in super().members():
            yield list(peers)[1:]


class MembersEnd(PushRouter):
    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        async for peers in super().members():
            yield peers
            return


class YieldsOnlyNewMembers(PushRouter):
    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        seen: set[str] = set()
        async for peers in super().members():
            yield [peer for peer in peers if peer.id not in seen]
            seen |= {peer.id for peer in peers}


class IsItsOwnPeer(PushRouter):
    @override
    def peers(self) -> Collection[Peer]:
        return [*super().peers(), SELF]


class KeepsTheDead(PushRouter):
    @override
    def peers(self) -> Collection[Peer]:
        return self._pushed or ()


class AsksTheDeadAgain(PushRouter):
    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        async for holder in super().lookup(key):
            yield holder
        if len(self._pushed or ()) > len(self.peers()):
            await asyncio.sleep(0.6)


BROKEN_MEMBERSHIP: dict[type[PushRouter], str] = {
    ForgetsOne: "members yields the whole set to each caller",
    MembersEnd: "members has no end",
    YieldsOnlyNewMembers: "members yields the whole set at each change",
    IsItsOwnPeer: "content is found among the members as they change",
    KeepsTheDead: "this host is never a holder or a peer, even if",
    AsksTheDeadAgain: "a member that does not answer costs its timeout once",
}


class TableResolver(Resolver):
    """A resolver with a table. It breaks no promise."""

    def __init__(self) -> None:
        self.table: dict[Reference, Descriptor] = {}

    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        await asyncio.sleep(0)
        return self.table.get(reference)


class RaisesNotFound(TableResolver):
    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        if reference not in self.table:
            raise NotFound(str(reference))
        return self.table[reference]


class WrongSize(TableResolver):
    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        found = await super().resolve(reference)
        return found and replace(found, size=found.size + 1)


class ListsNoTags(TableResolver):
    @override
    async def tags(self, registry: str, repository: str, stored: Collection[str]) -> Collection[str]:
        return ()


class ResolvesOneAtATime(TableResolver):
    _busy = False

    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        if self._busy:
            return None
        self._busy = True
        try:
            return await super().resolve(reference)
        finally:
            self._busy = False


class ResolvesWhenCancelled(TableResolver):
    @override
    async def resolve(self, reference: Reference) -> Descriptor | None:
        try:
            return await super().resolve(reference)
        except asyncio.CancelledError:
            return None


class ResolverEntersOnce(broken_plugins.EntersOnce, TableResolver):
    pass


class ResolverStaysEntered(broken_plugins.StaysEntered, TableResolver):
    pass


class ResolverForgetsTheFirst(broken_plugins.ForgetsTheFirst, TableResolver):
    pass


class ResolverSlowReady(broken_plugins.SlowReady, TableResolver):
    pass


BROKEN_RESOLVERS: dict[type[TableResolver], str] = {
    ResolverEntersOnce: "a resolver can be entered, exited and entered again",
    ResolverSlowReady: "ready returns true or false",
    ResolverStaysEntered: "entering and exiting can be cancelled",
    ResolverForgetsTheFirst: "a second entry at the same time",
    RaisesNotFound: "an unknown reference returns None",
    WrongSize: "a known reference returns its descriptor",
    ListsNoTags: "tags are those that resolve answers",
    ResolvesOneAtATime: "resolve may be called concurrently",
    ResolvesWhenCancelled: "resolve can be cancelled",
}

__all__ = ["BROKEN_MEMBERSHIP", "BROKEN_RESOLVERS", "BROKEN_ROUTERS", "TableResolver"]
