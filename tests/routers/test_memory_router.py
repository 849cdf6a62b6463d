"""The router in memory, for tests."""

from __future__ import annotations

import pytest
from tests.support.neighbours import entered, holders
from tests.support.waiting import until

from peili.mirror import (
    ConfigError,
    Digest,
    Feed,
    Have,
    Holder,
    LeaseEnd,
    Peer,
    Plugins,
    Reference,
    RouterUnavailable,
    Upstream,
    Wait,
    Want,
)
from peili.routers.memory import MemoryNetwork, MemoryRouter

pytestmark = pytest.mark.anyio

KEY = Digest.of(b"a layer")
TAG = Reference("docker.io", "library/redis", "7")
A = Peer("a", ("http://127.0.0.1:1",))


async def test_advertised_content_is_found_by_others_until_it_is_withdrawn() -> None:
    network = MemoryNetwork()
    a, b = MemoryRouter(network), MemoryRouter(network)
    async with entered(a, identity="a", peer=A), entered(b, identity="b"):
        await until(b.peers)
        assert list(b.peers()) == [A]
        await a.advertise([Have(KEY, size=9, complete=False, available=4), Have(TAG)])
        assert await holders(b, KEY) == [Holder(A, complete=False, available=4, size=9)]
        assert await holders(b, TAG) == [Holder(A, complete=True)]
        assert await holders(a, KEY) == [], "a host does not find itself"
        await a.withdraw([KEY, Digest.of(b"never advertised")])
        assert await holders(b, KEY) == []
        assert await holders(b, TAG) != []


async def test_one_host_goes_upstream_and_the_others_read_from_each_other() -> None:
    network = MemoryNetwork()
    a, b, c = MemoryRouter(network), MemoryRouter(network), MemoryRouter(network)
    peer_b = Peer("b", ("http://127.0.0.1:2",))
    want = Want(KEY, can_share=True, accepts_in_flight=True)
    async with (
        entered(a, identity="a", peer=A),
        entered(b, identity="b", peer=peer_b),
        entered(c, identity="c"),
    ):
        await until(lambda: len(c.peers()) == 2)
        root = await a.acquire(want)
        assert isinstance(root, Upstream)
        assert isinstance(await b.acquire(want), Wait)
        await root.lease.release(LeaseEnd.GONE)
        assert isinstance(await b.acquire(Want(KEY, accepts_in_flight=True)), Upstream), "it can't share"
        assert isinstance(await a.acquire(want), Upstream)
        await a.advertise([Have(KEY, size=9, complete=False, available=4)])
        first = await b.acquire(want)
        assert isinstance(first, Feed)
        assert first.holders == (Holder(A, complete=False, available=4, size=9),)
        await b.advertise([Have(KEY, size=9, complete=False, available=2)])
        assert isinstance(await a.acquire(want), Upstream), "b reads from a"
        second = await c.acquire(want)
        assert isinstance(second, Feed)
        assert [each.peer for each in second.holders] == [peer_b], "a has a reader"
        await first.lease.release(LeaseEnd.DONE)
        await a.advertise([Have(KEY, size=9)])
        whole = await c.acquire(want)
        assert isinstance(whole, Feed)
        assert whole.holders == (Holder(A, complete=True, size=9),)


async def test_a_host_that_has_exited_or_has_no_peer_door_is_not_found() -> None:
    network = MemoryNetwork()
    a, b = MemoryRouter(network), MemoryRouter(network)
    async with entered(b, identity="b"):
        async with entered(a, identity="a", peer=A):
            await until(b.peers)
            await a.advertise([Have(KEY)])
            await b.advertise([Have(KEY)])
            assert await holders(a, KEY) == []
        assert await holders(b, KEY) == []
        assert list(b.peers()) == []
    async with entered(b, identity="b"), entered(a, identity="a", peer=A):
        await until(b.peers)
        assert await holders(b, KEY) == [], "advertised in an earlier run"


async def test_routers_without_a_shared_network_do_not_find_each_other() -> None:
    a, b = Plugins().router("memory", {}), MemoryRouter()
    async with entered(a, identity="a", peer=A), entered(b, identity="b"):
        await a.advertise([Have(KEY)])
        assert await holders(b, KEY) == []


async def test_a_router_that_is_not_entered_is_unavailable() -> None:
    router = MemoryRouter()
    assert not router.ready()
    assert not router.peers()
    with pytest.raises(RouterUnavailable):
        await holders(router, KEY)
    with pytest.raises(RouterUnavailable):
        await router.advertise([Have(KEY)])
    with pytest.raises(RouterUnavailable):
        await router.withdraw([KEY])


async def test_the_router_serves_one_mirror_at_a_time() -> None:
    network = MemoryNetwork()
    a, b = MemoryRouter(network), MemoryRouter(network)
    async with entered(a, identity="a", peer=A), entered(b, identity="b"):
        with pytest.raises(RuntimeError, match="running already"):
            async with entered(a, identity="c"):
                pass
        await a.advertise([Have(KEY)])
        await until(b.peers)
        assert await holders(b, KEY) == [Holder(A, complete=True)]


def test_the_router_has_no_options() -> None:
    with pytest.raises(ConfigError, match="unknown option"):
        MemoryRouter.from_config({"network": "x"})
