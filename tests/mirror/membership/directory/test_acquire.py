"""`MembershipRouter.acquire` between real mirrors: one host fetches from upstream, the others read from each other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.mirror.membership.directory.cluster import Host, are_synced, cluster
from tests.support.neighbours import until

from peili.mirror import Digest, FailureReason, Feed, Lease, LeaseEnd, Limits, Upstream, Wait, Want
from peili.mirror.membership.directory.homes import slot_of

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 64
KEY = Digest.of(DATA)
SMALL, LARGE = 4, 12
"""Clusters whose members ask all others, and those whose members rely on the directory."""


def want(**changes: Any) -> Want:
    return Want(KEY, **{"size": len(DATA), "can_share": True, "accepts_in_flight": True, **changes})


async def acquire(host: Host, **changes: Any) -> Feed | Upstream:
    """Ask the router, again as long as it says to wait."""
    async with asyncio.timeout(60):
        while True:
            advice = await host.router.acquire(want(**changes))
            if not isinstance(advice, Wait):
                return advice
            await asyncio.sleep(max(0, advice.until - asyncio.get_running_loop().time()))


async def go_upstream(host: Host, **changes: Any) -> Lease:
    advice = await acquire(host, **changes)
    assert isinstance(advice, Upstream)
    await advice.lease.release(LeaseEnd.DONE)
    return advice.lease


async def feed(host: Host, **changes: Any) -> Feed:
    advice = await acquire(host, **changes)
    assert isinstance(advice, Feed)
    return advice


def names(advice: Feed) -> list[str]:
    """The ids of the holders. The members in the lists of the hosts have their URL as id."""
    return [each.peer.id for each in advice.holders]


def home_of(hosts: list[Host]) -> Host:
    """The first home of the key."""
    homes = hosts[0].directory._homes.homes_of(slot_of(KEY))  # pyright: ignore[reportPrivateUsage]
    return next(each for each in hosts if each.name == homes[0])


def fetchers(home: Host) -> dict[str, Any]:
    """What a home knows about the hosts that fetch the key."""
    hosts: dict[str, Any] = {}
    for fetch in home.directory.home.claims.table.fetches():
        if fetch.key == KEY:
            hosts.update(fetch.hosts)
    return hosts


@pytest.mark.parametrize("count", [SMALL, LARGE])
async def test_one_host_goes_upstream_and_the_others_read_from_each_other(count: int) -> None:
    async with cluster(count) as hosts:
        await until(lambda: are_synced(hosts))
        root, *others = hosts
        await go_upstream(root)
        ingest = root.store.begin(KEY, len(DATA))
        ingest.write(DATA[:100])
        fed = [await feed(each) for each in others]
        feeders = [name for each in fed for name in names(each)]
        assert root.url in feeders
        assert all(not holder.complete for each in fed for holder in each.holders)
        assert {*feeders} <= {each.url for each in hosts}
        for advice in fed:
            advice.lease.use(advice.holders[0])
            advice.lease.progress(len(DATA))
            await advice.lease.release(LeaseEnd.DONE)


@pytest.mark.parametrize("count", [SMALL, LARGE])
async def test_a_host_that_has_the_whole_content_is_used_and_nobody_goes_upstream(count: int) -> None:
    async with cluster(count) as hosts:
        await until(lambda: are_synced(hosts))
        holder, *others = hosts
        holder.store.add(DATA)
        await until(lambda: home_of(hosts).directory.home.records.find(KEY).holders)
        for host in others:
            advice = await feed(host)
            assert [each.complete for each in advice.holders] == [True]
            assert names(advice) == [holder.url]
            await advice.lease.release(LeaseEnd.DONE)
            failed = await acquire(host, failed={holder.url: FailureReason.BROKEN})
            assert not isinstance(failed, Feed) or holder.url not in names(failed)
            await failed.lease.release(LeaseEnd.GONE)


async def test_without_interest_in_content_in_flight_nothing_is_claimed() -> None:
    async with cluster(SMALL) as hosts:
        await until(lambda: are_synced(hosts))
        advice = await acquire(hosts[0], accepts_in_flight=False)
        assert isinstance(advice, Upstream)
        assert type(advice.lease) is Lease
        assert not fetchers(home_of(hosts))


async def test_a_repeated_question_gets_the_same_answer() -> None:
    async with cluster(SMALL) as hosts:
        await until(lambda: are_synced(hosts))
        for _ in range(2):
            await go_upstream(hosts[0])
        first, second = [await feed(hosts[1]) for _ in range(2)]
        assert names(first) == names(second) == [hosts[0].url]


async def test_progress_and_the_end_of_a_transfer_reach_the_home() -> None:
    async with cluster(SMALL) as hosts:
        await until(lambda: are_synced(hosts))
        home = home_of(hosts)
        root, child, *_ = hosts
        await go_upstream(root)
        advice = await feed(child)
        advice.lease.use(advice.holders[0])
        advice.lease.progress(1234)
        await until(lambda: fetchers(home)[child.name].offset == 1234)
        await advice.lease.release(LeaseEnd.GONE)
        assert child.name not in fetchers(home)


async def test_a_grant_that_is_superseded_wakes_the_transfer() -> None:
    async with cluster(SMALL) as hosts:
        await until(lambda: are_synced(hosts))
        root, child, *_ = hosts
        await go_upstream(root)
        advice = await feed(child)
        waiting = asyncio.ensure_future(advice.lease.superseded())
        await asyncio.sleep(0)
        assert not waiting.done()
        fetchers(home_of(hosts))[child.name].is_superseded = True
        async with asyncio.timeout(30):
            await waiting
        again = await feed(child)
        await advice.lease.release(LeaseEnd.DONE)
        assert child.name in fetchers(home_of(hosts))
        await again.lease.release(LeaseEnd.GONE)
        assert child.name not in fetchers(home_of(hosts))


async def test_a_cancelled_question_claims_nothing() -> None:
    async with cluster(SMALL) as hosts:
        await until(lambda: are_synced(hosts))
        home = home_of(hosts)
        await (await acquire(hosts[0])).lease.release(LeaseEnd.GONE)  # from now on, nobody has to wait
        for steps in range(12):
            asking = asyncio.ensure_future(hosts[0].router.acquire(want()))
            for _ in range(steps):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
            if not asking.cancelled():
                advice = asking.result()
                assert not isinstance(advice, Wait)
                await advice.lease.release(LeaseEnd.GONE)
            await until(lambda: not len(hosts[0].directory.leases))
        await until(lambda: not fetchers(home))


async def test_a_runtime_that_leaves_gives_up_its_claim() -> None:
    async with cluster(SMALL) as hosts:
        await until(lambda: are_synced(hosts))
        advice = await acquire(hosts[0])
        assert isinstance(advice, Upstream)
        await advice.lease.release(LeaseEnd.GONE)
        await go_upstream(hosts[1])


async def test_the_claim_of_one_request_is_kept_while_another_one_of_the_same_host_ends() -> None:
    async with cluster(SMALL) as hosts:
        await until(lambda: are_synced(hosts))
        await go_upstream(hosts[0])
        for _ in range(2):
            advice = await acquire(hosts[0])
            assert isinstance(advice, Upstream)
        fed = [await feed(hosts[1]) for _ in range(2)]
        await fed[0].lease.release(LeaseEnd.GONE)
        assert fetchers(home_of(hosts))[hosts[1].name].feeders == (hosts[0].name,)


async def test_the_growth_of_what_a_host_fetches_from_upstream_reaches_the_home_soon() -> None:
    slow = Limits(lookup_timeout=5, lookup_ttl=0.001, miss_ttl=0.001, directory_heartbeat=1000)
    async with cluster(SMALL, limits=slow) as hosts:
        await until(lambda: are_synced(hosts))
        root, home = hosts[0], home_of(hosts)
        await go_upstream(root)
        ingest = root.store.begin(KEY, len(DATA))
        for size in (100, 200, 300):
            ingest.write(DATA[size - 100 : size])
            await until(lambda size=size: known(home, root) == size)  # type: ignore[misc]  # bound early


def known(home: Host, host: Host) -> int | None:
    """How many bytes a home knows that a host has."""
    records = home.directory.home.records.find(KEY).holders
    return next((each.available for each in records if each.id == host.name), None)


async def test_the_next_home_decides_if_the_first_one_is_gone() -> None:
    async with cluster(LARGE) as hosts:
        await until(lambda: are_synced(hosts))
        home = home_of(hosts)
        root, child, *_ = [each for each in hosts if each is not home]
        await home.stop()
        await go_upstream(root)
        advice = await feed(child)
        assert names(advice) == [root.url]
