"""What a home decides: who goes upstream, and who feeds whom."""

from __future__ import annotations

from typing import Any

from peili.mirror import FailureReason, LeaseEnd, Limits
from peili.mirror.membership.directory.claims import Claims
from peili.mirror.membership.directory.records import Records
from peili.mirror.peer_api.directory import Holding, Holdings
from peili.mirror.peer_api.leases import ClaimRequest, FeedFrom, GoUpstream, Grant, LeaseReport, WaitFor

KEY = "sha256:" + "0" * 64
MIB = 1024 * 1024


class Home:
    """The claims of a home, with a clock that the test moves."""

    def __init__(self, zones: dict[str, str] | None = None, **limits: Any) -> None:
        self.now = 1000.0
        self.limited = list[str]()
        self.sequences = dict[str, int]()
        self.limits = Limits(**limits)
        self.records = Records("home", self.limits, self.limited.append, lambda: self.now)
        self.claims = Claims(
            self.limits,
            self.records,
            zone_of=(zones or {}).get,
            limited=self.limited.append,
            clock=lambda: self.now,
        )

    def ask(self, host: str, offset: int = 0, key: str = KEY, **changes: Any) -> Grant:
        values = {"size": 64 * MIB, "can_share": True, **changes}
        return self.claims.acquire(ClaimRequest(host, key, offset, **values))

    def feeder(self, host: str, offset: int = 0, key: str = KEY, **changes: Any) -> str:
        """Ask, and return the only feeder."""
        grant = self.ask(host, offset, key, **changes)
        assert isinstance(grant, FeedFrom), grant
        [holder] = grant.holders
        return holder.id

    def has(self, host: str, available: int | None, key: str = KEY) -> None:
        """Report to the records what the store of `host` has; None is everything."""
        self.sequences[host] = sequence = self.sequences.get(host, -1) + 1
        homes = ("home",) if sequence == 0 else None
        holding = Holding(key, 64 * MIB, available)
        assert self.records.apply(host, Holdings("s", sequence, 60.0, homes, True, have=(holding,)))

    def report(self, host: str, offset: int, feeder: str | None = None, key: str = KEY, **changes: Any) -> list[str]:
        superseded, seconds = self.claims.report(host, [LeaseReport(key, offset, feeder, **changes)], None)
        assert seconds > 0
        return superseded


def test_the_first_host_goes_upstream_and_the_next_ones_form_a_chain() -> None:
    home = Home()
    assert home.ask("a") == GoUpstream()
    assert [home.feeder(each) for each in "bcd"] == ["a", "b", "c"]


def test_a_repeated_request_gets_the_same_answer() -> None:
    home = Home()
    for _ in range(2):
        assert home.ask("a") == GoUpstream()
        assert home.feeder("b") == "a"
        assert home.feeder("c") == "b"


def test_whole_holders_come_first_and_a_lone_host_gets_several() -> None:
    home = Home()
    for host in "xyz":
        home.has(host, None)
    grant = home.ask("a")
    assert isinstance(grant, FeedFrom)
    assert {each.id for each in grant.holders} == {"x", "y", "z"}
    assert all(each.available is None for each in grant.holders)


def test_a_host_that_got_nothing_from_upstream_is_not_waited_for() -> None:
    home = Home()
    home.ask("a")
    assert home.feeder("b") == "a"
    home.now += home.limits.claim_timeout
    home.claims.expire()
    assert home.report("b", 0, "a") == [KEY]
    assert home.ask("b") == GoUpstream()
    assert home.feeder("c") == "b"


def test_bytes_prove_a_claim() -> None:
    home = Home()
    home.ask("a")
    assert home.feeder("b") == "a"
    home.has("a", 1)
    home.now += 10 * home.limits.claim_timeout
    home.has("a", 2)
    home.claims.expire()
    assert home.report("b", 1, "a") == []
    assert home.feeder("b", 1) == "a"


def test_a_host_that_can_not_share_goes_upstream_without_holding_up_the_others() -> None:
    home = Home()
    assert home.ask("a", can_share=False) == GoUpstream()
    assert home.ask("b") == GoUpstream()
    assert home.feeder("c") == "b"


def test_a_feeder_that_failed_is_replaced() -> None:
    home = Home()
    for host in "abcd":
        home.ask(host)
    home.has("a", 5 * MIB)
    assert home.feeder("c", MIB, failed={"b": FailureReason.UNREACHABLE}) == "a"


def test_wrong_bytes_bar_both_ends_of_the_link() -> None:
    home = Home()
    for host in "abc":
        home.ask(host)
    home.has("a", MIB)
    home.ask("c", MIB, failed={"b": FailureReason.WRONG})
    assert home.feeder("d") == "a"


def test_nobody_is_sent_upstream_while_the_members_change() -> None:
    home = Home()
    home.claims.settle()
    grant = home.ask("a")
    assert isinstance(grant, WaitFor)
    home.now += grant.seconds
    assert home.ask("a") == GoUpstream()


def test_a_host_that_is_done_feeds_others_and_one_that_left_is_forgotten() -> None:
    home = Home()
    for host in "abc":
        home.ask(host)
    home.has("a", 64 * MIB)
    home.report("b", 64 * MIB, "a", end=LeaseEnd.DONE)
    home.report("c", 0, "b", end=LeaseEnd.GONE)
    assert len(home.claims) == 2
    assert home.feeder("d") == "b"


def test_a_full_home_sends_hosts_upstream() -> None:
    home = Home(claim_keys=1, claim_hosts=2)
    home.ask("a")
    assert home.ask("a", key="another") == GoUpstream()
    assert home.feeder("b") == "a"
    assert home.ask("c") == GoUpstream()
    assert home.limited == ["claim_keys", "claim_hosts"]
    assert len(home.claims) == 2
