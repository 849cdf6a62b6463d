"""The conformance kit for `Router`. membership_kit.py checks what only `MembershipRouter` promises."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from operator import attrgetter

from starlette.routing import BaseRoute

from peili.mirror.errors import FailureReason, RouterUnavailable
from peili.mirror.oci.references import Digest, Key, Reference
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.plugins.acquiring import Feed, LeaseEnd, Upstream, Wait, Want
from peili.mirror.plugins.content import Gone, Have, Synced
from peili.mirror.plugins.interfaces import Router
from peili.mirror.support.deadlines import Deadline
from peili.mirror.testing.conformance import (
    DEFAULT_TIMEOUT,
    Promises,
    check_promises,
    eventually,
    expect,
    expect_cancellable,
    expect_cheap,
    expect_type,
    fresh_bytes,
    plugin_promises,
)
from peili.mirror.testing.contexts import context_for

IDENTITY = "this-host"
"""The id of this host while the kit runs a router."""

_STEP_TIMEOUT = 3.0  # seconds for one lookup or acquire: more than twice the default of `Limits.lookup_timeout`


class RouterSubject(ABC):
    """A router to be checked, and ways to change what the other hosts have.

    Attributes:
        router: The router, not entered. The kit enters it more than once, as the host ``this-host``.
    """

    router: Router

    @abstractmethod
    async def hold(self, key: Key) -> Peer:
        """Let another host have the complete content of `key`. Called only while the router is entered.

        Returns:
            The other host.
        """

    @abstractmethod
    async def drop(self, key: Key) -> None:
        """Let no other host have `key` any longer."""

    async def receive(self, key: Key) -> Peer | None:
        """Let another host receive the content of `key`: it has the first bytes only.

        Returns:
            The other host. None means that routers of this kind find complete holders only.
        """
        return None

    async def seen(self, key: Key) -> bool | None:
        """Return whether other hosts know that this host has the complete content of `key`.

        None means that routers of this kind do not advertise.
        """
        return None


RouterFactory = Callable[[], AbstractAsyncContextManager[RouterSubject]]
"""Returns a context manager that creates a router with its own other hosts, and cleans up on exit."""


async def check_router(factory: RouterFactory, *, within: float = DEFAULT_TIMEOUT) -> None:
    """Check every promise of `Router`, each on a new router.

    Args:
        factory: Creates the router.
        within: Seconds in which each promise must be kept, by default 30. It includes the time that the router
            needs to notice a change.

    Raises:
        ConformanceError: A promise is broken; the first one that was found.
    """
    await check_promises(PROMISES, factory, within)


@asynccontextmanager
async def _entered(router: Router) -> AsyncGenerator[None]:
    own = Peer(IDENTITY, ("http://127.0.0.1:9",))
    async with context_for(router, identity=IDENTITY, peer=own) as context, router.run(context):
        yield


@asynccontextmanager
async def running(router: Router) -> AsyncGenerator[None]:
    """Enter `router` as ``this-host``, and wait until it is ready."""
    async with _entered(router):
        await eventually(router.ready)
        yield


def fresh_key() -> Digest:
    """Return a key that no host has."""
    return Digest.of(fresh_bytes(16))


async def lookup(router: Router, key: Key) -> list[Holder]:
    """Return all holders that one lookup finds. Raises TimeoutError."""
    async with Deadline(_STEP_TIMEOUT), aclosing(router.lookup(key)) as found:
        return [holder async for holder in found]


async def until_found(router: Router, key: Key, ids: Collection[str]) -> None:
    """Repeat a lookup of `key` until it finds exactly the peers in `ids`."""
    while {holder.peer.id for holder in await lookup(router, key)} != set(ids):  # noqa: ASYNC110 - there is no event
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
            expect(await lookup(router, fresh_key()) == [], "a holder was found")
        async with running(router):
            pass


async def _lookup(subject: RouterSubject) -> None:
    async with running(subject.router):
        for key in (fresh_key(), Reference("registry.example", "conformance/demo", fresh_bytes(4).hex())):
            peer = await subject.hold(key)
            await until_found(subject.router, key, {peer.id})
            for holder in await lookup(subject.router, key):
                expect(holder.peer.urls == peer.urls, f"the URLs of the holder are {holder.peer.urls}, not {peer.urls}")
                expect(holder.complete, "the holder is not complete")


async def _lookup_unknown(subject: RouterSubject) -> None:
    async with running(subject.router):
        await subject.hold(fresh_key())
        expect(await lookup(subject.router, fresh_key()) == [], "a holder was found")


async def _lookup_dropped(subject: RouterSubject) -> None:
    async with running(subject.router):
        key = fresh_key()
        await until_found(subject.router, key, {(await subject.hold(key)).id})
        await subject.drop(key)
        await until_found(subject.router, key, ())


async def _never_this_host(subject: RouterSubject) -> None:
    async with running(subject.router):
        own, shared = fresh_key(), fresh_key()
        await subject.router.advertise([Have(own, 10), Have(shared, 10)])
        peer = await subject.hold(shared)
        await until_found(subject.router, shared, {peer.id})
        expect(await lookup(subject.router, own) == [], "this host was found as a holder")
        expect(IDENTITY not in {each.id for each in subject.router.peers()}, "this host is in peers()")


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
        for accepts in (False, False, True, True):
            advice = await _advice(subject.router, Want(key, accepts_in_flight=accepts))
            if not isinstance(advice, Feed):
                continue
            ids = {holder.peer.id for holder in advice.holders}
            expect(ids == {peer.id}, f"the holders are {ids}, but only {peer.id} has the content")
        for accepts in (False, True):
            want = Want(key, failed={peer.id: FailureReason.BROKEN}, accepts_in_flight=accepts)
            advice = await _advice(subject.router, want)
            ids = {holder.peer.id for holder in advice.holders} if isinstance(advice, Feed) else set[str]()
            expect(peer.id not in ids, f"{peer.id} is a holder again, after it failed")


async def _acquire_unknown(subject: RouterSubject) -> None:
    async with running(subject.router):
        for accepts in (False, True):
            advice = await _advice(subject.router, Want(fresh_key(), can_share=True, accepts_in_flight=accepts))
            expect(not isinstance(advice, Feed), f"it returned {advice!r}")


async def _acquire_in_flight(subject: RouterSubject) -> None:
    async with running(subject.router):
        key = fresh_key()
        peer = await subject.receive(key)
        if peer is None:
            return
        while True:
            advice = await _advice(subject.router, Want(key, can_share=True, accepts_in_flight=True))
            if isinstance(advice, Feed):
                break
            await asyncio.sleep(0.02)  # until the router knows it
        [holder] = advice.holders
        expect(holder.peer.id == peer.id and not holder.complete, f"the holder is {holder}, not {peer.id} in flight")
        advice = await _advice(subject.router, Want(key, can_share=True))
        expect(not isinstance(advice, Feed), "a host that reads whole content only was fed in flight")


async def _lease(subject: RouterSubject) -> None:
    async with running(subject.router):
        key = fresh_key()
        peer = await subject.hold(key)
        await until_found(subject.router, key, {peer.id})
        want = Want(key, can_share=True, accepts_in_flight=True)
        async with Deadline(_STEP_TIMEOUT):
            both = [await subject.router.acquire(want) for _ in range(2)]
        for advice in both:
            if isinstance(advice, Wait):
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await advice.lease.superseded()
            for holder in advice.holders if isinstance(advice, Feed) else ():
                await expect_cheap(lambda lease=advice.lease, holder=holder: lease.use(holder))  # type: ignore[misc]  # bound early
            await expect_cheap(lambda lease=advice.lease: lease.progress(1))  # type: ignore[misc]  # bound early
            async with Deadline(_STEP_TIMEOUT):
                await advice.lease.release(LeaseEnd.GONE)


async def _advice(router: Router, want: Want) -> Feed | Wait | Upstream:
    """Return the result of `acquire`. Uses its lease like a mirror does."""
    async with Deadline(_STEP_TIMEOUT):
        advice = await router.acquire(want)
    expect_type(advice, Feed, Wait, Upstream)
    if isinstance(advice, Feed):
        expect(advice.holders, "acquire returned a Feed without holders")
        is_in_flight = not all(holder.complete for holder in advice.holders)
        expect(want.accepts_in_flight or not is_in_flight, "a holder in flight for a host that accepts none")
        advice.lease.use(advice.holders[0])
    if isinstance(advice, Wait):
        expect(advice.until < asyncio.get_running_loop().time() + 60, f"acquire returned a Wait until {advice.until}")
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


async def _advertised_in_flight(subject: RouterSubject) -> None:
    router, key, other = subject.router, fresh_key(), fresh_key()
    async with running(router):
        await router.advertise([Have(key, 10, complete=False, available=10), Have(other, 10)])
        await _until_seen(subject, other, True)
        expect(await subject.seen(key) is not True, "content in flight was taken for complete content")
        await router.advertise([Have(key, 10)])
        await _until_seen(subject, key, True)
        await router.advertise([Have(key, 10, complete=False, available=1)])
        await _until_seen(subject, key, False)


async def _until_seen(subject: RouterSubject, key: Key, right: bool) -> None:
    while await subject.seen(key) not in {right, None}:  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.02)


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
            expect(bool(holders) == (key in held), f"the holders of {key} are {holders}")


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
    ("a router can be entered, exited and entered again, and is ready then", _enter),
    *plugin_promises(attrgetter("router"), lambda subject: _entered(subject.router)),
    ("a router that is not entered raises RouterUnavailable or finds nothing; peers does not raise", _not_entered),
    ("lookup finds the holders of a digest and of a reference", _lookup),
    ("lookup of a key that no host has ends without a holder", _lookup_unknown),
    ("lookup does not find a host that no longer has the key", _lookup_dropped),
    ("peers returns peers, and is cheap", _peers),
    ("this host is never a holder or a peer", _never_this_host),
    ("lookup may be closed before its end", _lookup_closed),
    ("acquire of a key that no host has returns Upstream or Wait", _acquire_unknown),
    ("acquire returns the holders, without those that failed", _acquire),
    ("acquire returns a holder in flight to a host that accepts it, and to no other", _acquire_in_flight),
    ("each lease takes use and progress at once, can be waited for, and is released", _lease),
    ("advertise and withdraw may be repeated, and ignore other events and unknown keys", _advertise),
    ("advertised keys are known to others until they are withdrawn, if routers of this kind advertise", _advertised),
    ("content that is advertised as not complete is never taken for complete", _advertised_in_flight),
    ("every method may be called concurrently", _concurrent),
    ("every method can be cancelled, and called again", _cancel),
    ("routes returns routes, whether the router is entered or not", _routes),
)
