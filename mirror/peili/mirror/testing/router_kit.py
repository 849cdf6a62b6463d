"""Checks what `Router` promises. What only `MembershipRouter` does is membership_kit's matter."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress

from starlette.routing import BaseRoute

from peili.mirror.errors import FailureReason, RouterUnavailable
from peili.mirror.oci.references import Digest, Key, Reference
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.plugins.advice import Feed, LeaseEnd, Upstream, Wait, Want
from peili.mirror.plugins.content import Gone, Have, Synced
from peili.mirror.plugins.interfaces import Router
from peili.mirror.support.deadlines import Deadline
from peili.mirror.testing import plugin_kit
from peili.mirror.testing.contexts import context_for
from peili.mirror.testing.promises import (
    IN_TIME,
    Promises,
    eventually,
    expect,
    expect_cancellable,
    expect_cheap,
    expect_type,
    fresh_bytes,
    keep,
)

IDENTITY = "this-host"
"""The id that routers under test are entered with."""

_QUICK = 3.0  # seconds that one bounded step may take: more than the default `Limits.lookup_timeout`, twice


class RouterSubject(ABC):
    """A router to be checked, and its author's hands on the other hosts. `router` is not entered: the kit does that,
    as the host ``this-host``, more than once.
    """

    router: Router

    @abstractmethod
    async def hold(self, key: Key) -> Peer:
        """Another host has `key` whole from now on; which one. Called only while the router is entered."""

    @abstractmethod
    async def drop(self, key: Key) -> None:
        """No other host has `key` any longer."""

    async def seen(self, key: Key) -> bool | None:
        """Whether other hosts know that this host has `key`; None where routers of this kind do not tell each other."""
        return None


RouterFactory = Callable[[], AbstractAsyncContextManager[RouterSubject]]
"""Gives a router with other hosts of its own at each call, and cleans up after it."""


async def check_router(factory: RouterFactory, *, within: float = IN_TIME) -> None:
    """Check every promise of `Router`, each on a router of its own. Raises ConformanceError for the first broken one.

    `within` bounds each in seconds, what the router needs to notice a change included.
    """
    for promise, check in PROMISES:
        async with factory() as subject:
            await keep(promise, check(subject), within)


@asynccontextmanager
async def _entered(router: Router) -> AsyncGenerator[None]:
    own = Peer(IDENTITY, ("http://127.0.0.1:9",))
    async with context_for(router, identity=IDENTITY, peer=own) as context, router.run(context):
        yield


@asynccontextmanager
async def running(router: Router) -> AsyncGenerator[None]:
    """`router` entered as ``this-host``, and ready."""
    async with _entered(router):
        await eventually(router.ready)
        yield


def fresh_key() -> Digest:
    """A key that nobody has."""
    return Digest.of(fresh_bytes(16))


async def lookup(router: Router, key: Key) -> list[Holder]:
    """All holders that one lookup finds, in bounded time."""
    async with Deadline(_QUICK), aclosing(router.lookup(key)) as found:
        return [holder async for holder in found]


async def until_found(router: Router, key: Key, ids: Collection[str]) -> None:
    """Look `key` up until exactly these are found."""
    while {holder.peer.id for holder in await lookup(router, key)} != set(ids):  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.02)


async def _enter(subject: RouterSubject) -> None:
    for _ in range(2):
        async with running(subject.router):
            key = fresh_key()
            await until_found(subject.router, key, {(await subject.hold(key)).id})


async def _not_entered(subject: RouterSubject) -> None:
    router = subject.router
    for _ in range(2):
        router.peers()
        with suppress(RouterUnavailable):
            expect(await lookup(router, fresh_key()) == [], "somebody was found")
        async with running(router):
            pass


async def _lookup(subject: RouterSubject) -> None:
    async with running(subject.router):
        for key in (fresh_key(), Reference("registry.example", "conformance/demo", fresh_bytes(4).hex())):
            peer = await subject.hold(key)
            await until_found(subject.router, key, {peer.id})
            for holder in await lookup(subject.router, key):
                expect(holder.peer.urls == peer.urls, f"its urls are {peer.urls}, not {holder.peer.urls}")
                expect(holder.complete, "it was told as if it had not all of it")


async def _lookup_nobody(subject: RouterSubject) -> None:
    async with running(subject.router):
        await subject.hold(fresh_key())
        expect(await lookup(subject.router, fresh_key()) == [], "somebody was found")


async def _lookup_dropped(subject: RouterSubject) -> None:
    async with running(subject.router):
        key = fresh_key()
        await until_found(subject.router, key, {(await subject.hold(key)).id})
        await subject.drop(key)
        await until_found(subject.router, key, ())


async def _never_itself(subject: RouterSubject) -> None:
    async with running(subject.router):
        own, shared = fresh_key(), fresh_key()
        await subject.router.advertise([Have(own, 10), Have(shared, 10)])
        peer = await subject.hold(shared)
        await until_found(subject.router, shared, {peer.id})
        expect(await lookup(subject.router, own) == [], "what only this host has was found")
        expect(IDENTITY not in {each.id for each in subject.router.peers()}, "it is among peers()")


async def _lookup_closed(subject: RouterSubject) -> None:
    async with running(subject.router):
        key = fresh_key()
        peer = await subject.hold(key)
        await until_found(subject.router, key, {peer.id})
        for _ in range(3):
            found = subject.router.lookup(key)
            await anext(found)
            await found.aclose()
        await until_found(subject.router, key, {peer.id})


async def _acquire(subject: RouterSubject) -> None:
    async with running(subject.router):
        key = fresh_key()
        peer = await subject.hold(key)
        await until_found(subject.router, key, {peer.id})
        for _ in range(2):
            advice = await _advice(subject.router, Want(key))
            if not isinstance(advice, Feed):
                continue
            ids = {holder.peer.id for holder in advice.holders}
            expect(ids == {peer.id}, f"it gave {ids}, where {peer.id} has it")
        advice = await _advice(subject.router, Want(key, failed={peer.id: FailureReason.BROKEN}))
        left = {holder.peer.id for holder in advice.holders} if isinstance(advice, Feed) else set[str]()
        expect(peer.id not in left, f"{peer.id} had failed, and was given again")


async def _acquire_nobody(subject: RouterSubject) -> None:
    async with running(subject.router):
        advice = await _advice(subject.router, Want(fresh_key()))
        expect(not isinstance(advice, Feed), f"it gave {advice!r}")


async def _advice(router: Router, want: Want) -> Feed | Wait | Upstream:
    """What `acquire` says, its lease used as a mirror does."""
    async with Deadline(_QUICK):
        advice = await router.acquire(want)
    expect_type(advice, Feed, Wait, Upstream)
    if isinstance(advice, Feed):
        expect(advice.holders, "acquire gave a Feed of nobody")
    if isinstance(advice, Wait):
        expect(advice.until < asyncio.get_running_loop().time() + 60, f"acquire says to wait until {advice.until}")
    else:
        advice.lease.progress(1)
        await advice.lease.release(LeaseEnd.DONE)
    return advice


async def _advertise(subject: RouterSubject) -> None:
    router, key = subject.router, fresh_key()
    async with running(router):
        for _ in range(2):
            await router.advertise([Have(key, 10), Have(fresh_key(), 10, complete=False, available=3)])
            await router.advertise([Gone(fresh_key()), Synced()])
            await router.advertise([])
        for _ in range(2):
            await router.withdraw([key, fresh_key()])
            await router.withdraw([])


async def _advertised(subject: RouterSubject) -> None:
    router, key = subject.router, fresh_key()
    async with running(router):
        await router.advertise([Have(key, 10)])
        await _until_seen(subject, key, True)
        await router.withdraw([fresh_key()])
        await _until_seen(subject, key, True)
        await router.withdraw([key])
        await _until_seen(subject, key, False)


async def _until_seen(subject: RouterSubject, key: Key, right: bool) -> None:
    while await subject.seen(key) not in {right, None}:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.02)


async def _ready(subject: RouterSubject) -> None:
    await plugin_kit.ready(subject.router, lambda: _entered(subject.router))


async def _entering(subject: RouterSubject) -> None:
    await plugin_kit.entering(subject.router, lambda: _entered(subject.router))


async def _sharing(subject: RouterSubject) -> None:
    await plugin_kit.sharing(subject.router, lambda: _entered(subject.router))


async def _peers(subject: RouterSubject) -> None:
    async with running(subject.router):
        key = fresh_key()
        await until_found(subject.router, key, {(await subject.hold(key)).id})
        await expect_cheap(subject.router.peers)
        for peer in subject.router.peers():
            expect_type(peer, Peer)


async def _concurrent(subject: RouterSubject) -> None:
    async with running(subject.router):
        held = [fresh_key() for _ in range(4)]
        for key in held:
            await until_found(subject.router, key, {(await subject.hold(key)).id})
        keys = held + [fresh_key() for _ in range(4)]
        found = await asyncio.gather(*(lookup(subject.router, key) for key in keys * 4))
        for key, holders in zip(keys * 4, found, strict=True):
            expect(bool(holders) == (key in held), f"{key} was found at {holders}")


async def _cancel(subject: RouterSubject) -> None:
    router, key = subject.router, fresh_key()
    async with running(router):
        peer = await subject.hold(key)
        await until_found(router, key, {peer.id})
        await expect_cancellable(lambda: lookup(router, key))
        await expect_cancellable(lambda: lookup(router, fresh_key()))
        await expect_cancellable(lambda: _advice(router, Want(key)))
        await expect_cancellable(lambda: router.advertise([Have(fresh_key())]))
        await expect_cancellable(lambda: router.withdraw([fresh_key()]))
        await until_found(router, key, {peer.id})


async def _routes(subject: RouterSubject) -> None:
    for _ in range(2):
        for route in subject.router.routes():
            expect_type(route, BaseRoute)
        async with running(subject.router):
            pass


PROMISES: Promises = (
    ("a router can be entered, left and entered again, and is ready then", _enter),
    (plugin_kit.READY, _ready),
    (plugin_kit.ENTERING, _entering),
    (plugin_kit.SHARING, _sharing),
    ("a router that is not entered raises RouterUnavailable or knows nobody; peers does not raise", _not_entered),
    ("lookup finds who has a digest or a reference", _lookup),
    ("lookup of a key that nobody has ends, and has told nobody", _lookup_nobody),
    ("lookup forgets who has a key no longer", _lookup_dropped),
    ("peers gives peers, and is cheap", _peers),
    ("this host is never among the holders or the peers", _never_itself),
    ("lookup may be closed before its end", _lookup_closed),
    ("acquire of a key that nobody has gives Upstream or Wait", _acquire_nobody),
    ("acquire gives the holders, without those that failed", _acquire),
    ("advertise and withdraw may be repeated, and ignore what means nothing to them", _advertise),
    ("what is advertised is known to others until it is withdrawn, where routers tell each other", _advertised),
    ("every method may be called concurrently", _concurrent),
    ("every method can be cancelled, and called again", _cancel),
    ("routes gives routes, whether the router is entered or not", _routes),
)
