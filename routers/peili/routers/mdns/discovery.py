"""Keeps track of the services on the network and of the peers that announce them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Collection

from zeroconf import ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceInfo

from peili.mirror import Broadcast, Context, Peer, Tasks
from peili.routers.mdns.interfaces import NetworkAttachment
from peili.routers.mdns.service import SERVICE_TYPE, TTL, from_service

_MAX_SERVICES = 1024
_RESOLVE_TIMEOUT = 3.0  # seconds that a service gets to answer one request for its records
_RESOLVE_TRIES = 3  # requests, because answers get lost and hosts are busy


class DiscoveredServices:
    """The services on the network by name, each with its peer.

    Attributes:
        peers: The peer of each service; None if the service is not resolved yet, or is not a valid peer.
    """

    def __init__(self) -> None:
        self.peers: dict[str, Peer | None] = {}
        self._is_browsing = False
        self._changes = Broadcast()

    def set_browsing(self) -> None:
        """Report the peers from now on. Before this, an empty set does not mean that there is no peer."""
        self._is_browsing = True
        self._changes.notify()

    def put(self, name: str, peer: Peer | None) -> None:
        """Set the peer of the service `name`."""
        self.peers[name] = peer
        self._changes.notify()

    def remove(self, name: str) -> None:
        """Remove the service `name`, if it is known."""
        self.peers.pop(name, None)
        self._changes.notify()

    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        """Yield all peers at each change, as `MembershipRouter.members`. Two services may have the same peer id."""
        while True:
            changed = self._changes.next_change
            if self._is_browsing:
                yield [peer for peer in self.peers.values() if peer is not None]
            await changed.wait()


class ServiceResolver:
    """Resolves the services that a browser finds, and keeps `services` up to date.

    Args:
        context: The router's context.
        zeroconf: The connection to the network.
        services: What this object updates. It may have services from before this host's addresses changed.
        tasks: Owns the tasks that resolve services.
        versions: The IP versions of the addresses to use.
        attachment: The links on which the announcements come.
    """

    def __init__(
        self,
        context: Context,
        zeroconf: Zeroconf,
        services: DiscoveredServices,
        tasks: Tasks,
        *,
        versions: Collection[int],
        attachment: NetworkAttachment,
    ) -> None:
        self._log = context.log
        self._zeroconf = zeroconf
        self._services = services
        self._tasks = tasks
        self._versions = versions
        self._attachment = attachment
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._found: set[str] = set()  # names that the current browser has found

    def handle_change(
        self, *, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """Handle a change that the browser reports. The browser passes these keyword arguments."""
        if state_change is ServiceStateChange.Removed:
            self._found.discard(name)
            if task := self._resolving.pop(name, None):
                task.cancel()
            self._services.remove(name)
        elif name in self._services.peers or len(self._services.peers) < _MAX_SERVICES:
            self._found.add(name)
            self._services.peers.setdefault(name)
            self._start_resolving(name)

    async def refresh_expired(self) -> None:
        """Resolve the services again whose records have expired. The services of a crashed host are then removed.

        The browser does not do this: zeroconf caches names for at least 19 minutes.
        """
        while True:
            await asyncio.sleep(TTL / 4 * random.uniform(0.75, 1))  # noqa: S311 - spreads hosts in time, no secret
            for name in list(self._services.peers):
                is_cached = AsyncServiceInfo(SERVICE_TYPE, name).load_from_cache(self._zeroconf)
                if not is_cached and name not in self._resolving:
                    self._start_resolving(name)

    def _start_resolving(self, name: str) -> None:
        if name in self._resolving:
            self._resolving[name].cancel()

        def forget(done: asyncio.Task[None]) -> None:
            if self._resolving.get(name) is done:
                del self._resolving[name]

        task = self._resolving[name] = self._tasks.start(self._resolve(name))
        task.add_done_callback(forget)

    async def _resolve(self, name: str) -> None:
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        peer = None
        if await self._request_records(info):
            try:
                dialled, has_one_link = self._attachment.dialled, self._attachment.links == 1
                peer = from_service(info, self._versions, dialled, has_one_link=has_one_link)
            except ValueError as error:
                self._log.debug("ignoring the service %a: %s", name, error)
        if peer is not None or name in self._found:
            self._services.put(name, peer)
        else:
            self._services.remove(name)

    async def _request_records(self, info: AsyncServiceInfo) -> bool:
        """Request the records of a service into `info`. Returns whether it answered."""
        for _ in range(_RESOLVE_TRIES):
            if await info.async_request(self._zeroconf, _RESOLVE_TIMEOUT * 1000):
                return True
        return False
