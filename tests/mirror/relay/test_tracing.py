"""Wrong bytes in flight: the hosts compare what they received, and find the link where the wrong byte entered."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
from tests.mirror.relay.feeders import ScriptedFeeder, in_flight
from tests.mirror.relay.peers import Exchange, SaysReceived, peers
from tests.mirror.relay.pulling import MIB, Advice, AdvisingRouter, RecordingLease, content, path_of, pulling
from tests.support.plain_http import plain_client
from tests.support.waiting import WAIT, until
from typing_extensions import override

from peili.mirror import Content, Digest, Feed, Mirror, Peer, Upstream, serve
from peili.mirror.doors.received import ReceivedRoute
from peili.mirror.peer_api.received import ReceivedBytes, encode_received, parse_received
from peili.mirror.relay.verify import DigestMismatch, Verifier
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

DATA = content(3 * MIB + 1000)
DIGEST = Digest.of(DATA)
PATH = "/_relay/v1/received/"
CHANGED = DATA[: MIB + 5] + bytes([DATA[MIB + 5] ^ 1]) + DATA[MIB + 6 :]


def received(data: bytes, *sources: tuple[int, str | None]) -> bytes:
    return encode_received([ReceivedBytes(prefixes(data), list(sources))])


def prefixes(data: bytes) -> Sequence[str]:
    stops = [*range(MIB, len(data), MIB), len(data)]
    return [Digest.of(data[:stop]).encoded[:16] for stop in stops]


LONG = encode_received([ReceivedBytes([*prefixes(DATA), *["0" * 16] * 20], [(0, None)])])
"""What a host says that claims to have received more bytes than the content has."""


class KnowingRouter(AdvisingRouter):
    """Knows peers, too."""

    def __init__(self, *advice: Advice) -> None:
        super().__init__(*advice)
        self.known: list[Peer] = []

    @override
    def peers(self) -> Sequence[Peer]:
        return self.known


class SupersededLease(RecordingLease):
    """Is superseded when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.is_superseded = asyncio.Event()

    @override
    async def superseded(self) -> None:
        await self.is_superseded.wait()


@pytest.mark.parametrize(
    ("by_a", "by_b", "link"),
    [
        (received(DATA, (0, None)), received(CHANGED, (0, "a")), "between a and b"),
        (received(DATA, (0, None)), received(DATA, (0, "a")), "between b and {me}"),
        (received(CHANGED, (0, None)), received(CHANGED, (0, "a")), "between upstream and a"),
        (received(CHANGED, (0, None)), received(CHANGED, (0, None)), "between upstream and b"),
        (received(DATA, (0, None)), received(CHANGED, (0, "c"), (MIB, "a")), "between a and b"),  # nobody knows c
        (received(DATA, (0, None)), received(CHANGED, (0, "a"), (MIB, "c")), None),
        (None, received(CHANGED, (0, "a")), None),
        (received(DATA, (0, None)), None, None),
        (received(DATA, (0, None)), b"[]", None),
        (received(CHANGED, (0, "b")), received(CHANGED, (0, "a")), None),  # a circle, which is a lie
        (LONG, received(CHANGED, (0, "a"), (10 * MIB, "c")), "between a and b"),  # it has not that many bytes
        (LONG, received(CHANGED, (10 * MIB, "a"), (12 * MIB, "c")), None),
    ],
)
async def test_the_link_is_found(
    by_a: bytes | None, by_b: bytes | None, link: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    feeder_a, feeder_b, report = ScriptedFeeder(), ScriptedFeeder(MIB), RecordingLease()
    feeder_a.received, feeder_b.received, feeder_b.sent = by_a, by_b, CHANGED
    async with peers(DATA, feeder_a, feeder_b) as [a, b]:
        router = KnowingRouter(Feed((in_flight(b),)), Upstream(), Upstream(report))
        router.known = [a.peer]
        async with pulling(router) as host:
            getting = asyncio.create_task(host.get(DIGEST))
            await until(lambda: b.requests)
            await feeder_b.set(available=len(DATA))
            assert not (await getting).whole
            me = host.mirror.identity.id
            if link is None:
                await until(lambda: "it was not found out where the wrong byte entered" in caplog.text)
            else:
                await until(lambda: f"a wrong byte entered {link.format(me=me)}" in caplog.text)
            is_own = link is not None and "{me}" in link
            if is_own:
                await until(lambda: report.reasons)
            await host.get(DIGEST)
            ends = {"a", "b"}.intersection((link or "").split())
            assert router.wants[-1].accepts_in_flight is (link is not None)
            assert set(router.wants[-1].failed) == ends
        reports = [want for want in router.wants if "wrong" in want.failed.values()]
        assert [dict(want.failed) for want in reports] == ([{"b": "wrong"}] if is_own else [])
        assert ("gone" in report.reasons) is is_own


async def test_a_runtime_that_tries_again_at_once_waits_until_the_link_is_known() -> None:
    """It would otherwise be sent upstream, because nobody in flight can be trusted yet."""
    feeder = ScriptedFeeder(MIB)
    feeder.received, feeder.sent = received(CHANGED, (0, None)), CHANGED
    feeder.may_say.clear()
    async with peers(DATA, feeder) as [a]:
        router = KnowingRouter(Feed((in_flight(a),)), Upstream())
        async with pulling(router) as host:
            getting = asyncio.create_task(host.get(DIGEST))
            await until(lambda: a.requests)
            await feeder.set(available=len(DATA))
            assert not (await getting).whole
            again = asyncio.create_task(host.get(DIGEST))
            await asyncio.wait([again], timeout=0.3)
            feeder.may_say.set()
            assert (await again).status == 404
            assert router.wants[-1].accepts_in_flight
            assert set(router.wants[-1].failed) == {"a"}


OTHER_END = CHANGED[: 2 * MIB] + DATA[2 * MIB :]
"""Its first two MiB are those of `CHANGED`."""
ATTEMPTS: dict[str, tuple[bool, list[tuple[bytes, bool]]]] = {
    "it is wrong": (True, [(CHANGED, True)]),
    "nobody says that it is wrong": (False, [(CHANGED, False)]),
    "an earlier one, which began with other bytes, was wrong": (False, [(b"?" + DATA[1:], True), (CHANGED, False)]),
    "an earlier one, which began with the same bytes, was wrong": (False, [(OTHER_END, True), (CHANGED, False)]),
    "it is wrong, and the next one has just begun": (True, [(CHANGED, True), (CHANGED[:1000], False)]),
    "it is wrong, and an earlier one was wrong, too": (True, [(OTHER_END, True), (CHANGED, True)]),
}
"""What the feeder says of its attempts, and whether what it passed on in the last one of `CHANGED` is wrong."""


@pytest.mark.parametrize(("is_wrong", "attempts"), ATTEMPTS.values(), ids=ATTEMPTS)
async def test_a_host_that_finds_no_other_feeder_asks_the_last_one_whether_its_bytes_were_wrong(
    *, is_wrong: bool, attempts: list[tuple[bytes, bool]], caplog: pytest.LogCaptureFixture
) -> None:
    """The feeder was withdrawn before it had sent all. The runtime would fetch the rest from upstream in vain."""
    feeder, lease, claim = ScriptedFeeder(2 * MIB), SupersededLease(), RecordingLease()
    feeder.sent = CHANGED
    feeder.received = encode_received(
        [ReceivedBytes(prefixes(data), [(0, None)], is_wrong=is_known) for data, is_known in attempts]
    )
    async with peers(DATA, feeder) as [a]:
        router = KnowingRouter(Feed((in_flight(a),), lease), Upstream(claim))
        async with pulling(router) as host:
            getting = asyncio.create_task(host.get(DIGEST))
            await until(lambda: lease.offsets and lease.offsets[-1] > MIB)
            lease.is_superseded.set()
            assert not (await getting).whole
    assert any(each.path.startswith("/_relay/") for each in a.requests)
    assert ("found out that the bytes which it passed on are wrong" in caplog.text) is is_wrong
    assert claim.reasons == ["gone" if is_wrong else "done"], "the claim ends if the runtime does not go upstream"


async def test_of_two_whole_holders_only_a_damaged_one_is_quarantined(caplog: pytest.LogCaptureFixture) -> None:
    """One transfer reads from both, so that its bytes do not show which of them was wrong."""
    wrong = b"?" + DATA[1:]
    damaged, right = ScriptedFeeder(2 * MIB), ScriptedFeeder(len(DATA))
    damaged.is_whole = right.is_whole = True
    damaged.sent, damaged.received, right.received = wrong, received(wrong, (0, None)), received(DATA, (0, None))
    async with peers(DATA, damaged, right) as [a, b], pulling([a.holder, b.holder]) as host:
        with suppress(httpx.RemoteProtocolError):  # it is cut off
            async with host.client.stream("GET", path_of(DIGEST)) as response:
                async for _ in response.aiter_raw():
                    await damaged.set(is_cut=True)
        await until(host.mirror.metrics.quarantines.value)
        assert f"the copy of peer {a.peer.id} is damaged" in caplog.text
        assert f"the copy of peer {b.peer.id} is damaged" not in caplog.text


async def test_a_damaged_holder_that_is_certainly_to_blame_is_counted_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    wrong = b"?" + DATA[1:]
    damaged = ScriptedFeeder(len(DATA))
    damaged.is_whole, damaged.sent, damaged.received = True, wrong, received(wrong, (0, None))
    async with peers(DATA, damaged) as [a], pulling([a.holder]) as host:
        with suppress(httpx.RemoteProtocolError):  # it is cut off
            await host.client.get(path_of(DIGEST))
        await until(lambda: f"the copy of peer {a.peer.id} is damaged" in caplog.text)
        assert caplog.text.count("quarantined for this blob") == 1
        assert host.mirror.metrics.quarantines.value() == 1


async def test_a_holder_that_sends_nothing_and_has_received_nothing_is_not_damaged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Empty(SaysReceived):
        async def __call__(self, exchange: Exchange) -> None:
            if exchange.request.path.startswith("/_relay/"):
                asked.set()
                body = encode_received([ReceivedBytes([], [(0, None)])])
                await exchange.head(200, content_length=str(len(body)))
                await exchange.send(body)
            else:
                await exchange.head(docker_content_digest=DIGEST)

    asked = asyncio.Event()
    async with peers(b"", Empty()) as [a], pulling([a.holder]) as host:
        assert (await host.get(DIGEST)).status == 404
        await asyncio.wait_for(asked.wait(), WAIT)
        assert (await host.get(DIGEST)).status == 404  # meanwhile, the answer is read
    assert "a background task failed" not in caplog.text


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 3 * MIB])
def test_a_verifier_notes_the_digests_of_the_beginnings(size: int) -> None:
    data, verifier = DATA[:size], Verifier(Digest.of(DATA[:size]))
    for start in range(0, size, 300_000):
        verifier.feed(data[start : start + 300_000])
    verifier.finish()
    assert verifier.prefixes == (prefixes(data) if size else [])


def test_bytes_that_are_taken_back_are_not_noted() -> None:
    verifier = Verifier(DIGEST)
    verifier.feed(DATA[: MIB // 2])
    verifier.feed(CHANGED[MIB // 2 :])
    with pytest.raises(DigestMismatch):
        verifier.finish()
    assert verifier.prefixes == prefixes(CHANGED)
    verifier.rewind()
    assert verifier.prefixes == []
    verifier.feed(DATA[MIB // 2 :])
    verifier.finish()
    assert verifier.prefixes == prefixes(DATA)


@asynccontextmanager
async def asking(store: MemoryStore, *, is_allowed: bool = True) -> AsyncGenerator[httpx.AsyncClient]:
    mirror = Mirror(store, MemoryRouter(), auth=lambda _: is_allowed)
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        url = f"http://{serving.peer_addresses[0]}"
        async with plain_client(base_url=url, trust_env=False, timeout=60) as client:
            yield client


@pytest.mark.parametrize("is_whole", [True, False])
async def test_a_host_that_fetched_from_upstream_reads_its_store(is_whole: bool) -> None:
    store = MemoryStore()
    if is_whole:
        store.add(DATA)
    else:
        store.begin(DIGEST, len(DATA)).write(DATA[: 2 * MIB + 10])
    async with asking(store) as client:
        response = await client.get(PATH + DIGEST)
        assert response.status_code == 200
        [answer] = parse_received(response.content)
        assert answer.sources == [(0, None)]
        assert list(answer.prefixes) == list(prefixes(DATA))[: 4 if is_whole else 2]


class SlowStore(MemoryStore):
    """Counts how often content was opened, and opens it when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = 0
        self.may_open = asyncio.Event()

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        self.opened += 1
        await self.may_open.wait()
        return await super().open(digest, partial=partial)


async def test_hosts_that_ask_at_the_same_moment_cost_one_reading_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peili.mirror.doors.received._READ_TIMEOUT", 1000.0)
    store, waiting = SlowStore(), Counter[str]()
    store.begin(DIGEST, len(DATA)).write(DATA)
    reading = ReceivedRoute._stored  # pyright: ignore[reportPrivateUsage] - nothing else shows who waits

    async def count(route: ReceivedRoute, digest: Digest) -> ReceivedBytes | None:
        waiting[digest] += 1
        return await reading(route, digest)

    monkeypatch.setattr(ReceivedRoute, "_stored", count)
    async with asking(store) as client:
        answers = [asyncio.create_task(client.get(PATH + DIGEST)) for _ in range(10)]
        await until(lambda: waiting[DIGEST] == 10)
        store.may_open.set()
        for answer in answers:
            [attempt] = parse_received((await answer).content)
            assert attempt.sources == [(0, None)]
            assert list(attempt.prefixes) == list(prefixes(DATA))
        assert store.opened == 1
        await client.get(PATH + DIGEST)
        assert store.opened == 2, "what the store has may have changed since"


class UnreadableStore(MemoryStore):
    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        await asyncio.get_running_loop().create_future()
        raise AssertionError


async def test_a_host_that_received_wrong_bytes_says_so_without_reading_its_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host that asks has a transfer that stands still."""
    monkeypatch.setattr("peili.mirror.doors.received._READ_TIMEOUT", 1000.0)
    mirror = Mirror(UnreadableStore(), MemoryRouter(), auth=lambda _: True)
    wrong = ReceivedBytes(prefixes(CHANGED), [(0, "a")], is_wrong=True)
    mirror._incoming.received.add(DIGEST, wrong)  # pyright: ignore[reportPrivateUsage] - the relay does it
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        url = f"http://{serving.peer_addresses[0]}"
        async with plain_client(base_url=url, trust_env=False, timeout=WAIT) as client:
            response = await client.get(PATH + DIGEST + "?stored=no")
            assert (await client.get(PATH + Digest.of(b"other") + "?stored=no")).status_code == 404
    [answer] = parse_received(response.content)
    assert answer.is_wrong


async def test_unknown_content_and_malformed_digests_are_refused() -> None:
    async with asking(MemoryStore()) as client:
        assert (await client.get(PATH + DIGEST)).status_code == 404
        assert (await client.get(PATH + "sha256:short")).status_code == 400
        assert (await client.post(PATH + DIGEST)).status_code == 405


async def test_only_hosts_that_may_use_the_peer_door_are_answered() -> None:
    store = MemoryStore()
    store.add(DATA)
    async with asking(store, is_allowed=False) as client:
        assert (await client.get(PATH + DIGEST)).status_code == 403


async def test_a_host_says_from_whom_it_received_what() -> None:
    feeder, other = ScriptedFeeder(2 * MIB), ScriptedFeeder(len(DATA))
    async with peers(DATA, feeder, other) as [a, b]:
        router = AdvisingRouter(Feed((in_flight(a),)), Feed((in_flight(b),)))
        async with pulling(router) as host, serve(host.mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
            getting = asyncio.create_task(host.get(DIGEST))
            await until(lambda: a.requests)
            await feeder.set(is_cut=True)
            assert (await getting).body == DATA
            async with plain_client(base_url=f"http://{serving.peer_addresses[0]}", trust_env=False) as client:
                response = await client.get(PATH + DIGEST)
    [answer] = parse_received(response.content)
    assert answer.sources == [(0, "a"), (router.wants[1].offset, "b")]
    assert list(answer.prefixes) == list(prefixes(DATA))


@pytest.mark.parametrize(
    "attempt",
    [
        None,
        [],
        {"sources": [[0]], "prefixes": []},
        {"sources": [[-1, "a"]], "prefixes": []},
        {"sources": [[0, "not an id"]], "prefixes": []},
        {"sources": [], "prefixes": [1]},
        {"sources": [], "prefixes": ["0" * 17]},
        {"sources": "", "prefixes": []},
    ],
)
def test_malformed_answers_are_refused(attempt: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_received(json.dumps({"attempts": [attempt]}).encode())
