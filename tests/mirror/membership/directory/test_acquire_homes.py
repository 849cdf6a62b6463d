"""`MembershipRouter.acquire` with homes that are gone, new, old, slow, busy or wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.mirror.membership.directory.acquiring import (
    acquire,
    feed,
    fetchers,
    go_upstream,
    home_of,
    homes,
    names,
    until_told,
    want,
)
from tests.mirror.membership.directory.cluster import Host, are_synced, cluster
from tests.support.neighbours import Neighbour, neighbours, refusing_url, served
from tests.support.waiting import until

from peili.mirror import Digest, FailureReason, Feed, Lease, LeaseEnd, Limits, Peer, Wait
from peili.mirror.membership.directory import directory as directory_module
from peili.mirror.membership.directory.homes import HomeSet, slot_of
from peili.mirror.peer_api.directory import HoldersAnswer, KnownHolder
from peili.mirror.peer_api.leases import (
    AcquireQuery,
    FeedFrom,
    GoUpstream,
    Grant,
    Granted,
    LeaseReport,
    LeaseReports,
    LeasesAnswer,
    OtherHome,
    WaitFor,
)

pytestmark = pytest.mark.anyio

KEY = Digest.of(b"a layer")
HASTY = Limits(lookup_timeout=1, lookup_ttl=0.001, miss_ttl=0.001, directory_heartbeat=1)
PATIENT = replace(HASTY, lookup_timeout=60)
"""With these, a home that does not answer yet does not count as dead, even on a busy machine."""
SMALL, LARGE = 4, 12
"""The sizes of clusters."""


async def test_the_next_home_decides_if_the_first_one_is_gone_and_that_one_learns_of_the_leases_again() -> None:
    async with cluster(SMALL) as hosts:
        await until(lambda: are_synced(hosts))
        home = home_of(hosts, KEY)
        root, child, *_ = others = [each for each in hosts if each is not home]
        await home.stop()
        await go_upstream(root, KEY)
        advice = await feed(child, KEY)
        assert names(advice) == [root.url]
        advice.lease.use(advice.holders[0])
        advice.lease.progress(77)
        await until(lambda: home.name not in homes(others[0]).ids)
        assert root.name in fetchers(home_of(others, KEY), KEY)
        await home.start()
        await until(lambda: home_of(hosts, KEY) is home and child.name in fetchers(home, KEY))
        assert fetchers(home, KEY)[child.name].offset == 77


async def test_leases_that_end_when_the_mirror_stops_are_reported() -> None:
    async with cluster(SMALL) as hosts:
        await until(lambda: are_synced(hosts))
        home = home_of(hosts, KEY)
        root, child, *_ = [each for each in hosts if each is not home]
        await go_upstream(root, KEY)
        advice = await feed(child, KEY)
        await advice.lease.release(LeaseEnd.GONE)
        await child.stop()
        assert child.name not in fetchers(home, KEY)


async def test_a_home_that_learns_of_a_member_late_is_told_what_it_fetches_and_sends_nobody_else_upstream() -> None:
    absent = refusing_url()
    limits = Limits(lookup_timeout=5, lookup_ttl=0.001, miss_ttl=0.001, backoff_min=600, backoff_max=600)
    async with cluster(2, Peer(absent, (absent,)), limits=limits) as hosts:
        for each in hosts:
            await each.stop()
        root, home = hosts
        key = key_of(home, hosts)
        await home.start()
        await acquire(home, Digest.of(b"something else"))  # the home finds out that nobody answers
        await until(lambda: len(home.router.unreachable()) == 2)
        await root.start()
        await until(lambda: home.name in homes(root).ids)
        await go_upstream(root, key)
        await until(lambda: fetchers(home, key)[root.name].is_root if root.name in fetchers(home, key) else False)
        assert names(await feed(home, key)) == [root.url]


async def test_the_first_member_whose_id_is_known_is_a_home_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other changes of the members are gathered for a moment. Without any home, each host would go upstream."""
    monkeypatch.setattr(directory_module, "_GATHER_TIME", 600)
    async with cluster(2) as hosts:
        root, home = hosts
        await until(lambda: all(each.directory.members.live().ids for each in hosts))
        key = key_of(home, hosts)
        await go_upstream(root, key)
        assert fetchers(home, key)[root.name].is_root
        assert names(await feed(home, key)) == [root.url]


async def test_what_a_host_fetched_before_it_knew_any_home_is_told_to_the_first_home() -> None:
    limits = Limits(lookup_timeout=5, lookup_ttl=0.001, miss_ttl=0.001, backoff_min=0.05, backoff_max=0.1)
    async with cluster(2, limits=limits) as hosts:
        root, home = hosts
        key = key_of(home, hosts)
        await home.stop()
        await root.stop()
        await root.start()
        await go_upstream(root, key)
        await home.start()
        await until(lambda: fetchers(home, key)[root.name].is_root if root.name in fetchers(home, key) else False)
        assert names(await feed(home, key)) == [root.url]


async def test_a_home_is_told_about_a_fetch_although_it_names_another_home_for_an_earlier_one() -> None:
    script = Script(lambda _: Response(status_code=403))  # it does not know the members yet
    async with cluster_with(script) as hosts:
        disputed, plain = (Digest.of(data_at(hosts, "scripted", salt)) for salt in ("disputed", "plain"))
        for key in (disputed, plain):
            await go_upstream(hosts[0], key)
        script.answer = lambda query: (
            Response(OtherHome("h3").encode()) if query.request.key == disputed else grants(GoUpstream())
        )
        await until(lambda: any(each.request.is_fetching and each.request.key == plain for each in script.asked))


async def test_a_home_that_is_told_about_a_fetch_also_learns_that_the_runtime_has_not_begun_it() -> None:
    script = Script(lambda _: Response(status_code=403))
    async with cluster_with(script) as hosts:
        queued, arriving = (Digest.of(data_at(hosts, "scripted", salt)) for salt in ("queued", "arriving"))
        for key in (queued, arriving):
            await go_upstream(hosts[0], key)
        script.answer = lambda _: grants(GoUpstream())
        ingest = hosts[0].store.begin(arriving, 1_000_000)

        def is_told() -> bool:
            ingest.write(b"x")
            return LeaseReport(queued, 0, is_queued=True) in script.taken

        await until(is_told)
        ingest.abort()


def key_of(home: Host, hosts: Collection[Host]) -> Digest:
    """Return a key of which `home` is the first home."""
    every = HomeSet(frozenset(each.name for each in hosts))
    keys = (Digest.of(str(number).encode()) for number in count())
    return next(key for key in keys if every.homes_of(slot_of(key))[0] == home.name)


Answer = Callable[[AcquireQuery], Response | None]


class Script:
    """What a scripted home answers.

    Attributes:
        answer: Returns the answer to a question; None: there is none.
        asked: The questions.
        taken: The reports.
        may_answer: While it is not set, answers wait.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer: Answer = answer
        self.asked: list[AcquireQuery] = []
        self.taken: list[LeaseReport] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[str]:
        """Serve a member called ``scripted``, which takes records and knows none. Yields its URL."""
        routes = [
            Route("/v2/", self._hello),
            Route("/_router/v1/hello", self._hello),
            Route("/_router/v1/holdings", self._take_holdings, methods=["POST"]),
            Route("/_router/v1/acquire", self._acquire, methods=["POST"]),
            Route("/_router/v1/leases", self._take_reports, methods=["POST"]),
            Route("/_router/{path:path}", self._not_found, methods=["POST", "HEAD"]),
        ]
        async with served(Starlette(routes=routes)) as url:
            yield url

    async def _hello(self, _: Request) -> Response:
        return _signed(Response())

    async def _not_found(self, request: Request) -> Response:
        await request.body()
        return _signed(Response(status_code=404))

    async def _take_holdings(self, request: Request) -> Response:
        await request.body()
        return _signed(Response(status_code=204))

    async def _acquire(self, request: Request) -> Response:
        query = AcquireQuery.parse(await request.body(), request.headers["Peili-Id"])
        self.asked.append(query)
        response = self.answer(query)
        if response is None:
            await asyncio.sleep(60)
            raise AssertionError("unreachable")
        await self.may_answer.wait()
        return _signed(response)

    async def _take_reports(self, request: Request) -> Response:
        self.taken.extend(LeaseReports.parse(await request.body()).reports)
        return _signed(Response(LeasesAnswer((), 0.1).encode()))


def _signed(response: Response) -> Response:
    response.headers["Peili-Id"] = "scripted"
    return response


def grants(grant: Grant, *hosts: str) -> Response:
    """The answer of a home that is synced with `hosts`."""
    return Response(Granted(grant, HoldersAnswer((), "v", frozenset(hosts)), 0.1).encode())


def data_at(hosts: list[Host], home: str, salt: str = "") -> bytes:
    """Content whose first home is `home`."""
    contents = (f"{salt}{number}".encode() for number in range(10_000))
    return next(each for each in contents if homes(hosts[0]).homes_of(slot_of(Digest.of(each)))[0] == home)


@asynccontextmanager
async def cluster_with(
    script: Script, count: int = SMALL, others: Collection[Peer] = (), limits: Limits = HASTY
) -> AsyncGenerator[list[Host]]:
    """A cluster with a scripted home."""
    async with script.serve() as url, cluster(count, Peer(url, (url,)), *others, limits=limits) as hosts:
        await until(lambda: are_synced(hosts) and all("scripted" in homes(each).ids for each in hosts), within=300)
        yield hosts


WRONG_ANSWERS: dict[str, Answer] = {
    "an old version": lambda _: Response(status_code=404),
    "busy": lambda _: Response(status_code=429),
    "silent": lambda _: None,
    "nobody knows them": lambda query: grants(FeedFrom((KnownHolder("x", 1), KnownHolder(query.request.host, 1)))),
    "nobody knows that home": lambda query: Response(
        OtherHome("x").encode(), status_code=403 if query.is_final else 200
    ),
}


@pytest.mark.parametrize("wrong", WRONG_ANSWERS)
async def test_a_wrong_home_costs_neither_the_content_nor_the_single_fetch(wrong: str) -> None:
    async with cluster_with(Script(WRONG_ANSWERS[wrong])) as hosts:
        root, child, holder, late = hosts
        data = data_at(hosts, "scripted")
        key = Digest.of(data)
        await go_upstream(root, key)
        assert names(await feed(child, key)) == [root.url]  # the second home decides
        holder.store.add(data)
        await until_fed_by(late, holder, key, dict.fromkeys((root.url, child.url), FailureReason.BROKEN))


async def until_fed_by(host: Host, holder: Host, key: Digest, failed: dict[str, str]) -> None:
    """Ask until `holder` is the only holder in the answer."""
    async with asyncio.timeout(60):
        while True:
            advice = await acquire(host, key, failed)
            await advice.lease.release(LeaseEnd.GONE)
            if isinstance(advice, Feed) and names(advice) == [holder.url]:
                return
            await asyncio.sleep(0.05)


async def test_other_homes_and_whole_holders_are_found_whatever_a_home_says() -> None:
    script = Script(lambda _: Response(OtherHome("h3").encode()))
    async with cluster_with(script) as hosts:
        key = Digest.of(data_at(hosts, "scripted", "another home is named"))
        await go_upstream(hosts[0], key)
        assert fetchers(hosts[3], key)["h0"].is_root
        assert {each.is_final for each in script.asked} == {False}

        data = data_at(hosts, "scripted", "a member has it whole")
        key = Digest.of(data)
        hosts[1].store.add(data)
        await until_told(hosts, key)
        script.answer = lambda _: grants(GoUpstream())
        advice = await feed(hosts[0], key)
        assert names(advice) == [hosts[1].url]
        assert type(advice.lease) is Lease  # the home has not granted it …
        await until(lambda: [(each.key, each.end) for each in script.taken] == [(key, LeaseEnd.GONE)])  # … and is told
        script.answer = lambda _: grants(WaitFor(50))
        assert names(await feed(hosts[0], key)) == [hosts[1].url]


async def test_members_that_no_home_covers_are_asked_themselves() -> None:
    """In a large cluster, the others are not asked."""
    script = Script(lambda _: grants(GoUpstream(), *(f"h{number}" for number in range(LARGE))))
    old = Neighbour("old")
    async with neighbours(old), cluster_with(script, LARGE, [old.peer]) as hosts:
        key = Digest.of(data_at(hosts, "scripted"))
        old.keys.add(key)
        assert names(await feed(hosts[0], key)) == ["old"]


async def test_an_answer_that_comes_too_late_is_undone() -> None:
    script = Script(lambda _: grants(GoUpstream()))
    script.may_answer.clear()
    async with cluster_with(script, limits=PATIENT) as hosts:
        data = data_at(hosts, "scripted")
        key = Digest.of(data)
        hosts[1].store.add(data)
        await until_told(hosts, key)
        advice = await feed(hosts[0], key)  # as the second home says
        assert names(advice) == [hosts[1].url]
        script.may_answer.set()
        await until(lambda: [(each.key, each.end) for each in script.taken] == [(key, LeaseEnd.GONE)])

        script.taken.clear()
        script.may_answer.clear()
        key = Digest.of(data_at(hosts, "scripted", "another"))
        asking = asyncio.ensure_future(hosts[1].router.acquire(want(key)))
        await until(lambda: script.asked[-1].request.key == key)
        asking.cancel()
        await asyncio.wait([asking])
        script.may_answer.set()
        await until(lambda: [(each.key, each.end) for each in script.taken] == [(key, LeaseEnd.GONE)])


async def test_a_home_that_is_only_slow_still_decides_who_goes_upstream() -> None:
    script = Script(lambda _: grants(WaitFor(50)))
    async with cluster_with(script) as hosts:
        key = Digest.of(data_at(hosts, "scripted"))
        script.may_answer.clear()
        asking = asyncio.ensure_future(hosts[0].router.acquire(want(key)))
        second = next(each for each in hosts if each.name == homes(hosts[0]).homes_of(slot_of(key))[1])
        await until(lambda: hosts[0].name in fetchers(second, key))  # it is asked, too, and says upstream
        assert not asking.done()
        script.may_answer.set()
        assert isinstance(await asking, Wait)
        await until(lambda: hosts[0].name not in fetchers(second, key))
