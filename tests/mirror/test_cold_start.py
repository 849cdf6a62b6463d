"""Many hosts ask at once for what only upstream has: it is fetched once, and streams through the cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.lab.access import Access
from tests.mirror.cold_start import COLD_LIMITS, Runtime, Upstream
from tests.mirror.membership.directory.acquiring import home_of
from tests.mirror.membership.directory.cluster import are_synced, cluster
from tests.mirror.relay.pulling import content
from tests.support.waiting import until

from peili.mirror import Digest
from peili.mirror.limits import KIB, MIB

pytestmark = pytest.mark.anyio

HOSTS = 6


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(tmp_path / "access")


async def test_each_blob_is_fetched_once_when_all_hosts_ask_at_the_same_time(access: Access) -> None:
    blobs = [content(size) for size in (3 * MIB, 2 * MIB + 1, 300 * KIB, 5 * KIB)]
    async with cluster(HOSTS, keys=access.peer_tls_factory(), limits=COLD_LIMITS) as hosts:
        await until(lambda: are_synced(hosts))
        upstream = Upstream(*blobs)
        runtimes = [Runtime(each, upstream) for each in hosts]
        await asyncio.gather(*(each.pull(Digest.of(blob), len(blob)) for each in runtimes for blob in blobs))
        assert upstream.sent == {Digest.of(each): len(each) for each in blobs}


async def test_the_bytes_reach_every_host_while_upstream_still_sends(access: Access) -> None:
    blob = content(7 * MIB)
    digest = Digest.of(blob)
    async with cluster(HOSTS, keys=access.peer_tls_factory(), limits=COLD_LIMITS) as hosts:
        await until(lambda: are_synced(hosts))
        upstream = Upstream(blob)
        runtimes = [Runtime(each, upstream) for each in hosts]
        # A relay withholds the last piece that it has read, which is less than 6 MiB.
        upstream.may_send = lambda start: start < 6 * MIB or all(each.received[digest] for each in runtimes)
        await asyncio.gather(*(each.pull(digest, len(blob)) for each in runtimes))
        assert upstream.sent == {digest: len(blob)}


async def test_hosts_that_join_and_leave_in_the_middle_cost_no_second_fetch(access: Access) -> None:
    blob = content(7 * MIB)
    digest = Digest.of(blob)
    async with cluster(HOSTS, keys=access.peer_tls_factory(), limits=COLD_LIMITS) as hosts:
        await until(lambda: are_synced(hosts))
        upstream, has_changed = Upstream(blob), asyncio.Event()
        upstream.may_send = lambda start: start < 6 * MIB or has_changed.is_set()
        root, *others, joining = [Runtime(each, upstream) for each in hosts]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(root.pull(digest, len(blob)))
            await until(lambda: upstream.sent[digest])
            leaving, *_ = [tasks.create_task(each.pull(digest, len(blob))) for each in others]
            await until(lambda: all(each.received[digest] for each in others))
            leaving.cancel()
            tasks.create_task(joining.pull(digest, len(blob)))
            await until(lambda: joining.received[digest])
            has_changed.set()
        assert upstream.sent == {digest: len(blob)}


@pytest.mark.parametrize("vanishing", ["the home", "the root"])
async def test_every_other_host_gets_the_blob_if_a_host_vanishes(vanishing: str, access: Access) -> None:
    blob = content(7 * MIB)
    digest = Digest.of(blob)
    async with cluster(HOSTS, keys=access.peer_tls_factory(), limits=COLD_LIMITS) as hosts:
        await until(lambda: are_synced(hosts))
        upstream, has_changed = Upstream(blob), asyncio.Event()
        upstream.may_send = lambda start: start < 6 * MIB or has_changed.is_set()
        home = home_of(hosts, digest)
        root, *others = [each for each in hosts if each is not home]
        gone = home if vanishing == "the home" else root
        runtimes = {each: Runtime(each, upstream) for each in [root, *others]}
        async with asyncio.TaskGroup() as tasks:
            pulls = [tasks.create_task(runtimes[root].pull(digest, len(blob)))]
            await until(lambda: upstream.sent[digest])
            pulls += [tasks.create_task(runtimes[each].pull(digest, len(blob))) for each in others]
            await until(lambda: all(runtimes[each].received[digest] for each in others))
            if gone is root:
                pulls[0].cancel()
            await gone.stop()
            has_changed.set()
        fetched_again = upstream.sent[digest] - len(blob)
        assert fetched_again <= (3 * MIB if gone is root else 0)
