"""The conformance kit for `MembershipRouter`, with real peers on loopback. It includes the kit for `Router`."""

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
from peili.mirror.testing.conformance import DEFAULT_TIMEOUT, Promises, check_promise, expect
from peili.mirror.testing.neighbours import Neighbour, neighbour
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
    """A membership router to be checked, and a way to change its members.

    Attributes:
        router: The router, not entered. The kit enters it more than once, as the host ``this-host``.
    """

    router: MembershipRouter

    @abstractmethod
    async def set(self, members: Sequence[Peer]) -> bool:
        """Replace all members with `members`. Returns False if the members can't change."""


MembershipFactory = Callable[[Sequence[Peer]], AbstractAsyncContextManager[MembershipSubject]]
"""Returns a context manager that creates a router with the given members, and cleans up on exit.

The ids and URLs of the members must be those of the given peers.
"""


async def check_membership_router(factory: MembershipFactory, *, within: float = DEFAULT_TIMEOUT) -> None:
    """Check every promise of `MembershipRouter` and of `Router`, each on a new router.

    Args:
        factory: Creates the router.
        within: Seconds in which each promise must be kept, by default 30. It includes the time that the router
            needs to notice a change.

    Raises:
        ConformanceError: A promise is broken; the first one that was found.
    """
    for promise, check in PROMISES:
        await check_promise(promise, check(factory), within)

    async with neighbour("one") as one, neighbour("two") as two:

        @asynccontextmanager
        async def with_neighbours() -> AsyncGenerator[RouterSubject]:
            async with factory([one.peer, two.peer]) as subject:
                yield _NeighbourSubject(subject.router, one)

        await check_router(with_neighbours, within=within)


class _NeighbourSubject(RouterSubject):
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


def _dead_peers(*ids: str) -> list[Peer]:
    """Return peers on a port where nothing listens."""
    return [Peer(each, (f"http://127.0.0.1:9/{each}",)) for each in ids]


def _ids(peers: Collection[Peer]) -> set[str]:
    return {peer.id for peer in peers}


@asynccontextmanager
async def _following(
    factory: MembershipFactory, peers: Sequence[Peer]
) -> AsyncGenerator[tuple[MembershipSubject, AsyncGenerator[Collection[Peer], None]]]:
    """Run a router with these members, and call its `members` once more."""
    async with factory(peers) as subject, running(subject.router), aclosing(subject.router.members()) as members:
        yield subject, members


async def _until(members: AsyncGenerator[Collection[Peer], None], ids: set[str]) -> None:
    """Take sets until one has exactly the members `ids`. This host may be in it, too."""
    async for peers in members:
        if _ids(peers) - {IDENTITY} == ids:
            return
    expect(False, "members ended")


async def _members(factory: MembershipFactory) -> None:
    async with factory(_dead_peers("one", "two")) as subject, running(subject.router):
        for _ in range(2):
            async with aclosing(subject.router.members()) as members:
                await _until(members, {"one", "two"})


async def _members_endless(factory: MembershipFactory) -> None:
    async with _following(factory, _dead_peers("one")) as (_, members):
        await _until(members, {"one"})
        next_set = asyncio.ensure_future(anext(members, None))
        done, _ = await asyncio.wait([next_set], timeout=0.2)
        next_set.cancel()
        await asyncio.wait([next_set])
        expect(not done or next_set.result() is not None, "it ended")


async def _members_change(factory: MembershipFactory) -> None:
    async with _following(factory, _dead_peers("one", "two")) as (subject, members):
        await _until(members, {"one", "two"})
        for names in ({"two", "three"}, {"two"}, {"one", "two"}):
            if not await subject.set(_dead_peers(*names)):
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


async def _this_host(factory: MembershipFactory) -> None:
    async with neighbour(IDENTITY) as this, neighbour("one") as one:
        key = fresh_key()
        this.hold(key, 10)
        one.hold(key, 10)
        for name in (IDENTITY, "this-host-with-another-name"):
            async with _running(factory, [Peer(name, this.peer.urls), one.peer]) as subject:
                await until_found(subject.router, key, {"one"})
                await _until_peers(subject.router, {"one"})


async def _dead(factory: MembershipFactory) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_peer = Peer("silent", (f"http://127.0.0.1:{silent.getsockname()[1]}",))
        async with neighbour("one") as one, _running(factory, [silent_peer, *_dead_peers("gone"), one.peer]) as subject:
            key = fresh_key()
            one.hold(key, 10)
            await until_found(subject.router, key, {"one"})
            await lookup(subject.router, fresh_key())
            await _until_peers(subject.router, {"one"})
            times: list[float] = []
            for _ in range(3):
                started = loop.time()
                await lookup(subject.router, fresh_key())
                times.append(loop.time() - started)
            fastest = min(times)  # the others may be slow because the machine is busy
            expect(fastest < 0.5, f"a lookup took {fastest:.1f} s with members known to be dead")


@asynccontextmanager
async def _running(factory: MembershipFactory, peers: Sequence[Peer]) -> AsyncGenerator[MembershipSubject]:
    async with factory(peers) as subject, running(subject.router):
        yield subject


async def _until_peers(router: MembershipRouter, ids: set[str]) -> None:
    """Wait until the peers are those in `ids`. A lookup asks each member: only its answer shows who it is."""
    while _ids(router.peers()) != ids:
        await lookup(router, fresh_key())
        await asyncio.sleep(0.02)


PROMISES: Promises = (
    ("members yields the whole set to each caller", _members),
    ("members has no end", _members_endless),
    ("members yields the whole set at each change", _members_change),
    ("content is found among the members as they change", _followed),
    ("this host is never a holder or a peer, even if the membership has it under another name", _this_host),
    ("a member that does not answer costs its timeout once, and then is not a peer", _dead),
)
