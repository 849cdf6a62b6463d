"""Routers that know the members and find content by asking them.

How they ask is in asking.py, whom they leave out in roster.py, what they answer in keyroute.py.
"""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from typing_extensions import override

from peili.mirror.errors import FailureReason, RouterUnavailable
from peili.mirror.membership.lookup import KeyLookup
from peili.mirror.membership.peer_health import PeerHealth
from peili.mirror.oci.references import Key
from peili.mirror.peer_api.keys import KEYS_ROUTE, answer
from peili.mirror.peer_api.peers import Feed, Holder, Peer, Upstream, Wait, Want
from peili.mirror.plugins.plugin import Context, running_already
from peili.mirror.plugins.router import Router
from peili.mirror.support.backoff import Backoff
from peili.mirror.support.tasks import Tasks, is_cancelled


@dataclass(frozen=True, slots=True)
class _Entered:
    """What a router has while its `run` is entered."""

    context: Context
    roster: PeerHealth
    asker: KeyLookup


class MembershipRouter(Router):
    """Knows the members, and finds content among them. Subclasses say who the members are, nothing else.

    A key is looked up by asking all members side by side. Who has it is remembered for ``limits.lookup_ttl``, that
    nobody has it for ``limits.miss_ttl``. A member that does not answer within ``limits.lookup_timeout`` is left out
    until it answers again. This host may be among the members: it is recognised by its id.
    """

    # Subclasses are written by strangers. So this is on the class: they need not call an __init__ of ours. And what is
    # private has two underscores: they may use any name that they like.
    __entered: _Entered | None = None

    @abstractmethod
    def members(self) -> AsyncGenerator[Collection[Peer], None]:
        """The whole set, at once and then at each change, without an end.

        Consumed by one task while `run` is entered, and closed when it is left. If it raises or ends, the last set
        stays good and `members` is called again, after pauses that grow to ``limits.backoff_max``.
        """

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None, None]:
        """Follow the members. Subclasses that need more around it call ``super().run(context)``."""
        if self.__entered is not None:
            raise running_already(self)
        async with Tasks(context.log) as tasks:
            roster = PeerHealth(context, tasks)
            self.__entered = _Entered(context, roster, KeyLookup(context, roster, tasks))
            try:
                tasks.start(self.__follow(context, roster))
                await asyncio.sleep(0)  # members that are known already count from the first lookup on
                yield
            finally:
                self.__entered = None

    @override
    def ready(self) -> bool:
        """Whether the members have been told."""
        return self.__entered is not None and self.__entered.roster.arrived

    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        """The members that have `key` whole, as they answer. Ends after at most twice ``limits.lookup_timeout``.

        Raises RouterUnavailable while `run` is not entered.
        """
        async with aclosing(self.__state().asker.holders(key)) as found:
            async for holder in found:
                yield holder

    @override
    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        """As `Router.acquire`. Peers that failed `want` without a word are left out until they answer again."""
        entered = self.__state()
        entered.roster.doubt(want.key, [name for name, why in want.failed.items() if why in _WITHOUT_A_WORD])
        entered.asker.refresh(want.key, want.failed)
        return await super().acquire(want)

    @override
    def peers(self) -> Collection[Peer]:
        return () if self.__entered is None else self.__entered.roster.live()

    @override
    def routes(self) -> Sequence[BaseRoute]:
        """Answers other hosts from this host's store (see keyroute.py)."""
        return (Route(KEYS_ROUTE, self.__answer, methods=["HEAD"]),)

    async def __answer(self, request: Request) -> Response:
        if self.__entered is None:
            return Response(status_code=503)
        return await answer(self.__entered.context, request.path_params["key"])

    def __state(self) -> _Entered:
        if self.__entered is None:
            raise RouterUnavailable(f"{type(self).__name__} is not running")
        return self.__entered

    async def __follow(self, context: Context, roster: PeerHealth) -> None:
        """Tell `roster` what `members` says, whatever becomes of it."""
        loop = asyncio.get_running_loop()
        limits = context.limits
        backoff, complained = Backoff(limits.backoff_min, limits.backoff_max), False
        while True:
            began = loop.time()
            try:
                async with aclosing(self.members()) as sets:
                    async for peers in sets:
                        roster.update(peers)
            except (Exception, asyncio.CancelledError) as error:  # a stranger's code, whose failure must not end ours
                if is_cancelled(error):
                    raise
                if not complained:
                    context.log.warning("the members can't be had, the last known stay: %r", error)
                complained = True
            if loop.time() - began > limits.backoff_max:
                backoff.reset()
                complained = False
            await backoff.sleep()


_WITHOUT_A_WORD = frozenset({FailureReason.UNREACHABLE, FailureReason.SILENT})


class PushRouter(MembershipRouter):
    """A membership that the host pushes in. Not ready before the first `set`."""

    def __init__(self) -> None:
        self._pushed: tuple[Peer, ...] | None = None
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def set(self, peers: Iterable[Peer]) -> None:
        """From now on these are all the members. May be called from any thread, at any time: also before the router
        runs, and after it has.
        """
        pushed = tuple(peers)
        with self._lock:
            self._pushed = pushed
            for changed, loop in self._waiting.items():
                with suppress(RuntimeError):  # a loop that was closed under its router has nobody left to tell
                    loop.call_soon_threadsafe(changed.set)

    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        changed = asyncio.Event()
        with self._lock:
            self._waiting[changed] = asyncio.get_running_loop()
        try:
            while True:
                changed.clear()
                if self._pushed is not None:
                    yield self._pushed
                await changed.wait()
        finally:
            with self._lock:
                del self._waiting[changed]
