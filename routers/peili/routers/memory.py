"""A router for tests: routers that share a `MemoryNetwork` find what the others advertise."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager

from typing_extensions import override

from peili.mirror import (
    Context,
    Have,
    Holder,
    Key,
    Peer,
    Router,
    RouterUnavailable,
    StoreEvent,
    Tasks,
    running_already,
)


class MemoryNetwork:
    """The state that several routers in one process share. For use on one loop.

    Attributes:
        hosts: The hosts whose peer door answers, by id.
        holdings: What each host has advertised, by its id, then by key.
    """

    def __init__(self) -> None:
        self.hosts: dict[str, Peer] = {}
        self.holdings: dict[str, dict[Key, Have]] = {}


class MemoryRouter(Router):
    """Finds what other routers in the same network have advertised, without a request.

    A host can be found from the moment its peer door answers until its router is exited. Then the network forgets what
    it has advertised.

    Args:
        network: The shared network. By default, the router has a network for itself.
    """

    def __init__(self, network: MemoryNetwork | None = None) -> None:
        self.network = MemoryNetwork() if network is None else network
        self._identity: str | None = None  # while `run` is entered

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None, None]:
        if self._identity is not None:
            raise running_already(self)

        async def join() -> None:
            self.network.hosts[context.identity] = await context.listening()

        self._identity = context.identity
        self.network.holdings[context.identity] = {}
        try:
            async with Tasks(context.log) as tasks:
                tasks.start(join())
                yield
        finally:
            self._identity = None
            self.network.hosts.pop(context.identity, None)
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
