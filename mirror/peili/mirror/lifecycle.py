"""What lives while a mirror is entered: its client, its plug-ins, its announcements, and the way to the peers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace

from peili.mirror.client.client import PeerClient
from peili.mirror.errors import PeerUnavailable
from peili.mirror.membership.announcer import Announcer
from peili.mirror.parts import Parts
from peili.mirror.peer_api.peers import IDENTITY_HEADER, Peer
from peili.mirror.plugins.interfaces import Context, Plugin
from peili.mirror.relay.buffers import BufferPool
from peili.mirror.relay.leases import LeaseReleases
from peili.mirror.relay.means import Means
from peili.mirror.relay.parallel import ParallelRequests
from peili.mirror.relay.reputation import Blame, HolderScores
from peili.mirror.relay.verify import HashThreads, KnownSizes
from peili.mirror.supervisor import Supervisor
from peili.mirror.support.backoff import Backoff

_PATIENCE = 1.0
"""Seconds between two tries from which on it is worth a warning that they fail."""
_FIRST_PAUSE = 0.05
"""Seconds after which our own peer door is tried again; doubled up to `backoff_max`."""


class Running:
    """One stay inside of a mirror. Built on its loop; `start` and `stop` once each, the rest in between.

    `identity` gives this host as a peer, with URLs once they are known.
    """

    def __init__(self, parts: Parts, identity: Callable[[], Peer]) -> None:
        self._parts = parts
        self._identity = identity
        self._client = PeerClient(parts.limits, tls=parts.client_ssl)
        self._hasher = HashThreads()
        self._relay_log = parts.log.getChild("relay")
        self._releases = LeaseReleases(parts.limits, parts.metrics, self._relay_log)
        self._supervisors: dict[int, Supervisor] = {}  # by the plug-in's id(): a stranger's may not be hashable
        self._announcer: Announcer | None = None
        self._doubted: set[int] = set()  # plug-ins that failed to say how they are; told once
        self._turn = asyncio.Lock()  # of `withdraw` and `resume`
        self._withdrawn = False
        self._stopped = False
        self._context = Context(
            identity=identity().id,
            listening=self._listening,
            store=parts.store,
            router=parts.router,
            client=self._client,
            selection=parts.selection,
            limits=parts.limits,
            log=parts.log,
            limited=parts.metrics.limited.add,
        )
        self.loop = asyncio.get_running_loop()

    def ready(self, plugin: Plugin) -> bool:
        """Whether `plugin` is entered and says that it can do its work now. On the loop only."""
        supervisor = self._supervisors.get(id(plugin))
        try:
            return supervisor is not None and supervisor.entered and plugin.ready()
        except Exception as error:  # noqa: BLE001 - a stranger's, and the host lives on
            self._doubt(plugin, "whether it is ready", error)
            return False

    def peers(self) -> Collection[Peer]:
        """The peers that the router knows. On the loop only."""
        try:
            return tuple(self._parts.router.peers())
        except Exception as error:  # noqa: BLE001 - a stranger's, and the host lives on
            self._doubt(self._parts.router, "its peers", error)
            return ()

    @property
    def advertised(self) -> int:
        """How many keys the router was told of."""
        return self._announcer.advertised if self._announcer is not None else 0

    def _doubt(self, plugin: Plugin, what: str, error: Exception) -> None:
        if id(plugin) not in self._doubted:
            self._doubted.add(id(plugin))
            self._parts.log.error("%s failed to say %s", type(plugin).__name__, what, exc_info=error)

    async def start(self) -> None:
        """Enter the plug-ins. Returns when each was tried once, after `start_timeout` seconds at the latest."""
        self._parts.relay.start(self._means())
        await self._enter()

    async def _enter(self) -> None:
        """Enter what is not entered, and announce what the store has."""
        parts = self._parts
        deadline = time.monotonic() + parts.limits.start_timeout
        plugins = self._supervise(parts.plugins.values())
        self._announcer = Announcer(
            parts.store,
            parts.router,
            self._listening,
            selection=parts.selection,
            limits=parts.limits,
            log=parts.log,
        )
        in_time = await _tried(plugins, deadline)
        if self._stopped or self._withdrawn:
            return
        in_time &= await _tried(self._supervise(parts.extensions), deadline)
        if not in_time:
            parts.metrics.limited.add("start_timeout")

    def _supervise(self, plugins: Iterable[Plugin]) -> list[Supervisor]:
        """Begin to enter each, once: one object may be two of them."""
        limits, new = self._parts.limits, list[Supervisor]()
        for plugin in plugins:
            if id(plugin) not in self._supervisors:
                own = replace(self._context, log=self._context.log.getChild(type(plugin).__name__))
                again = self._advertise_again if plugin is self._parts.router else _nothing
                self._supervisors[id(plugin)] = supervisor = Supervisor(plugin, own, limits, own.log, again)
                new.append(supervisor)
        return new

    async def _leave(self, plugin: Plugin) -> None:
        if supervisor := self._supervisors.get(id(plugin)):
            try:
                await supervisor.stop()
            finally:  # where this is cancelled, too
                self._supervisors.pop(id(plugin), None)

    def _means(self) -> Means:
        parts = self._parts
        return Means(
            router=parts.router,
            store=parts.store,
            client=self._client,
            blame=Blame(parts.limits, metrics=parts.metrics),
            health=HolderScores(parts.limits),
            hasher=self._hasher,
            sizes=KnownSizes(),
            memory=BufferPool(parts.limits.relay_memory),
            releases=self._releases,
            turns=ParallelRequests(parts.limits, parts.metrics.limited.add),
            limits=parts.limits,
            verify=parts.verify,
            log=self._relay_log,
            metrics=parts.metrics,
        )

    def _advertise_again(self) -> None:
        if self._announcer is not None:
            self._announcer.again()

    async def withdraw(self) -> None:
        """Leave the extensions, and take back what was advertised, until `resume`. Idempotent."""
        async with self._turn:
            await self._withdraw()

    async def _withdraw(self) -> None:
        self._withdrawn = True
        try:
            for extension in reversed(self._parts.extensions):
                await self._leave(extension)
        finally:  # where this is cancelled, too
            if (announcer := self._announcer) is not None:
                await announcer.stop()
                self._announcer = None

    async def drain(self, timeout: float) -> None:
        """Give the leases that are being given back `timeout` seconds for it."""
        await self._releases.drain(timeout)

    async def resume(self) -> None:
        """Undo `withdraw`, where that was done; takes as long as leaving the router and `start` do.

        The router is entered anew: it may have told peers where our door was before.
        """
        async with self._turn:
            if not self._withdrawn:
                return
            await self._withdraw()  # the rest of it, where that was cancelled, or this was
            await self._leave(self._parts.router)
            if self._stopped:
                return
            self._withdrawn = False
            try:
                await self._enter()
            except BaseException:
                self._withdrawn = True
                raise

    async def stop(self) -> None:
        """Leave everything, last things first; each, though this task be cancelled meanwhile."""
        self._stopped = True
        self._parts.relay.stop()
        async with AsyncExitStack() as stack:
            stack.callback(self._hasher.close)
            stack.push_async_callback(self._client.aclose)
            for supervisor in self._supervisors.values():
                stack.push_async_callback(supervisor.stop)
            stack.push_async_callback(self._releases.aclose)  # before the router, which they go to
            await self._withdraw()  # whoever else does it at this time need not be waited for

    async def _listening(self) -> Peer:
        """This host as a peer, once one of its URLs is answered by its own peer door."""
        backoff = Backoff(_FIRST_PAUSE, self._parts.limits.backoff_max)
        told = False
        while True:
            identity = self._identity()
            if identity.urls:
                problem = await self._problem(identity)
                if problem is None:
                    return identity
                if backoff.delay > _PATIENCE and not told:
                    told = True
                    where = " or ".join(identity.urls)
                    self._parts.log.warning(
                        "not announced to peers until our own peer door answers at %s: %s", where, problem
                    )
            await backoff.sleep()

    async def _problem(self, identity: Peer) -> str | None:
        """Why peers would not reach this host by its URLs."""
        try:
            answer = await self._client.head(identity, "/v2/", timeout=self._parts.limits.lookup_timeout)
        except PeerUnavailable as error:
            return str(error)
        who = answer.header(IDENTITY_HEADER)
        return None if who == identity.id else f"somebody else does, who is {who or 'no peili'}"


async def _tried(supervisors: Iterable[Supervisor], deadline: float) -> bool:
    """Wait until each has tried to enter its plug-in once; whether that was so before the deadline."""
    tried = [asyncio.create_task(each.tried.wait()) for each in supervisors]
    if not tried:
        return True
    try:
        _, late = await asyncio.wait(tried, timeout=max(0, deadline - time.monotonic()))
    finally:
        for task in tried:
            task.cancel()
        await asyncio.gather(*tried, return_exceptions=True)
    return not late


def _nothing() -> None:
    pass
