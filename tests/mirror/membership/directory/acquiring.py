"""Hosts that ask where they get a key, for the tests of `MembershipRouter.acquire`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from tests.mirror.membership.directory.cluster import Host
from tests.support.waiting import until

from peili.mirror import Digest, Feed, LeaseEnd, Upstream, Wait, Want
from peili.mirror.membership.directory.fetcher import Fetcher
from peili.mirror.membership.directory.homes import HomeSet, slot_of


def want(key: Digest, failed: Mapping[str, str] | None = None) -> Want:
    return Want(key, failed=failed or {}, can_share=True, accepts_in_flight=True)


async def acquire(host: Host, key: Digest, failed: Mapping[str, str] | None = None) -> Feed | Upstream:
    """Ask the router, again as long as it says to wait."""
    async with asyncio.timeout(60):
        while True:
            advice = await host.router.acquire(want(key, failed))
            if not isinstance(advice, Wait):
                return advice
            await asyncio.sleep(max(0, advice.until - asyncio.get_running_loop().time()))


async def go_upstream(host: Host, key: Digest) -> None:
    """Let the runtime of a host go upstream, as the router says."""
    advice = await acquire(host, key)
    assert isinstance(advice, Upstream)
    await advice.lease.release(LeaseEnd.DONE)


async def feed(host: Host, key: Digest, failed: Mapping[str, str] | None = None) -> Feed:
    advice = await acquire(host, key, failed)
    assert isinstance(advice, Feed)
    return advice


def names(advice: Feed) -> list[str]:
    """The ids of the holders. The members in the lists of the hosts have their URL as id."""
    return [each.peer.id for each in advice.holders]


def homes(host: Host) -> HomeSet:
    """The homes, as a host sees them."""
    return host.directory._homes  # pyright: ignore[reportPrivateUsage] - nothing else shows it


def home_of(hosts: list[Host], key: Digest) -> Host:
    """The first home of a key."""
    first = homes(hosts[0]).homes_of(slot_of(key))[0]
    return next(each for each in hosts if each.name == first)


async def until_told(hosts: list[Host], key: Digest) -> None:
    """Wait until those homes of a key that are among `hosts` know a holder: they hear of it a moment later."""
    ids = homes(hosts[0]).homes_of(slot_of(key))
    records = [each.directory.home.records for each in hosts if each.name in ids]
    await until(lambda: all(each.find(key).holders for each in records))


def fetchers(home: Host, key: Digest) -> dict[str, Fetcher]:
    """What a home knows about the hosts that fetch a key."""
    found = [each.hosts for each in home.directory.home.claims.table.fetches() if each.key == key]
    return dict(found[0]) if found else {}
