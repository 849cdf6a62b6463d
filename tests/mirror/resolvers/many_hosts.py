"""Many hosts in this process, each with its own doors, store and resolver. They share tags.

They find each other in memory. With a `MembershipRouter`, each would send messages to each other one, which cost
far more here than what is tested.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Key, Limits, Mirror, Peer, PullRights, Reference, serve
from peili.mirror.membership.directory.homes import HomeSet, choose_homes, slot_of
from peili.mirror.resolvers import UpstreamResolver
from peili.routers.memory import MemoryNetwork, MemoryRouter
from peili.stores.memory import MemoryStore

_PATIENT = Limits(upstream_timeout=60, first_byte_timeout=200, lookup_timeout=60, connect_timeout=60)


class _HomeRouter(MemoryRouter):
    """Also knows the homes of tags, as hosts with a `MembershipRouter` choose them."""

    def __init__(self, network: MemoryNetwork, identity: str) -> None:
        super().__init__(network)
        self._host = identity
        self._homes = HomeSet(frozenset())

    @override
    def home(self, key: Key) -> Peer | None:
        if self._homes.ids != (ids := choose_homes(self.network.hosts)):
            self._homes = HomeSet(ids)
        first, *_ = self._homes.homes_of(slot_of(str(key)))
        return None if first == self._host else self.network.hosts[first]


@asynccontextmanager
async def many_hosts(
    number: int, manifests: Mapping[Reference, bytes], authorize: Sequence[str]
) -> AsyncGenerator[list[str]]:
    """Yield the URLs of the local doors of hosts that have `manifests`. `authorize` is that of `PullRights`."""
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        doors: list[str] = []
        for identity in (f"host-{n}" for n in range(number)):
            store = MemoryStore()
            for reference, data in manifests.items():
                store.tag(reference, store.add(data))
            mirror = Mirror(
                store,
                _HomeRouter(network, identity),
                UpstreamResolver(tag_share=True, tag_ttl=1_000_000),
                identity=identity,
                insecure=True,
                rights=PullRights(authorize),
                limits=_PATIENT,
            )
            await stack.enter_async_context(mirror)
            serving = await stack.enter_async_context(serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0"))
            doors.append(f"http://{serving.local_addresses[0]}")
        await until(lambda: len(network.hosts) == number, within=300)
        yield doors
