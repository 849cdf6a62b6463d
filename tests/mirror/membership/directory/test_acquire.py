"""`MembershipRouter.acquire` between real mirrors: one host fetches from upstream, the others read from each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from tests.mirror.membership.directory.acquiring import (
    acquire,
    feed,
    fetchers,
    go_upstream,
    home_of,
    names,
    until_told,
    want,
)
from tests.mirror.membership.directory.cluster import Host, are_synced, cluster
from tests.mirror.membership.directory.test_directory import say
from tests.support.waiting import until

from peili.mirror import Digest, FailureReason, Feed, Lease, LeaseEnd, Limits, Peer, Upstream, Wait, Want
from peili.mirror.membership.directory.fetcher import Fetcher
from peili.mirror.peer_api.leases import (
    ACQUIRE_PATH,
    LEASES_PATH,
    AcquireQuery,
    ClaimRequest,
    Granted,
    LeaseReport,
    LeaseReports,
    OtherHome,
)

pytestmark = pytest.mark.anyio

NO_HEARTBEAT = Limits(lookup_timeout=5, lookup_ttl=0.001, miss_ttl=0.001, directory_heartbeat=1000)
SMALL, LARGE = 4, 12
"""The sizes of clusters."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Let the tests share clusters."""
    return "asyncio"


@pytest.fixture(scope="module", params=[SMALL, LARGE])
async def hosts(request: pytest.FixtureRequest) -> AsyncGenerator[list[Host]]:
    """A cluster that the tests share; each has its own key."""
    async with cluster(request.param, limits=NO_HEARTBEAT) as hosts:
        await until(lambda: are_synced(hosts))
        await (await acquire(hosts[0], Digest.of(b"first"))).lease.release(LeaseEnd.GONE)  # until nobody has to wait
        yield hosts


@pytest.fixture
def data(request: pytest.FixtureRequest) -> bytes:
    return str(request.node.name).encode() * 100


@pytest.fixture
def key(data: bytes) -> Digest:
    return Digest.of(data)


async def test_one_host_goes_upstream_and_the_others_read_from_each_other(hosts: list[Host], key: Digest) -> None:
    root, *others = hosts
    await go_upstream(root, key)
    root.store.begin(key, 1000).write(b"first bytes")
    fed = [await feed(each, key) for each in others]
    feeders = [name for each in fed for name in names(each)]
    assert root.url in feeders
    assert {*feeders} <= {each.url for each in hosts}
    assert not any(holder.complete for each in fed for holder in each.holders)
    await go_upstream(root, key)  # it gets the same answer again


async def test_a_host_that_has_the_whole_content_is_used(hosts: list[Host], data: bytes, key: Digest) -> None:
    holder, host, *_ = hosts
    holder.store.add(data)
    await until(lambda: home_of(hosts, key).directory.home.records.find(key).holders)
    advice = await feed(host, key)
    assert [(each.peer.id, each.complete) for each in advice.holders] == [(holder.url, True)]
    await advice.lease.release(LeaseEnd.DONE)
    failed = await acquire(host, key, {holder.url: FailureReason.BROKEN})
    assert not isinstance(failed, Feed) or holder.url not in names(failed)


async def test_a_host_that_reads_whole_holders_only_claims_nothing(hosts: list[Host], key: Digest) -> None:
    advice = await hosts[0].router.acquire(Want(key, can_share=True))
    assert isinstance(advice, Upstream)
    assert type(advice.lease) is Lease
    assert not fetchers(home_of(hosts, key), key)


async def test_progress_and_the_end_of_a_transfer_reach_the_home(hosts: list[Host], key: Digest) -> None:
    root, child, *_ = hosts
    home = home_of(hosts, key)
    await go_upstream(root, key)
    advice = await feed(child, key)
    advice.lease.use(advice.holders[0])
    advice.lease.progress(1234)
    await until(lambda: fetchers(home, key)[child.name].offset == 1234)
    await advice.lease.release(LeaseEnd.GONE)
    await until(lambda: child.name not in fetchers(home, key))


async def test_nobody_is_told_to_read_from_a_drained_host(data: bytes, key: Digest) -> None:
    async with cluster(SMALL, limits=NO_HEARTBEAT) as hosts:
        await until(lambda: are_synced(hosts))
        holder, drained, other, _ = hosts
        holder.store.add(data)
        await until_told(hosts, key)

        def known() -> list[Fetcher]:
            return [each[drained.name] for home in hosts if drained.name in (each := fetchers(home, key))]

        fed: list[Feed] = []
        while not known():  # once, unless the home took too long to answer
            fed.append(await feed(drained, key))
        await drained.mirror.drain(1)
        await until(lambda: not known())
        fed.append(await feed(drained, key))  # it still receives content itself
        assert not any(each.can_share for each in known())
        for each in fed:
            await each.lease.release(LeaseEnd.DONE)
        await drained.directory.leases.flush()
        assert names(await feed(other, key)) == [holder.url]


async def test_a_grant_that_is_superseded_wakes_the_transfer(hosts: list[Host], key: Digest) -> None:
    root, child, *_ = hosts
    home = home_of(hosts, key)
    await go_upstream(root, key)
    advice = await feed(child, key)
    waiting = asyncio.ensure_future(advice.lease.superseded())
    await asyncio.sleep(0)
    assert not waiting.done()
    fetchers(home, key)[child.name].is_superseded = True
    async with asyncio.timeout(60):
        await waiting
    again = await feed(child, key)
    await advice.lease.release(LeaseEnd.GONE)  # of the old lease, which is not the last one
    again.lease.progress(5)
    await until(lambda: fetchers(home, key)[child.name].offset == 5)
    await again.lease.release(LeaseEnd.GONE)
    await until(lambda: child.name not in fetchers(home, key))


async def test_a_cancelled_question_claims_nothing(hosts: list[Host], key: Digest) -> None:
    home = home_of(hosts, key)
    for steps in range(12):
        asking = asyncio.ensure_future(hosts[0].router.acquire(want(key)))
        for _ in range(steps):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        if not asking.cancelled():
            advice = asking.result()
            assert not isinstance(advice, Wait)
            await advice.lease.release(LeaseEnd.GONE)
        await until(lambda: not fetchers(home, key))
    await until(lambda: not len(hosts[0].directory.leases))


async def test_a_runtime_that_leaves_gives_up_its_claim(hosts: list[Host], key: Digest) -> None:
    advice = await acquire(hosts[0], key)
    assert isinstance(advice, Upstream)
    await advice.lease.release(LeaseEnd.GONE)
    await until(lambda: not fetchers(home_of(hosts, key), key))
    await go_upstream(hosts[1], key)


async def test_a_claim_is_kept_while_another_request_of_the_host_uses_it(hosts: list[Host], key: Digest) -> None:
    root, child, *_ = hosts
    home = home_of(hosts, key)
    await go_upstream(root, key)
    both = [await feed(child, key) for _ in range(2)]
    assert names(both[0]) == names(both[1]) == [root.url]
    await both[0].lease.release(LeaseEnd.GONE)
    both[1].lease.progress(5)
    await until(lambda: fetchers(home, key)[child.name].offset == 5)
    assert fetchers(home, key)[child.name].feeders == (root.name,)


async def test_what_a_host_gets_from_upstream_is_reported_as_it_grows(hosts: list[Host], key: Digest) -> None:
    """There is no heartbeat in these clusters."""
    root, home = hosts[0], home_of(hosts, key)
    await go_upstream(root, key)
    ingest = root.store.begin(key, 1000)
    for size in (100, 200, 300):
        ingest.write(bytes(100))
        await until(lambda size=size: known_bytes(home, root, key) == size)  # type: ignore[misc]  # bound early


async def test_a_fetch_that_has_not_begun_is_reported_while_the_runtime_receives_other_content(
    hosts: list[Host], key: Digest
) -> None:
    root, *others = hosts
    await go_upstream(root, key)
    feeding = await feed(others[0], key)
    other = Digest.of(b"other " + key.encode())
    await go_upstream(root, other)
    ingest = root.store.begin(other, 1_000_000)

    def postponed() -> bool:
        ingest.write(b"x")
        fetch = home_of(hosts, key).directory.home.claims.table.find(key)
        return fetch is not None and fetch.hosts[root.name].fed_since > fetch.hosts[others[0].name].fed_since

    await until(postponed)
    await feeding.lease.release(LeaseEnd.GONE)
    ingest.abort()


def known_bytes(home: Host, host: Host, key: Digest) -> int | None:
    """How many bytes a home knows that a host has."""
    holders = home.directory.home.records.find(key).holders
    return next((each.available for each in holders if each.id == host.name), None)


async def test_only_the_first_home_decides_unless_it_is_told_to(hosts: list[Host], key: Digest) -> None:
    first = home_of(hosts, key)
    other, asking = [each for each in hosts if each is not first][:2]
    request = ClaimRequest(asking.name, key)
    assert other.directory.home.acquire(AcquireQuery(request)) == OtherHome(first.name)
    assert isinstance(other.directory.home.acquire(AcquireQuery(request, is_final=True)), Granted)


async def test_a_host_only_claims_for_itself(key: Digest) -> None:
    elsewhere, by_name = Peer("elsewhere", ("http://127.0.0.2:5",)), Peer("by-name", ("http://localhost:5",))
    async with cluster(2, elsewhere, by_name) as hosts:
        query = AcquireQuery(ClaimRequest("", key, can_share=True), is_final=True).encode()
        report = LeaseReports((LeaseReport(key, 1),)).encode()
        for path, message in ((ACQUIRE_PATH, query), (LEASES_PATH, report)):
            for sender, status in (("by-name", 200), ("stranger", 403), ("elsewhere", 403), ("", 403), ("h0", 403)):
                assert await say(hosts[0], sender, message, path) == status
            assert await say(hosts[0], "by-name", b"[]", path) == 400
        assert {*fetchers(hosts[0], key)} <= {"by-name"}
