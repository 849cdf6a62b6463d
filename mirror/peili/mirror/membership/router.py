"""Routers that know the members and find content among them.

`MembershipRouter` is the base class, for plug-ins too. Its `lookup` asks other hosts (lookup.py), and its `routes`
answer them (key_answers.py). `PushRouter` has a membership that a host agent sets.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from typing_extensions import override

from peili.mirror.errors import FailureReason, RouterUnavailable
from peili.mirror.membership.advice import Advisor
from peili.mirror.membership.directory.directory import Directory
from peili.mirror.membership.directory.routes import DirectoryRoutes
from peili.mirror.membership.key_answers import answer_key
from peili.mirror.membership.lookup import KeyLookup
from peili.mirror.membership.peer_health import PeerHealth
from peili.mirror.oci.references import Key
from peili.mirror.peer_api.keys import (
    IN_FLIGHT_HEADER,
    KEYS_ROUTE,
    accepts_in_flight,
)
from peili.mirror.peer_api.peers import Holder, Peer, UnreachablePeer
from peili.mirror.plugins.acquiring import Feed, Upstream, Wait, Want
from peili.mirror.plugins.content import StoreEvent
from peili.mirror.plugins.interfaces import Context, Router, running_already
from peili.mirror.support.tasks import Backoff, Tasks, is_own_failure
from peili.mirror.tls.identities import has_proven_itself

_FAILED_SILENTLY = frozenset({FailureReason.UNREACHABLE, FailureReason.SILENT})


class Membership:
    """The state of a `MembershipRouter` while its `run` is entered.

    Attributes:
        context: The context that the router was entered with.
        tasks: Background tasks, cancelled when the router is exited.
        health: The members, and which of them are alive.
        directory: Finds the holders of a key without asking all members.
        key_lookup: Finds the holders of a key.
        advisor: Decides where this host gets a key.
    """

    def __init__(self, context: Context, tasks: Tasks) -> None:
        self.context = context
        self.tasks = tasks
        self.health = PeerHealth(context, tasks)
        self.directory = Directory(context, self.health, tasks)
        self.key_lookup = KeyLookup(context, self.health, self.directory, tasks)
        self.advisor = Advisor(self.directory, tasks)

    async def follow(self, members: Callable[[], AsyncGenerator[Collection[Peer], None]]) -> None:
        """Update `health` with each set that `members` yields. Calls `members` again if it ends or raises."""
        loop, limits = asyncio.get_running_loop(), self.context.limits
        backoff, is_logged = Backoff(limits.backoff_min, limits.backoff_max), False
        while True:
            started = loop.time()
            try:
                async with aclosing(members()) as sets:
                    async for peers in sets:
                        self.health.update(peers)
            except BaseException as error:
                if not is_own_failure(error):  # this task was cancelled; `members` may also raise CancelledError itself
                    raise
                if not is_logged:
                    self.context.log.warning("the members can't be read, the last known ones stay: %r", error)
                is_logged = True
            if loop.time() - started > limits.backoff_max:  # `members` worked for a while
                backoff.reset()
                is_logged = False
            await backoff.sleep()


class MembershipRouter(Router):
    """Knows the members, and finds content among them. A subclass implements `members`, and nothing else.

    A lookup asks the directory, and then concurrently the members that the directory does not know about: those that
    have just started, or are too old to have one (docs/protocol.md). What a member gets later is found when the
    directory was told, which takes some milliseconds. The holders are remembered for ``limits.lookup_ttl`` seconds; a
    miss is remembered for ``limits.miss_ttl`` seconds. A member that does not answer within ``limits.lookup_timeout``
    seconds is left out until it answers again. This host may be one of the members: it is recognised by its id.

    The class keeps its state in one attribute, ``_peili_membership``. A subclass may use every other attribute name
    that `Router` does not define, and need not call ``super().__init__()``.
    """

    _peili_membership: Membership | None = None  # while `run` is entered

    @abstractmethod
    def members(self) -> AsyncGenerator[Collection[Peer], None]:
        """Yield the whole set of members at once, and again at each change, without an end.

        One task iterates over it while `run` is entered, and closes it on exit. If it raises or ends, the last set
        stays valid, and `members` is called again after a delay that grows up to ``limits.backoff_max`` seconds.
        """

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None, None]:
        """Follow the members. A subclass that overrides this enters ``super().run(context)``."""
        if self._peili_membership is not None:
            raise running_already(self)
        async with Tasks(context.log) as tasks:
            membership = Membership(context, tasks)
            self._peili_membership = membership
            try:
                tasks.start(membership.follow(self.members))
                tasks.start(membership.directory.run())
                await asyncio.sleep(0)  # so that the first lookup already finds members that are known now
                yield
            finally:
                self._peili_membership = None
                try:
                    await membership.directory.leases.flush()
                finally:
                    tasks.close()  # a message that is still being answered must start nothing

    @override
    def ready(self) -> bool:
        """Return whether `members` has yielded a set."""
        return self._peili_membership is not None and self._peili_membership.health.is_known

    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        """Yield the members that have the whole content of `key`, as they answer.

        Ends after at most twice ``limits.lookup_timeout`` seconds.

        Raises:
            RouterUnavailable: `run` is not entered.
        """
        async with aclosing(_require_running(self._peili_membership, self).key_lookup.holders(key)) as found:
            async for holder in found:
                yield holder

    @override
    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        """Return advice as `Router.acquire` does. A peer that failed without an answer is left out until it answers.

        With ``want.accepts_in_flight``, a home of the key decides, so that a cluster fetches content from upstream once
        (docs/protocol.md). If it names no holders soon, this host looks up whole holders: they are preferred to going
        upstream, and are all that counts if no home answers in time.
        """
        membership = _require_running(self._peili_membership, self)
        if membership.context.is_drained():
            want = replace(want, can_share=False)
        silent = [name for name, reason in want.failed.items() if reason in _FAILED_SILENTLY]
        membership.health.exclude_until_alive(want.key, silent)
        membership.key_lookup.forget_failed(want.key, want.failed)
        whole_holders = partial(super().acquire, want)
        if want.accepts_in_flight:
            advice = await membership.advisor.advise(want, whole_holders)
        else:
            advice = await whole_holders()
        if membership.context.log.isEnabledFor(logging.DEBUG):
            membership.context.log.debug("%s from byte %d: %s", want.key, want.offset, _describe(advice))
        return advice

    @override
    async def advertise(self, have: Collection[StoreEvent]) -> None:
        """Report these keys to their homes, soon and again at intervals."""
        _require_running(self._peili_membership, self).directory.advertise(have)

    @override
    async def withdraw(self, keys: Collection[Key]) -> None:
        """Report to the homes that these keys are gone. Does nothing if `run` is not entered."""
        if self._peili_membership is not None:
            self._peili_membership.directory.withdraw(keys)

    @override
    def peers(self) -> Collection[Peer]:
        return () if self._peili_membership is None else self._peili_membership.health.live_peers()

    @override
    def home(self, key: Key) -> Peer | None:
        return None if self._peili_membership is None else self._peili_membership.directory.home_peer(str(key))

    @override
    def unreachable(self) -> Collection[UnreachablePeer]:
        return () if self._peili_membership is None else self._peili_membership.health.dead_peers()

    @override
    def routes(self) -> Sequence[BaseRoute]:
        """Return routes that tell other hosts whether this host's store has a key, and those of the directory.

        See ``peer_api/keys.py`` and ``peer_api/directory.py``.
        """

        async def handle_key(request: Request) -> Response:
            if self._peili_membership is None:
                return Response(status_code=503)
            is_in_flight = accepts_in_flight(request.headers.get(IN_FLIGHT_HEADER))
            return await answer_key(
                self._peili_membership.context,
                request.path_params["key"],
                includes_in_flight=is_in_flight,
                is_proven=has_proven_itself(request),
            )

        def directory() -> Directory | None:
            return None if self._peili_membership is None else self._peili_membership.directory

        return (Route(KEYS_ROUTE, handle_key, methods=["HEAD"]), *DirectoryRoutes(directory).routes())


def _describe(advice: Feed | Wait | Upstream) -> str:
    """Return what a host is told to do, for the log."""
    if isinstance(advice, Feed):
        return "read from " + ", ".join(
            f"{each.peer.id}{'' if each.complete else ' in flight'}" for each in advice.holders
        )
    return "wait" if isinstance(advice, Wait) else "go upstream"


def _require_running(membership: Membership | None, router: MembershipRouter) -> Membership:
    if membership is None:
        raise RouterUnavailable(f"{type(router).__name__} is not running")
    return membership


class PushRouter(MembershipRouter):
    """A router whose members the host agent sets. It is not ready before the first `set`."""

    def __init__(self) -> None:
        self._pushed: tuple[Peer, ...] | None = None
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}  # who is not told of a change yet

    def set(self, peers: Iterable[Peer]) -> None:
        """Replace all members with `peers`.

        May be called from any thread and at any time, also before the router runs and after it has ended.
        """
        pushed = tuple(peers)
        with self._lock:
            self._pushed = pushed
            for changed, loop in self._waiting.items():
                with suppress(RuntimeError):  # the loop was closed while the router ran: nobody waits any more
                    loop.call_soon_threadsafe(changed.set)
            self._waiting.clear()  # a loop that is slower than the calls must not get more and more callbacks

    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        changed, loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            while True:
                with self._lock:
                    self._waiting[changed] = loop
                    pushed = self._pushed
                if pushed is not None:
                    yield pushed
                await changed.wait()
                changed.clear()
        finally:
            with self._lock:
                self._waiting.pop(changed, None)
