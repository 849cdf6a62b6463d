"""A router that finds the members on the local network by multicast DNS service discovery (RFC 6762, RFC 6763)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Self

from typing_extensions import override
from zeroconf import Error as ZeroconfError
from zeroconf import ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from peili.mirror import Context, MembershipRouter, Peer, Tasks
from peili.routers.mdns.interfaces import Attachment, attachment
from peili.routers.mdns.options import read_options
from peili.routers.mdns.service import SERVICE_TYPE, TTL, from_service, to_service

_MAX_SERVICES = 1024
_RESOLVE_TIME = 3.0  # seconds that a service has to say what it is …
_RESOLVE_TRIES = 3  # … each time that it is asked: answers get lost, and hosts are busy
_LOOK_AGAIN = 5.0  # seconds between looks at this host's interfaces
_TROUBLE = (OSError, RuntimeError, ZeroconfError)  # what zeroconf raises where a network will not do


class MdnsRouter(MembershipRouter):
    """The members are the hosts that announce ``_peili._tcp.local.``; so does this one once its peer door listens.

    A host that leaves says so and is forgotten at once; one that crashes is forgotten after a minute or so. Ready
    once it listens. Where there is no network yet, or another one later, it keeps trying.
    """

    def __init__(
        self,
        *,
        interfaces: Iterable[str] = (),
        versions: Iterable[int] = (4, 6),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """`interfaces` are names or addresses of interfaces to use; none means all. `versions` are the IP versions,
        `labels` are announced besides those of this host as a peer.
        """
        self._interfaces = frozenset(interfaces)
        self._versions = frozenset(versions)
        self._labels = dict(labels or {})
        self._services = _Services()

    @override
    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Options: ``interfaces``, a list of names or addresses; ``ip_version``, ``"v4"``, ``"v6"`` or ``"all"``;
        ``labels``, a table.
        """
        options = read_options(config)
        return cls(interfaces=options.interfaces, versions=options.versions, labels=options.labels)

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None, None]:
        async with super().run(context):
            try:
                async with Tasks(context.log) as tasks:
                    tasks.start(self._stay(context))
                    yield
            finally:
                self._services = _Services()  # for the next time: who is there then has to be found out anew

    @override
    def members(self) -> AsyncGenerator[Collection[Peer], None]:
        return self._services.members()

    async def _stay(self, context: Context) -> None:
        """Be on the network, whatever becomes of it."""
        pause, complained = context.limits.backoff_min, False
        while True:
            try:
                where = attachment(self._interfaces, self._versions)
                await self._be_there(context, where)
            except _TROUBLE as error:
                if not complained:
                    context.log.warning("no peers are found by multicast DNS for now: %s", error)
                complained = True
                await asyncio.sleep(pause)
                pause = min(2 * pause, context.limits.backoff_max)
            else:
                pause, complained = context.limits.backoff_min, False

    async def _be_there(self, context: Context, where: Attachment) -> None:
        """Announce and browse until this host's interfaces or addresses are no longer `where`."""
        if not where.speak_on:
            raise OSError("no network interface that could be used")
        async with _speaking(where) as zeroconf, Tasks(context.log) as tasks:
            finder = _Finder(context, zeroconf, self._services, tasks, self._versions)
            async with AsyncServiceBrowser(zeroconf, SERVICE_TYPE, handlers=[finder.changed]):
                tasks.start(finder.keep_fresh())
                tasks.start(self._announce(context, zeroconf, where))
                self._services.listening()
                while attachment(self._interfaces, self._versions) == where:  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(_LOOK_AGAIN)
        context.log.info("this host's network addresses have changed; announcing it again")

    async def _announce(self, context: Context, zeroconf: Zeroconf, where: Attachment) -> None:
        me = await context.listening()
        pause = context.limits.backoff_min
        while True:
            try:
                info = to_service(me, self._labels, where.addresses)
                await (await zeroconf.async_register_service(info, allow_name_change=True))  # pyright: ignore[reportUnknownMemberType] - zeroconf does not say of what its Awaitable is
            except ValueError as error:
                context.log.error("this host is not announced by multicast DNS: %s", error)  # noqa: TRY400 - one line
                return
            except _TROUBLE as error:
                context.log.debug("announcing this host failed, to be tried again: %r", error)
            else:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, context.limits.backoff_max)


class _Services:
    """The services that are there, by name, with the peers that they turned out to be."""

    def __init__(self) -> None:
        self.peers: dict[str, Peer | None] = {}  # None: not known yet, or not usable
        self._listening = False
        self._changed = asyncio.Event()

    def listening(self) -> None:
        """From now on, finding nobody means that nobody is there."""
        self._listening = True
        self._wake()

    def put(self, name: str, peer: Peer | None) -> None:
        """`name` is there; it is `peer`."""
        self.peers[name] = peer
        self._wake()

    def drop(self, name: str) -> None:
        """`name` is gone."""
        self.peers.pop(name, None)
        self._wake()

    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        """See `MembershipRouter.members`."""
        while True:
            changed = self._changed
            if self._listening:
                yield [peer for peer in self.peers.values() if peer is not None]  # whoever says the same id as another
            await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _Finder:
    """Finds out what the services are that a browser sees."""

    def __init__(
        self, context: Context, zeroconf: Zeroconf, services: _Services, tasks: Tasks, versions: Collection[int]
    ) -> None:
        self._log = context.log
        self._zeroconf = zeroconf
        self._services = services
        self._tasks = tasks
        self._versions = versions
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._seen: set[str] = set()  # services may be known from before this host's addresses changed

    def changed(self, *, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """What the browser calls, with these names."""
        if state_change is ServiceStateChange.Removed:
            self._seen.discard(name)
            if task := self._resolving.pop(name, None):
                task.cancel()
            self._services.drop(name)
        elif name in self._services.peers or len(self._services.peers) < _MAX_SERVICES:
            self._seen.add(name)
            self._services.peers.setdefault(name)
            self._resolve(name)

    async def keep_fresh(self) -> None:
        """Ask the services whose records have expired: their browser only knows that their names did not.

        (zeroconf keeps names for 19 minutes at least.) Those of a host that crashed stay unanswered.
        """
        while True:
            await asyncio.sleep(TTL / 4 * random.uniform(0.75, 1))  # noqa: S311 - keeps hosts out of step, no secret
            for name in list(self._services.peers):
                known = AsyncServiceInfo(SERVICE_TYPE, name).load_from_cache(self._zeroconf)
                if not known and name not in self._resolving:
                    self._resolve(name)

    def _resolve(self, name: str) -> None:
        if name in self._resolving:
            self._resolving[name].cancel()
        task = self._resolving[name] = self._tasks.start(self._find_out(name))
        task.add_done_callback(partial(self._resolved, name))

    def _resolved(self, name: str, task: asyncio.Task[None]) -> None:
        if self._resolving.get(name) is task:
            del self._resolving[name]

    async def _find_out(self, name: str) -> None:
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        peer = None
        if await self._answers(info):
            try:
                peer = from_service(info, self._versions)
            except ValueError as error:
                self._log.debug("ignoring the service %a: %s", name, error)
        if peer is not None or name in self._seen:
            self._services.put(name, peer)
        else:
            self._services.drop(name)

    async def _answers(self, info: AsyncServiceInfo) -> bool:
        """Whether the service says what it is, which `info` knows then."""
        for _ in range(_RESOLVE_TRIES):
            if await info.async_request(self._zeroconf, _RESOLVE_TIME * 1000):
                return True
        return False


@asynccontextmanager
async def _speaking(where: Attachment) -> AsyncGenerator[Zeroconf, None]:
    """Take part in multicast DNS; say goodbye at the end, which takes about a quarter of a second."""
    outer = AsyncZeroconf(interfaces=list(where.speak_on))
    try:
        await outer.zeroconf.async_wait_for_start()
        yield outer.zeroconf
    finally:
        with suppress(*_TROUBLE):
            await outer.async_close()
