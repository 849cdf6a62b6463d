"""Clusters of real mirrors on loopback, for the tests of the directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from tests.support.neighbours import holder_ids
from tests.support.ports import free_ports

from peili.mirror import Key, Limits, Mirror, Peer, PeerTLS, serve
from peili.mirror.membership.directory.directory import Directory
from peili.mirror.membership.router import Membership
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

LIMITS = Limits(lookup_timeout=5, lookup_ttl=0.001, miss_ttl=0.001, directory_heartbeat=1, backoff_max=1)


class Host:
    """A mirror that can be stopped and started again with the same URL."""

    def __init__(self, name: str, url: str, members: Iterable[Peer], **options: Any) -> None:
        self.name = name
        self.url = url
        self.store = MemoryStore()
        self.members = list(members)
        self._options: dict[str, Any] = {"limits": LIMITS, **options}
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Start, with nothing but the content of the store."""
        self.router = StaticRouter(self.members)
        self.mirror = Mirror(self.store, self.router, identity=self.name, **self._options)
        await self._stack.enter_async_context(self.mirror)
        peer = self.url.partition("://")[2]
        self.serving = await self._stack.enter_async_context(serve(self.mirror, local="127.0.0.1:0", peer=peer))

    async def stop(self) -> None:
        """Stop. Start it again with `start`."""
        await self._stack.aclose()

    @property
    def directory(self) -> Directory:
        return self._membership.directory

    def is_lookup_over(self, key: Key) -> bool:
        """Whether the last lookup of `key` waits for no further answer."""
        return self._membership.key_lookup._queries[key].valid_until is not None  # pyright: ignore[reportPrivateUsage]

    @property
    def _membership(self) -> Membership:
        membership = self.router._peili_membership  # pyright: ignore[reportPrivateUsage] - the tests look into it
        assert membership is not None
        return membership

    def questions(self) -> float:
        """How many questions about a key came to this host itself, and not as to a home."""
        families = {each.name: each for each in self.mirror.figures()}
        requests = families["peili_requests_total"].samples
        return sum(float(str(value)) for labels, value in requests.items() if {"peer", "router", "HEAD"} <= set(labels))


async def find(host: Host, key: Key) -> list[str]:
    """Return the ids of the holders that `host` finds. Members in its list have their URL as id."""
    return await holder_ids(host.router, key)


def are_synced(hosts: Collection[Host], names: Collection[str] | None = None) -> bool:
    """Whether each home is synced with all hosts, or with those called `names`, for all keys that it is a home of."""
    expected = {each.name for each in hosts} if names is None else set(names)
    for host in hosts:
        directory = host.directory
        homes = directory._homes  # pyright: ignore[reportPrivateUsage]
        if not {each.name for each in hosts} <= homes.ids:
            return False
        lists = directory.home.records._lists.values()  # pyright: ignore[reportPrivateUsage]
        synced = {each for known in lists if known.homes.ids == homes.ids for each in known.hosts}
        if not expected <= synced:
            return False
    return True


@asynccontextmanager
async def cluster(
    count: int, *others: Peer, keys: Callable[[str], PeerTLS] | None = None, **options: Any
) -> AsyncGenerator[list[Host]]:
    """Run hosts ``h0``, ``h1``, … which have one list of URLs: of themselves and of `others`.

    With `keys`, the peer doors use TLS with what it returns for each name. Otherwise they are open.
    """
    urls = [f"{'http' if keys is None else 'https'}://127.0.0.1:{port}" for port in free_ports(count)]
    members = [*(Peer(url, (url,)) for url in urls), *others]
    hosts: list[Host] = []
    for number, url in enumerate(urls):
        access: dict[str, Any] = {"insecure": True} if keys is None else {"peer_tls": keys(f"h{number}")}
        hosts.append(Host(f"h{number}", url, members, **access, **options))
    try:
        await asyncio.gather(*(each.start() for each in hosts))
        yield hosts
    finally:
        await asyncio.gather(*(each.stop() for each in hosts))
