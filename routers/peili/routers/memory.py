"""A router for tests: routers that share a `MemoryNetwork` find what the others advertise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import asynccontextmanager

from typing_extensions import override

from peili.mirror import (
    Context,
    Feed,
    Have,
    Holder,
    Key,
    Lease,
    LeaseEnd,
    Peer,
    Router,
    RouterUnavailable,
    StoreEvent,
    Tasks,
    Upstream,
    Wait,
    Want,
    running_already,
)

_WAIT = 0.01
"""Seconds until a host asks again whether the one that was sent upstream has bytes."""


class MemoryNetwork:
    """The state that several routers in one process share. For use on one loop.

    Attributes:
        hosts: The hosts whose peer door answers, by id.
        holdings: What each host has advertised, by its id, then by key.
        claims: The host that was sent upstream for a key, and until when the others wait for its first bytes.
        feeders: The host that another one reads a key from, by the key and the id of the other one.
    """

    def __init__(self) -> None:
        self.hosts: dict[str, Peer] = {}
        self.holdings: dict[str, dict[Key, Have]] = {}
        self.claims: dict[Key, tuple[str, float]] = {}
        self.feeders: dict[tuple[Key, str], str] = {}

    def path(self, key: Key, host: str) -> Iterator[str]:
        """Yield `host`, the host that it reads `key` from, and so on."""
        current: str | None = host
        while current is not None:
            yield current
            current = self.feeders.get((key, current))


class MemoryRouter(Router):
    """Finds what other routers in the same network have advertised, without a request.

    If no host has the whole content, one host is sent upstream, and the others read from each other, each from the one
    that has the fewest readers.

    A host can be found from the moment its peer door answers until its router is exited. Then the network forgets what
    it has advertised.

    Args:
        network: The shared network. By default, the router has a network for itself.
    """

    def __init__(self, network: MemoryNetwork | None = None) -> None:
        self.network = MemoryNetwork() if network is None else network
        self._identity: str | None = None  # while `run` is entered
        self._claim_timeout = 0.0

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None, None]:
        if self._identity is not None:
            raise running_already(self)

        async def join() -> None:
            self.network.hosts[context.identity] = await context.listening()

        self._identity = context.identity
        self._claim_timeout = context.limits.claim_timeout
        self.network.holdings[context.identity] = {}
        try:
            async with Tasks(context.log) as tasks:
                tasks.start(join())
                yield
        finally:
            self._identity = None
            self.network.hosts.pop(context.identity, None)
            for key, (host, _) in list(self.network.claims.items()):
                if host == context.identity:
                    del self.network.claims[key]
            del self.network.holdings[context.identity]

    @override
    def ready(self) -> bool:
        return self._identity is not None

    @override
    async def lookup(self, key: Key) -> AsyncGenerator[Holder, None]:
        identity = self._check_running()
        for host, holdings in list(self.network.holdings.items()):
            have, peer = holdings.get(key), self.network.hosts.get(host)
            if have is not None and peer is not None and host != identity:
                yield Holder(peer, have.complete, have.available, have.size)

    @override
    async def acquire(self, want: Want) -> Feed | Wait | Upstream:
        identity, network, now = self._check_running(), self.network, asyncio.get_running_loop().time()
        advice = await super().acquire(want)
        if isinstance(advice, Feed) or not want.accepts_in_flight:
            return advice
        holders = [
            holder
            async for holder in self.lookup(want.key)
            if holder.peer.id not in want.failed and identity not in network.path(want.key, holder.peer.id)
        ]
        if holders:
            readers = [feeder for (key, _), feeder in network.feeders.items() if key == want.key]
            feeder = min(holders, key=lambda each: readers.count(each.peer.id))
            network.feeders[want.key, identity] = feeder.peer.id
            return Feed((feeder,), _MemoryLease(network, want.key, identity))
        host, until = network.claims.get(want.key, (identity, 0.0))
        if host != identity and host not in want.failed and until > now:
            return Wait(now + _WAIT)
        if want.can_share:
            network.claims[want.key] = (identity, now + self._claim_timeout)
        return Upstream(_MemoryLease(network, want.key, identity))

    @override
    async def advertise(self, have: Collection[StoreEvent]) -> None:
        holdings = self.network.holdings[self._check_running()]
        holdings.update({event.key: event for event in have if isinstance(event, Have)})

    @override
    async def withdraw(self, keys: Collection[Key]) -> None:
        holdings = self.network.holdings[self._check_running()]
        for key in keys:
            holdings.pop(key, None)

    @override
    def peers(self) -> Collection[Peer]:
        if self._identity is None:
            return ()
        return [peer for host, peer in self.network.hosts.items() if host != self._identity]

    def _check_running(self) -> str:
        if self._identity is None:
            raise RouterUnavailable("MemoryRouter is not running")
        return self._identity


class _MemoryLease(Lease):
    """The lease of a host that reads from another one in flight, or was sent upstream."""

    def __init__(self, network: MemoryNetwork, key: Key, host: str) -> None:
        self._network = network
        self._key = key
        self._host = host
        self._feeder = network.feeders.get((key, host))

    @override
    async def release(self, reason: str) -> None:
        network, key, host = self._network, self._key, self._host
        if self._feeder is not None and network.feeders.get((key, host)) == self._feeder:
            del network.feeders[key, host]
        elif self._feeder is None and reason == LeaseEnd.GONE and network.claims.get(key, ("", 0))[0] == host:
            del network.claims[key]
