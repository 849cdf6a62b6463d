"""The directory between real mirrors: what is found, by how many questions, and what happens when homes fail."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route
from tests.mirror.doors.in_memory_host import client_for
from tests.mirror.membership.directory.cluster import Host, are_synced, cluster, find
from tests.mirror.tls.tls_hosts import host_keys
from tests.support.certificates import Authority
from tests.support.neighbours import Neighbour, neighbours, refusing_url, served, silent_url
from tests.support.plain_http import plain_client
from tests.support.ports import free_ports
from tests.support.waiting import until

from peili.mirror import Digest, FailureReason, Feed, Limits, Mirror, Peer, PeerCertificates, Want, serve
from peili.mirror.client.client import PeerClient
from peili.mirror.client.connection import ResponseHead
from peili.mirror.membership.directory.directory import message_interval
from peili.mirror.membership.directory.homes import HomeSet, slot_of
from peili.mirror.peer_api.directory import (
    HOLDERS_PATH,
    HOLDINGS_PATH,
    HoldersAnswer,
    HoldersQuery,
    Holdings,
    KnownHolder,
)
from peili.mirror.peer_api.messages import MAX_MESSAGE, MAX_SECONDS
from peili.routers.static import StaticRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

DATA = b"a layer"
KEY = Digest.of(DATA)
UNKNOWN = Digest.of(b"nobody has it")
COUNT = 12
FIRST = Holdings("s", 0, 60, ("x",), True)


def homes_of(hosts: list[Host], key: Digest = KEY) -> list[Host]:
    """The homes of a key; a home that is no host of the test is left out."""
    by_name = {each.name: each for each in hosts}
    homes = hosts[0].directory._homes.homes_of(slot_of(key))  # pyright: ignore[reportPrivateUsage]
    return [by_name[name] for name in homes if name in by_name]


def are_told(homes: list[Host], key: Digest = KEY) -> bool:
    """Whether the homes know a holder of the key."""
    return all(each.directory.home.records.find(key).holders for each in homes)


def without(hosts: list[Host], *others: Host) -> list[Host]:
    return [each for each in hosts if each not in others]


async def test_a_host_that_is_its_only_member_does_not_claim_to_know_what_it_has() -> None:
    """Until it finds out that this member is itself, it reports to itself as to any home."""
    urls = [f"http://127.0.0.1:{port}" for port in free_ports(2)]
    alone, other = [Peer("member-0", (urls[0],))], [Peer(f"member-{n}", (url,)) for n, url in enumerate(urls)]
    holder = Host("h0", urls[0], alone, insecure=True)
    asking = Host("h1", urls[1], other, insecure=True)
    await holder.start()
    try:
        records = holder.directory.home.records
        await until(lambda: not holder.router.peers() and not homes_known(holder))
        assert not records.hosts
        holder.store.add(DATA)
        await asking.start()
        try:
            await until(
                lambda: asking.directory.members.live().ids == frozenset({"h0"}) and "h0" in homes_known(asking)
            )
            assert await find(asking, KEY) == ["member-0"]
        finally:
            await asking.stop()
    finally:
        await holder.stop()


def homes_known(host: Host) -> frozenset[str]:
    return host.directory._homes.ids  # pyright: ignore[reportPrivateUsage]


async def until_no_member_is_asked(hosts: list[Host], look_up: Callable[[], Awaitable[None]]) -> None:
    """Repeat `look_up` until it costs no question to a member itself.

    On a slow machine, homes may answer too late, and then the members are asked.
    """
    async with asyncio.timeout(300):  # one look-up by all hosts takes a while there
        while True:
            before = sum(each.questions() for each in hosts)
            await look_up()
            if sum(each.questions() for each in hosts) == before:
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("count", [2, 4, COUNT])
async def test_a_key_is_found_or_not_without_a_question_to_the_members(count: int) -> None:
    async with cluster(count) as hosts:
        await until(lambda: are_synced(hosts))
        holder = hosts[1]
        holder.store.add(DATA)
        homes = homes_of(hosts)
        await until(lambda: are_told(homes))

        async def look_up_both() -> None:
            for host in hosts:
                assert await find(host, KEY) == ([holder.url] if host is not holder else [])
                assert await find(host, UNKNOWN) == []

        await until_no_member_is_asked(hosts, look_up_both)
        holder.store.remove(KEY)
        await until(lambda: not any(each.directory.home.records.find(KEY).holders for each in homes))

        async def look_up_removed() -> None:
            for host in hosts:
                assert await find(host, KEY) == []

        await until_no_member_is_asked(hosts, look_up_removed)


async def test_nothing_is_missed_while_a_cluster_starts() -> None:
    async with cluster(COUNT, limits=Limits(lookup_timeout=5, lookup_ttl=0.001, directory_heartbeat=1)) as hosts:
        hosts[3].store.add(DATA)
        for _ in range(20):
            assert await find(hosts[0], KEY) == [hosts[3].url]
            await asyncio.sleep(0.01)


async def test_what_a_host_has_is_found_within_a_second_after_a_home_vanished() -> None:
    async with cluster(COUNT) as hosts:
        await until(lambda: are_synced(hosts))
        homes = homes_of(hosts)
        [holder, asking, *_] = without(hosts, *homes)
        holder.store.add(DATA)
        await until(lambda: are_told(homes))
        for home in homes:
            await home.stop()
            assert await find(asking, KEY) == [holder.url]

        async def look_up() -> None:
            assert await find(asking, KEY) == [holder.url]

        await until_no_member_is_asked(without(hosts, *homes), look_up)


async def test_a_home_that_restarts_is_told_everything_again() -> None:
    async with cluster(COUNT) as hosts:
        await until(lambda: are_synced(hosts))
        home, *_ = homes_of(hosts)
        holder = without(hosts, *homes_of(hosts))[0]
        holder.store.add(DATA)
        await until(lambda: are_told(homes_of(hosts)))
        await home.stop()
        await home.start()
        assert await find(holder, UNKNOWN) == []
        await until(lambda: are_synced(hosts) and are_told([home]))


async def test_a_dead_member_that_sends_something_is_alive_at_once() -> None:
    limits = Limits(lookup_timeout=5, lookup_ttl=0.001, miss_ttl=0.001, backoff_min=600, backoff_max=600)
    async with cluster(2, limits=limits) as hosts:
        for each in hosts:
            await each.stop()
        asking, dead = hosts
        await dead.start()
        await asking.start()  # its first question is answered; the other one's was not
        await until(lambda: are_synced(hosts))
        await dead.stop()
        assert await find(asking, UNKNOWN) == []
        await until(lambda: [each.peer.id for each in asking.router.unreachable()] == [dead.url])
        await dead.start()
        await until(lambda: are_synced(hosts))


async def test_a_home_that_was_away_for_long_is_a_home_again_as_soon_as_it_reports() -> None:
    async with cluster(COUNT) as hosts:
        await until(lambda: are_synced(hosts))
        home, *others = hosts
        await home.stop()
        await until(lambda: all(home.name in each.directory._client.replaced for each in others))  # pyright: ignore[reportPrivateUsage]
        for each in others:
            each.directory._client.replaced[home.name] = float("inf")  # pyright: ignore[reportPrivateUsage]
        await home.start()
        await until(lambda: are_synced(hosts))


async def test_a_host_that_restarts_says_what_it_has_now() -> None:
    async with cluster(COUNT) as hosts:
        await until(lambda: are_synced(hosts))
        homes = homes_of(hosts)
        [holder, asking, *_] = without(hosts, *homes)
        holder.store.add(DATA)
        await until(lambda: are_told(homes))
        await holder.stop()
        holder.store.remove(KEY)
        await holder.start()
        await until(
            lambda: are_synced(hosts) and not any(each.directory.home.records.find(KEY).holders for each in homes)
        )
        assert await find(asking, KEY) == []


async def test_members_without_a_directory_are_asked_themselves() -> None:
    old = [Neighbour("old", KEY), Neighbour("older")]
    async with neighbours(*old), cluster(COUNT, *(Peer(each.url, (each.url,)) for each in old)) as hosts:
        await until(lambda: are_synced(hosts))
        for host in hosts:
            assert await find(host, KEY) == [old[0].url]
        assert set(old[0].asked) == set(old[1].asked) == {str(KEY)}

        async def look_up() -> None:
            old[0].asked.clear()
            assert await find(hosts[0], UNKNOWN) == []
            assert old[0].asked == [UNKNOWN]

        await until_no_member_is_asked(hosts, look_up)


async def test_hosts_that_know_different_members_still_find_what_these_have() -> None:
    async with cluster(COUNT) as hosts:
        one, other = hosts[0], hosts[-1]
        one.members[:] = one.members[:-1]
        other.members[:] = other.members[1:]
        for host in (one, other):
            await host.stop()
            await host.start()
        for holder in hosts[1:-1]:
            holder.store.add(holder.name.encode())
        keys = {holder: Digest.of(holder.name.encode()) for holder in hosts[1:-1]}
        everybody = [*hosts[1:], one]  # the first of them knows all
        await until(lambda: are_synced(hosts[1:-1], [each.name for each in hosts[1:-1]]))
        await until(lambda: all(are_told(homes_of(everybody, key), key) for key in keys.values()))
        for asking in (one, other):
            for holder, key in keys.items():
                assert await find(asking, key) == [holder.url]


async def say(host: Host, sender: str, message: bytes = FIRST.encode(), path: str = HOLDINGS_PATH) -> int:
    """Send a message to a host. Returns the status of the answer."""
    async with plain_client(trust_env=False, timeout=20) as client:
        answer = await client.post(f"{host.url}{path}", content=message, headers={"Peili-Id": sender})
        assert answer.text.count("\n") <= 1
        return answer.status_code


async def test_a_host_is_only_believed_about_itself() -> None:
    elsewhere = Peer("elsewhere", ("http://127.0.0.2:5", "http://[::2]:5"))
    by_name = Peer("by-name", ("http://localhost:5",))
    async with cluster(2, elsewhere, by_name) as hosts:
        home = hosts[0]
        for sender, status in (("by-name", 204), ("stranger", 403), ("elsewhere", 403), ("", 403), ("h0", 403)):
            assert await say(home, sender) == status
        assert not {"stranger", "elsewhere"} & {*home.directory.home.records.hosts}


async def test_everybody_is_told_the_same_about_who_has_a_key() -> None:
    """So nobody gains anything from a question in the name of another host."""
    async with cluster(2) as hosts:
        home, holder = hosts
        holder.store.add(DATA)
        await until(lambda: are_synced(hosts) and are_told([home]))
        before, answers = {*home.directory.home.records.hosts}, list[HoldersAnswer]()
        async with plain_client(trust_env=False, timeout=20) as client:
            for sender in (holder.name, "stranger", home.name, ""):
                url, query = f"{home.url}{HOLDERS_PATH}", HoldersQuery(str(KEY)).encode()
                response = await client.post(url, content=query, headers={"Peili-Id": sender})
                answers.append(HoldersAnswer.parse(response.content))
        assert [each.id for each in answers[0].holders] == [holder.name]
        assert answers == [answers[0]] * 4
        assert {*home.directory.home.records.hosts} == before, "a question is no report"


async def test_a_certificate_shows_whom_a_record_is_about(tmp_path: Path) -> None:
    key = bytes(32)
    by_name = Peer("by-name", ("https://localhost:5",))
    async with cluster(2, by_name, keys=lambda name: host_keys(tmp_path, name, key)) as hosts:
        await until(lambda: are_synced(hosts))
        home, client = Peer("h0", (hosts[0].url,)), hosts[1].mirror._context.client  # pyright: ignore[reportPrivateUsage]
        for sender, status in (("h1", 204), ("by-name", 403)):
            head, _ = await client.request(
                "POST",
                home,
                HOLDINGS_PATH,
                FIRST.encode(),
                timeout=20,
                max_response=1000,
                headers={"Peili-Id": sender},
            )
            assert head.status == status


async def test_what_auth_returns_shows_whom_a_record_is_about() -> None:
    def node(connection: HTTPConnection) -> str:
        return connection.headers["x-node"]

    members = [Peer("h1", ("http://h1.example:5",)), Peer("h2", ("http://h2.example:5",))]
    mirror = Mirror(MemoryStore(), StaticRouter(members), identity="h0", auth=node)
    async with mirror, client_for(mirror.peer, "10.0.0.9") as client:
        await until(mirror.ready)
        for sender, status in (("h1", 204), ("h2", 403)):
            headers = {"x-node": "h1", "Peili-Id": sender, "Content-Type": "application/json"}
            response = await client.post(HOLDINGS_PATH, content=FIRST.encode(), headers=headers)
            assert response.status_code == status


async def test_a_name_in_a_certificate_shows_whom_a_record_is_about(tmp_path: Path) -> None:
    """The certificates of this authority show no id, but the hosts in the URLs of the members."""
    authority = Authority(tmp_path / "authority")
    one = authority.issue(tmp_path / "one", "127.0.0.1")
    members = [Peer("h1", ("https://127.0.0.1:5",)), Peer("h2", ("https://h2.example:5",))]
    tls = PeerCertificates(one.ca, one.cert, one.key)
    mirror = Mirror(MemoryStore(), StaticRouter(members), identity="h0", peer_tls=tls)
    async with (
        mirror,
        serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0"),
        httpx.AsyncClient(verify=one.client_context(), timeout=60, trust_env=False) as client,
    ):
        await until(mirror.ready)
        for sender, status in (("h1", 204), ("h2", 403)):
            url = f"{mirror.identity.urls[0]}{HOLDINGS_PATH}"
            response = await client.post(url, content=FIRST.encode(), headers={"Peili-Id": sender})
            assert response.status_code == status


async def test_a_host_that_never_answers_cannot_take_the_id_of_another_one() -> None:
    """Anybody can announce an id by mDNS."""
    async with cluster(2, Peer("h1", (refusing_url(),))) as hosts:

        def knows_the_right_one() -> bool:
            member = hosts[0].directory.members.member("h1")
            return member is not None and member.urls == (hosts[1].url,)

        await until(knows_the_right_one)
        assert await say(hosts[0], "h1") == 204


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (b"", 400),
        (b"{}", 400),
        (b"[" * 100_000, 400),
        (b" " * (MAX_MESSAGE + 1), 413),
        (Holdings("s", 5, 60, ("x",), True).encode(), 409),
        (Holdings("s", 0, 60, None, True).encode(), 409),
    ],
)
async def test_a_message_that_is_malformed_or_out_of_sequence_is_refused(message: bytes, status: int) -> None:
    async with cluster(1, Peer("by-name", ("http://localhost:5",))) as [home]:
        assert await say(home, "by-name", message) == status
        if status in {400, 413}:
            assert await say(home, "by-name", message, "/_router/v1/holders") == status


Answer = Callable[[HoldersQuery], Response | None]


@asynccontextmanager
async def false_home(answer: Answer, says_it_lacks_keys: asyncio.Event | None = None) -> AsyncGenerator[str]:
    """A member that takes every record, and answers queries with `answer`; None: it does not answer. Yields its URL.

    It has no key. Asked for one, it says so when `says_it_lacks_keys` is set, or at once.
    """
    headers = {"Peili-Id": "false"}

    async def hello(_: Request) -> Response:
        return Response(headers=headers)

    async def take(request: Request) -> Response:
        await request.body()
        return Response(status_code=204, headers=headers)

    async def query(request: Request) -> Response:
        response = answer(HoldersQuery.parse(await request.body()))
        if response is None:
            await asyncio.sleep(60)
            raise AssertionError("unreachable")
        response.headers.update(headers)
        return response

    async def no_key(_: Request) -> Response:
        if says_it_lacks_keys is not None:
            await says_it_lacks_keys.wait()
        return Response(status_code=404, headers=headers)

    routes = [
        Route("/v2/", hello),
        Route("/_router/v1/hello", hello),
        Route("/_router/v1/holdings", take, methods=["POST"]),
        Route("/_router/v1/holders", query, methods=["POST"]),
        Route("/_router/keys/{key:path}", no_key, methods=["HEAD"]),
    ]
    async with served(Starlette(routes=routes)) as url:
        yield url


def answers(*holders: str, hosts: int | None = 0) -> Answer:
    """Says that these hosts have the key, and that all of the first `hosts` hosts would be named."""
    known = None if hosts is None else frozenset(f"h{number}" for number in range(hosts))
    answer = HoldersAnswer(tuple(KnownHolder(each, 1) for each in holders), "v", known)
    return lambda _: Response(answer.encode())


FALSE_ANSWERS: dict[str, Answer] = {
    "nobody has it": answers(hosts=COUNT),
    "it knows nobody": answers(),
    "no list of hosts": answers(hosts=None),
    "strangers have it": answers("x", "h99", "false", hosts=COUNT),
    "no document": lambda _: Response(b"\0"),
    "too large": lambda _: Response(bytes(MAX_MESSAGE + 1)),
    "not found": lambda _: Response(status_code=404),
    "closed": lambda _: Response(status_code=403),
    "failed": lambda _: Response(status_code=500),
    "silent": lambda _: None,
}


def keys_at(hosts: list[Host], home: str) -> list[bytes]:
    """Return content of which `home` is one of the homes, and another of which it is not."""
    homes: HomeSet = hosts[0].directory._homes  # pyright: ignore[reportPrivateUsage]
    contents = [str(number).encode() for number in range(1000)]
    at = [each for each in contents if home in homes.homes_of(slot_of(Digest.of(each)))]
    return [at[0], at[1], next(each for each in contents if each not in at)]


@pytest.mark.parametrize("false", FALSE_ANSWERS)
async def test_a_false_home_hides_nothing(false: str) -> None:
    async with false_home(FALSE_ANSWERS[false]) as url, cluster(COUNT, Peer(url, (url,))) as hosts:
        await until(lambda: are_synced(hosts) and "false" in hosts[0].directory._homes.ids)  # pyright: ignore[reportPrivateUsage]
        asking, holder = hosts[0], hosts[1]
        for data in keys_at(hosts, "false"):
            holder.store.add(data)
            await until(lambda data=data: are_told(homes_of(hosts, Digest.of(data)), Digest.of(data)))  # type: ignore[misc]  # bound early
            assert set(await find(asking, Digest.of(data))) - {url} == {holder.url}


@pytest.mark.parametrize("is_first_lookup_over", [True, False])
async def test_holders_that_a_home_made_up_are_replaced_by_those_that_members_report_themselves(
    is_first_lookup_over: bool,
) -> None:
    limits = Limits(lookup_timeout=5, lookup_ttl=60, miss_ttl=60, directory_heartbeat=1)
    says_it_lacks_keys = asyncio.Event()
    if is_first_lookup_over:
        says_it_lacks_keys.set()
    async with (
        false_home(answers("h4", "h5", hosts=COUNT), says_it_lacks_keys) as url,
        cluster(COUNT, Peer(url, (url,)), limits=limits) as hosts,
    ):
        await until(lambda: are_synced(hosts) and "false" in hosts[0].directory._homes.ids)  # pyright: ignore[reportPrivateUsage]
        key = Digest.of(keys_at(hosts, "false")[0])
        advice = await hosts[0].router.acquire(Want(key))
        assert isinstance(advice, Feed)
        failed = {each.peer.id: FailureReason.REFUSED for each in advice.holders}
        assert set(failed) == {hosts[4].url, hosts[5].url}
        if is_first_lookup_over:
            await until(lambda: hosts[0].is_lookup_over(key))
        hosts[6].store.add(keys_at(hosts, "false")[0])
        again = asyncio.create_task(hosts[0].router.acquire(Want(key, failed=failed)))
        await asyncio.wait([again], timeout=0.3)  # time to join the first lookup, if that were possible
        says_it_lacks_keys.set()
        advice = await again
        assert isinstance(advice, Feed)
        assert [each.peer.id for each in advice.holders] == [hosts[6].url]


@pytest.mark.parametrize("how", ["silent", "refusing"])
async def test_members_that_never_answer_are_no_homes(how: str) -> None:
    with silent_url() as silent:
        url = silent if how == "silent" else "http://127.0.0.1:9"
        async with cluster(COUNT, *(Peer(f"{url}/{n}", (f"{url}/{n}",)) for n in range(5))) as hosts:
            await until(lambda: are_synced(hosts))
            hosts[3].store.add(DATA)
            await until(lambda: are_told(homes_of(hosts)))
            assert await find(hosts[0], KEY) == [hosts[3].url]


async def test_an_error_while_the_directory_is_updated_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(2) as [host, other]:
        await until(lambda: are_synced([host, other]))
        with monkeypatch.context() as patch:
            patch.setattr(host.directory.home, "expire", lambda: 1 / 0)
            await until(lambda: "updating the directory failed, which is a bug" in caplog.text)
        await other.stop()
        await other.start()  # it is a home again only if the members are followed
        await until(lambda: are_synced([host, other]))
        key = other.store.add(b"content").digest
        await until(lambda: other.directory.home.records.find(key).holders)
        assert await find(host, key) == [other.url]


def test_messages_come_as_often_as_they_can_say() -> None:
    assert message_interval(3, Limits(directory_heartbeat=86_400)) == MAX_SECONDS


async def test_members_that_change_all_the_time_cost_a_home_little(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, counts = asyncio.get_running_loop(), Counter[str]()

    def counting(name: str, function: Callable[[], None]) -> Callable[[], None]:
        def count() -> None:
            counts[name] += 1
            function()

        return count

    async with cluster(1) as [host]:
        directory = host.directory
        monkeypatch.setattr(directory.home, "expire", counting("expire", directory.home.expire))
        monkeypatch.setattr(directory.members, "ask_unknown", counting("update", directory.members.ask_unknown))
        started = loop.time()
        while counts["update"] < 10:
            directory.members.mark_old(Peer("changing", ("http://127.0.0.1:1",)))
            await asyncio.sleep(0.01)
        assert counts["expire"] <= loop.time() - started + 1


async def test_an_unexpected_error_of_a_request_ends_no_reports(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object, **__: object) -> tuple[ResponseHead, bytes]:
        raise LookupError("a bug")

    async with cluster(2) as [host, other]:
        await until(lambda: are_synced([host, other]))
        with monkeypatch.context() as patch:
            patch.setattr(PeerClient, "request", fail)
            other.store.add(b"first")
            await until(lambda: f"asking the home {host.url} failed, which is a bug" in caplog.text)
        key = other.store.add(b"second").digest
        await until(lambda: host.directory.home.records.find(key).holders)
