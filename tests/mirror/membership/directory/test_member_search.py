"""How often a host looks for members after messages from hosts that are no members, as far as it knows."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import pairwise

import pytest
from tests.mirror.membership.directory.cluster import Host, cluster
from tests.support.waiting import until

from peili.mirror import Limits
from peili.mirror.membership.directory.member_search import SHORTEST, SearchPace

pytestmark = pytest.mark.anyio

LONGEST = 8.0


class Messages:
    """Unknown hosts speak all the time, on a clock that tests move. Something is learned if they say so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.version = 7
        self._pace = SearchPace(LONGEST)

    def hear(self, seconds: float) -> list[float]:
        """Return the times of the searches in so many seconds."""
        times: list[float] = []
        stop = self.now + seconds
        while (due := max(self.now, self._pace.due(self.now, self.version))) < stop:
            self.now = due
            self._pace.search(self.now, self.version)
            times.append(self.now)
        self.now = stop
        return times


def test_searches_that_find_nothing_get_rarer() -> None:
    messages = Messages()
    assert messages.hear(0.01), "the first message counts at once"
    messages.hear(60)
    times = messages.hear(600)
    assert {later - earlier for earlier, later in pairwise(times)} == {LONGEST}
    assert times, "but they do not end"


def test_searches_that_find_something_are_frequent() -> None:
    messages = Messages()
    messages.hear(600)
    for _ in range(20):
        messages.version += 1
        assert messages.hear(2 * SHORTEST), "something was learned, so there may be more"


def test_after_a_quiet_time_searches_are_frequent_again() -> None:
    messages = Messages()
    messages.hear(600)
    messages.now += 3 * LONGEST
    assert len(messages.hear(2 * SHORTEST)) > 1


async def test_hosts_that_start_one_after_the_other_find_each_other_without_waiting_for_the_next_try() -> None:
    """Members are asked again after ten minutes here, so only a message makes a host look for them."""
    limits = Limits(
        lookup_timeout=5, lookup_ttl=0.001, miss_ttl=0.001, directory_heartbeat=1, backoff_min=600, backoff_max=600
    )
    async with cluster(5, limits=limits) as hosts:
        await asyncio.gather(*(each.stop() for each in hosts))
        for number, host in enumerate(hosts, 1):
            await host.start()
            await until(partial(_know_each_other, hosts[:number]))


def _know_each_other(hosts: list[Host]) -> bool:
    names = frozenset(each.name for each in hosts)
    return all(each.directory.members.live().ids == names - frozenset((each.name,)) for each in hosts)
