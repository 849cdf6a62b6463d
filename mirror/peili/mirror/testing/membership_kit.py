"""Checks what `MembershipRouter` promises, and by it what `Router` does, with real peers on loopback."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

from typing_extensions import override

from peili.mirror.membership.router import MembershipRouter
from peili.mirror.oci.references import Key
from peili.mirror.peer_api.peers import Peer
from peili.mirror.testing.neighbours import Neighbour, neighbour
from peili.mirror.testing.promises import IN_TIME, Promises, eventually, expect, keep
from peili.mirror.testing.router_kit import (
    IDENTITY,
    RouterSubject,
    check_router,
    fresh_key,
    lookup,
    running,
    until_found,
)


class MembershipSubject(ABC):
    """A membership router to be checked. `router` is not entered: the kit does that, as the host ``this-host``."""

    router: MembershipRouter

    @abstractmethod
    async def set(self, members: Sequence[Peer]) -> bool:
        """Make these the members, instead of those that the factory was given; False where they can't change."""


MembershipFactory = Callable[[Sequence[Peer]], AbstractAsyncContextManager[MembershipSubject]]
"""Gives a router whose members are the given peers, with their ids and URLs, and cleans up after it."""


async def check_membership_router(factory: MembershipFactory, *, within: float = IN_TIME) -> None:
    """Check every promise of `MembershipRouter` and of `Router`, each on a router of its own.

    Raises ConformanceError for the first that is broken. `within` bounds each in seconds, what the router needs to
    notice a change included.
    """
    for promise, check in PROMISES:
        await keep(promise, check(factory), within)

    async with neighbour("one") as one, neighbour("two") as two:

        @asynccontextmanager
        async def with_neighbours() -> AsyncGenerator[RouterSubject]:
            async with factory([one.peer, two.peer]) as subject:
                yield _Neighbourhood(subject.router, one)

        await check_router(with_neighbours, within=within)


class _Neighbourhood(RouterSubject):
    def __init__(self, router: MembershipRouter, holder: Neighbour) -> None:
        self.router = router
        self._holder = holder

    @override
    async def hold(self, key: Key) -> Peer:
        self._holder.hold(key, 10)
        return self._holder.peer

    @override
    async def drop(self, key: Key) -> None:
        self._holder.drop(key)


def _nowhere(*ids: str) -> list[Peer]:
    """Peers where nobody listens."""
    return [Peer(each, (f"http://127.0.0.1:9/{each}",)) for each in ids]


def _ids(peers: Collection[Peer]) -> set[str]:
    return {peer.id for peer in peers}


@asynccontextmanager
async def _telling(
    factory: MembershipFactory, peers: Sequence[Peer]
) -> AsyncGenerator[tuple[MembershipSubject, AsyncGenerator[Collection[Peer], None]]]:
    """A router with these members, running, and one more call of its `members`."""
    async with factory(peers) as subject, running(subject.router), aclosing(subject.router.members()) as members:
        yield subject, members


async def _until(members: AsyncGenerator[Collection[Peer], None], ids: set[str]) -> None:
    """Take sets until one has these and no others, but for this host, which may be among them."""
    async for peers in members:
        if _ids(peers) - {IDENTITY} == ids:
            return
    expect(False, "members ended")


async def _members(factory: MembershipFactory) -> None:
    async with factory(_nowhere("one", "two")) as subject, running(subject.router):
        for _ in range(2):
            async with aclosing(subject.router.members()) as members:
                await _until(members, {"one", "two"})


async def _members_endless(factory: MembershipFactory) -> None:
    async with _telling(factory, _nowhere("one")) as (_, members):
        await _until(members, {"one"})
        following = asyncio.ensure_future(anext(members, None))
        done, _ = await asyncio.wait([following], timeout=0.2)
        following.cancel()
        await asyncio.wait([following])
        expect(not done or following.result() is not None, "it ended")


async def _members_change(factory: MembershipFactory) -> None:
    async with _telling(factory, _nowhere("one", "two")) as (subject, members):
        await _until(members, {"one", "two"})
        for names in ({"two", "three"}, {"two"}, {"one", "two"}):
            if not await subject.set(_nowhere(*names)):
                return
            await _until(members, names)


async def _followed(factory: MembershipFactory) -> None:
    async with neighbour("one") as one, neighbour("two") as two, _running(factory, [one.peer]) as subject:
        router, key = subject.router, fresh_key()
        one.hold(key, 10)
        two.hold(key, 10)
        await until_found(router, key, {"one"})
        if not await subject.set([two.peer]):
            return
        await until_found(router, key, {"two"})
        await _until_peers(router, {"two"})


async def _itself(factory: MembershipFactory) -> None:
    async with neighbour(IDENTITY) as this, neighbour("one") as one:
        key = fresh_key()
        this.hold(key, 10)
        one.hold(key, 10)
        for name in (IDENTITY, "this-host-by-another-name"):
            async with _running(factory, [Peer(name, this.peer.urls), one.peer]) as subject:
                await until_found(subject.router, key, {"one"})
                await _until_peers(subject.router, {"one"})


async def _dead(factory: MembershipFactory) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = Peer("mute", (f"http://127.0.0.1:{silent.getsockname()[1]}",))
        async with neighbour("one") as one, _running(factory, [mute, *_nowhere("gone"), one.peer]) as subject:
            key = fresh_key()
            one.hold(key, 10)
            await until_found(subject.router, key, {"one"})
            await lookup(subject.router, fresh_key())
            await _until_peers(subject.router, {"one"})
            times: list[float] = []
            for _ in range(3):
                began = loop.time()
                await lookup(subject.router, fresh_key())
                times.append(loop.time() - began)
            took = min(times)  # the others show what else the machine does
            expect(took < 0.5, f"a lookup took {took:.1f} s with members known to be dead")


@asynccontextmanager
async def _running(factory: MembershipFactory, peers: Sequence[Peer]) -> AsyncGenerator[MembershipSubject]:
    async with factory(peers) as subject, running(subject.router):
        yield subject


async def _until_peers(router: MembershipRouter, ids: set[str]) -> None:
    await eventually(lambda: _ids(router.peers()) == ids)


PROMISES: Promises = (
    ("members gives the whole set, to each caller", _members),
    ("members has no end", _members_endless),
    ("members gives the whole set at each change", _members_change),
    ("content is found among the members as they change", _followed),
    ("this host, under whatever name it is a member, is never a holder or a peer", _itself),
    ("members that do not answer cost a bounded time once, and are no peers then", _dead),
)
