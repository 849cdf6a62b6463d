"""What holds for a home whatever the hosts do, in any order: found by trying."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.mirror.membership.directory.home import MIB, Home

from peili.mirror import FailureReason, LeaseEnd
from peili.mirror.membership.directory.fetcher import Fetcher
from peili.mirror.membership.directory.fetches import Fetch
from peili.mirror.membership.directory.roots import MAX_ROOTS
from peili.mirror.peer_api.leases import FeedFrom, GoUpstream, WaitFor

HOSTS = st.sampled_from("abcdefghij")
KEYS = st.sampled_from(["one", "two"])
MOST_WAITED = 5.0
"""Seconds after which each host has an answer."""


class Anything(RuleBasedStateMachine):
    """Hosts that ask, receive, fail, lie and leave."""

    def __init__(self) -> None:
        super().__init__()
        zones = {host: "west" if host in "abcd" else "east" for host in "abcdefghi"}
        self.home = Home(zones, children=2, claim_keys=2, claim_hosts=15)
        self.feeders: dict[tuple[str, str], tuple[str, ...]] = {}
        self.offsets = Counter[tuple[str, str]]()

    @property
    def fetches(self) -> list[Fetch]:
        return list(self.home.claims.table.fetches())

    @rule(
        host=HOSTS,
        key=KEYS,
        can_share=st.booleans() | st.just(True),
        failed=st.dictionaries(HOSTS, st.sampled_from(list(FailureReason)), max_size=3),
        rate=st.none() | st.floats(1, 1e9),
        follows=st.booleans(),
    )
    def ask(
        self, host: str, key: str, *, can_share: bool, failed: dict[str, str], rate: float | None, follows: bool
    ) -> None:
        failed.pop(host, None)
        offset = self.offsets[key, host]
        changes = {"can_share": can_share, "failed": failed, "upstream_rate": rate, "follows": follows}
        waited, grant = 0.0, self.home.ask(host, offset, key, **changes)
        while isinstance(grant, WaitFor):
            assert grant.seconds > 0
            waited += grant.seconds
            assert waited <= MOST_WAITED
            self.home.now += grant.seconds
            grant = self.home.ask(host, offset, key, **changes)
        again = self.home.ask(host, offset, key, **changes)
        if isinstance(grant, FeedFrom):
            assert isinstance(again, FeedFrom)
            ids = [each.id for each in grant.holders]
            assert [each.id for each in again.holders] == ids
            assert ids
            assert not {host, *failed} & set(ids)
            assert len(ids) == 1 or all(each.available is None for each in grant.holders)
        else:
            assert grant == GoUpstream()
            is_whole = isinstance(again, FeedFrom) and all(each.available is None for each in again.holders)
            assert again == grant or is_whole, "only a whole holder that is free now is better"

    @rule(host=HOSTS, key=KEYS, grown=st.integers(0, 8 * MIB), said=st.integers(0, 64 * MIB))
    def receive(self, host: str, key: str, grown: int, said: int) -> None:
        self.offsets[key, host] = min(64 * MIB, self.offsets[key, host] + grown)
        feeder = next((each.feeders[0] for each in self.known(host, key) if each.feeders), None)
        self.home.report(host, self.offsets[key, host], feeder, key, source_available=said)

    @rule(host=HOSTS, key=KEYS, feeder=HOSTS, end=st.sampled_from([None, *LeaseEnd, FailureReason.SILENT]))
    def say_anything(self, host: str, key: str, feeder: str, end: str | None) -> None:
        self.home.report(host, self.offsets[key, host], feeder, key, end=end)

    @rule(host=HOSTS, key=KEYS)
    def be_queued(self, host: str, key: str) -> None:
        self.home.report(host, 0, None, key, is_queued=True)

    @rule(host=HOSTS, key=KEYS, can_share=st.booleans())
    def fetch_without_a_grant(self, host: str, key: str, can_share: bool) -> None:
        offset = self.offsets[key, host]
        assert self.home.ask(host, offset, key, can_share=can_share, is_fetching=True) == GoUpstream()

    @rule(host=HOSTS, key=KEYS, is_whole=st.booleans())
    def store(self, host: str, key: str, is_whole: bool) -> None:
        self.home.has(host, None if is_whole else self.offsets[key, host], key)

    @rule(host=HOSTS)
    def die(self, host: str) -> None:
        self.home.records.forget(host)
        self.home.sequences.pop(host, None)

    @rule(seconds=st.floats(0.01, 20))
    def wait(self, seconds: float) -> None:
        self.home.now += seconds
        self.home.claims.expire()

    @rule()
    def change_members(self) -> None:
        self.home.claims.settle()

    def known(self, host: str, key: str) -> list[Fetcher]:
        return [fetch.hosts[host] for fetch in self.fetches if fetch.key == key and host in fetch.hosts]

    @invariant()
    def nobody_is_fed_through_itself(self) -> None:
        for fetch in self.fetches:
            for fetcher in fetch.hosts.values():
                seen, current = set[str](), fetcher
                while current.feeders and current.feeders[0] in fetch.hosts:
                    assert current.host not in seen
                    seen.add(current.host)
                    current = fetch.hosts[current.feeders[0]]

    @invariant()
    def nobody_feeds_more_than_it_may(self) -> None:
        for fetch in self.fetches:
            granted = Counter(
                feeder for each in fetch.hosts.values() for feeder in each.feeders if (fetch.key, each.host)
            )
            told = {each: len(children) for each, children in fetch.children.items()}
            assert told == granted

    @invariant()
    def at_most_three_fetch_for_the_others(self) -> None:
        for fetch in self.fetches:
            assert len(fetch.roots) <= MAX_ROOTS

    @invariant()
    def what_is_remembered_is_bounded_and_agrees(self) -> None:
        claims = self.home.claims
        assert len(claims) == sum(len(fetch.hosts) for fetch in self.fetches) <= self.home.limits.claim_hosts
        assert len(self.fetches) <= self.home.limits.claim_keys
        for fetch in self.fetches:
            assert fetch.active == sum(not each.is_whole for each in fetch.hosts.values())
            assert fetch.recorded <= fetch.hosts.keys()
            assert set(fetch.roots) == {each.host for each in fetch.hosts.values() if each.is_root}
            for fetcher in fetch.hosts.values():
                place, depth, end = fetcher.place, fetcher.depth, fetcher.path_end
                fetch.settle_path(fetcher.host)
                assert (fetcher.place, fetcher.depth, fetcher.path_end) == (place, depth, end)


Anything.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # a failure is shown as it was found, at once
    suppress_health_check=[HealthCheck.too_slow],
)
TestAnything = Anything.TestCase
