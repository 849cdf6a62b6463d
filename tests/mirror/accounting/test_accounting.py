"""What came from where, what was saved, and one line for each image that was pulled."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from tests.mirror.doors.in_memory_host import client_for
from tests.mirror.relay.peers import honest, peers, short_after, wrong_bytes
from tests.mirror.relay.pulling import LARGE, SMALL, content, manifest_with, path_of, pulling
from tests.support.clock import Clock
from tests.support.waiting import until

from peili.mirror import Digest, Mirror
from peili.mirror.accounting.accounting import Accounting
from peili.mirror.accounting.byte_counts import History, Received, RequestedContent
from peili.mirror.accounting.pulls import PATIENCE, QUIET
from peili.mirror.metrics.counters import FROM_PEER, FROM_STORE, LOCAL, PEER, Metrics
from peili.mirror.metrics.requests import RequestRecord
from peili.mirror.support.units import bytes_text, seconds_text, share_text
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

ONE, TWO, THREE = (Digest.of(bytes([n])) for n in range(3))


class Books:
    """An `Accounting` with a clock of its own, and what it logs."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        self.clock = Clock()
        self.metrics = Metrics()
        self.accounting = Accounting(self.metrics, logging.getLogger("peili.pulls"), self.clock)
        self._caplog = caplog

    def request(self, digest: Digest | None = None, status: int = 200, sent: int = 0, **fields: Any) -> RequestRecord:
        """Record a request of the runtime."""
        if sent:
            self.metrics.sent.add(LOCAL, fields.get("source", FROM_PEER), amount=sent)
        values: dict[str, Any] = {"repository": "docker.io/library/redis", "source": FROM_PEER, "is_finished": True}
        record = RequestRecord(LOCAL, "blobs", digest=digest, status=status, sent=sent, started=self.clock())
        for name, value in {**values, **fields}.items():
            setattr(record, name, value)
        self.accounting.ended(record)
        return record

    def wait(self, seconds: float) -> list[str]:
        """Let time pass, and return what is logged then."""
        self.clock.now += seconds
        self._caplog.clear()
        self.accounting.end_pulls()
        return [each.getMessage() for each in self._caplog.records]

    @property
    def record(self) -> logging.LogRecord:
        return self._caplog.records[-1]


@pytest.fixture
def books(caplog: pytest.LogCaptureFixture) -> Books:
    return Books(caplog)


def test_a_pull_is_one_line_with_the_bytes_by_source(books: Books) -> None:
    books.request(None, 404, source="", tag="7", is_manifest=True)
    books.request(ONE, sent=1000, is_manifest=True, senders={"node-b": 1000})
    books.clock.now += 1.5
    books.request(TWO, sent=2 << 20, senders={"node-b": 1 << 20, "node-c": 1 << 20})
    books.request(ONE, sent=500, source=FROM_STORE)
    assert books.wait(QUIET - 0.1) == []
    [line] = books.wait(0.2)
    assert line == (
        "pulled docker.io/library/redis:7 in 1.5 s: 2.0 MiB, of which 2.0 MiB from peers (node-b, node-c), 500 B from "
        "the store and 0 B from upstream; saved 100 %"
    )
    assert (books.record.name, books.record.levelno) == ("peili.pulls", logging.INFO)
    fields = vars(books.record)
    assert (fields["event"], fields["image"]) == ("pulled", "docker.io/library/redis:7")
    assert (fields["bytes_from_peers"], fields["bytes_from_store"]) == (1000 + (2 << 20), 500)
    assert (fields["bytes_from_upstream"], fields["saved"], fields["seconds"]) == (0, 1, 1.5)
    assert books.wait(100) == []
    assert books.metrics.pulls.value() == 1


def test_what_is_left_to_upstream_counts_when_it_is_in_the_store(books: Books) -> None:
    books.request(ONE, sent=300)
    books.request(TWO, 404)
    assert books.accounting.totals().saved == 1, "nothing came from upstream so far"
    assert books.wait(QUIET + 1) == [], "the runtime still fetches from upstream"
    books.accounting.arrived(TWO, 100)
    books.accounting.arrived(ONE, 300)
    books.accounting.arrived(THREE, 5000)  # not requested here
    [line] = books.wait(QUIET)
    assert "400 B, of which 300 B from peers, 0 B from the store and 100 B from upstream; saved 75 %" in line
    assert books.accounting.totals() == Received(peers=300, upstream=100)
    assert books.accounting.totals().saved == 0.75
    assert (books.metrics.upstream_bytes.value(), books.metrics.upstream_blobs.value()) == (100, 1)


def test_of_a_response_that_was_cut_only_the_rest_comes_from_upstream(books: Books) -> None:
    books.request(ONE, sent=60, is_finished=False)
    books.request(ONE, 404)
    books.accounting.arrived(ONE, 100)
    assert books.accounting.totals() == Received(peers=60, upstream=40)


def test_wrong_bytes_are_fetched_again_from_upstream(books: Books) -> None:
    books.request(ONE, sent=60, is_finished=False, is_wrong=True)
    books.accounting.arrived(ONE, 100)
    assert books.accounting.totals().upstream == 100


def test_a_part_that_another_try_delivers_is_not_missing(books: Books) -> None:
    books.request(ONE, 404)
    books.request(ONE, sent=100)
    books.accounting.arrived(ONE, 100)
    assert books.accounting.totals() == Received(peers=100)
    assert len(books.wait(QUIET)) == 1


def test_a_head_is_not_a_pull(books: Books) -> None:
    books.request(ONE, 404, is_get=False)
    books.accounting.arrived(ONE, 100)
    books.request(None, 404, tag="7", is_manifest=True)  # resolved upstream, and nothing else was requested
    assert books.accounting.totals() == Received()
    assert books.wait(PATIENCE) == []


def test_a_pull_ends_although_upstream_content_never_arrives(books: Books) -> None:
    books.request(ONE, 404, is_manifest=True)
    assert books.wait(PATIENCE - 1) == []
    [line] = books.wait(1)
    assert line.startswith(f"pulled docker.io/library/redis@{ONE} in 0.0 ms: 0 B")
    assert line.endswith("saved -; left to upstream and not in the store so far: 1")


def test_a_running_request_keeps_its_pull_open(books: Books) -> None:
    record = books.request(ONE, sent=10)
    books.metrics.active.add(record)
    assert books.wait(10 * QUIET) == []
    books.metrics.active.clear()
    assert len(books.wait(0)) == 1


def test_the_tables_are_bounded(books: Books) -> None:
    requested = RequestedContent()
    digests = [Digest.of(str(n).encode()) for n in range(5000)]
    for digest in digests:
        requested.note(digest, 0, is_missed=True)
    assert requested.arrived(digests[0], 10) is None
    assert requested.arrived(digests[-1], 10) == 10
    for number, digest in enumerate(digests):
        books.request(digest, 404, repository=f"docker.io/library/image-{number}")
    assert len(books.wait(PATIENCE)) == 256


def test_the_history_has_minutes_and_today() -> None:
    now = Clock()
    now.now = 1_700_000_000.0 - 1_700_000_000 % 86400 + 43200
    history = History(now)
    history.sample(Received(store=1))
    history.sample(Received(store=1, peers=5))
    now.now += 60
    history.sample(Received(store=1, peers=5, upstream=2))
    assert [each.received for each in history.minutes()] == [Received(store=1, peers=5), Received(upstream=2)]
    assert history.today == Received(store=1, peers=5, upstream=2)
    now.now += 2 * 86400
    history.sample(Received(store=2, peers=5, upstream=2))
    assert history.today == Received(store=1)
    assert [each.received for each in history.minutes()] == [Received(store=1)]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (47_290_000, "45.1 MiB"), (1 << 30, "1.0 GiB"), (1 << 70, "")],
)
def test_bytes_have_a_unit(count: int, text: str) -> None:
    assert bytes_text(count) == (text or "1048576.0 PiB")


def test_durations_and_shares_are_short() -> None:
    assert [seconds_text(each) for each in (0.0004, 3.21, 300, 9000)] == ["0.4 ms", "3.2 s", "5 min", "2.5 h"]
    assert [share_text(each) for each in (None, 0, 0.999, 1)] == ["-", "0 %", "99 %", "100 %"]


async def test_a_real_pull_from_peers_and_from_upstream() -> None:
    data, other, store = content(LARGE), content(SMALL, 2), MemoryStore()
    async with peers(data, honest) as [peer], pulling([peer.holder], store=store) as host:
        totals = host.mirror.accounting.totals
        assert (await host.get(Digest.of(data))).body == data
        assert (await host.get(Digest.of(other))).status == 404
        store.add(data)
        store.add(other)  # as the runtime does after it has fetched it from upstream
        await until(lambda: totals() == Received(peers=LARGE, upstream=SMALL))
        [pull] = host.mirror.accounting.pulls
        assert pull.senders == {peer.holder.peer.id: LARGE}


async def test_the_rest_of_a_transfer_that_was_cut_counts_as_upstream() -> None:
    data, store = content(LARGE), MemoryStore()
    async with peers(data, short_after(100_000)) as [peer], pulling([peer.holder], store=store) as host:
        pulled = await host.get(Digest.of(data))
        assert not pulled.whole
        assert (await host.get(Digest.of(data), f"bytes={len(pulled.body)}-")).status == 404
        store.add(data)
        await until(lambda: host.mirror.accounting.totals().upstream == LARGE - len(pulled.body))


async def test_wrong_bytes_do_not_count_as_saved() -> None:
    data, store = content(LARGE), MemoryStore()
    async with peers(data, wrong_bytes) as [peer], pulling([peer.holder], store=store) as host:
        assert not (await host.get(Digest.of(data))).whole
        store.add(data)
        await until(lambda: host.mirror.accounting.totals().upstream == LARGE)


async def test_requests_are_timed_by_door_endpoint_and_answer() -> None:
    store = MemoryStore()
    digest = store.add(b"content").digest
    async with Mirror(store, MemoryRouter()) as mirror:
        async with client_for(mirror.local) as runtime, client_for(mirror.peer) as peer:
            await runtime.get(path_of(digest))
            await runtime.get(path_of(ONE))
            await runtime.get(path_of(store.add(manifest_with(digest, 7)).digest, "manifests"))
            await runtime.delete("/v2/")
            await peer.head(path_of(digest))
        [family] = [each for each in mirror.figures() if each.name == "peili_request_duration_seconds"]
    assert set(family.samples) == {
        (LOCAL, "blobs", "store"),
        (LOCAL, "blobs", "missing"),
        (LOCAL, "manifests", "store"),
        (LOCAL, "none", "refused"),
        (PEER, "blobs", "store"),
    }
    assert mirror.metrics.active == set()
