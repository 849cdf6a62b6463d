"""Many hosts ask at once for what only upstream has: it is fetched once, and streams through the cluster."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import httpx
import pytest
from tests.lab.access import Access
from tests.mirror.membership.directory.acquiring import home_of
from tests.mirror.membership.directory.cluster import Host, are_synced, cluster
from tests.mirror.relay.pulling import content, path_of
from tests.support.neighbours import until

from peili.mirror import Digest, Limits
from peili.mirror.limits import KIB, MIB
from peili.stores.memory import MemoryIngest

pytestmark = pytest.mark.anyio

HOSTS = 6
LIMITS = Limits(lookup_timeout=5, claim_timeout=60, wait_timeout=60)
CHUNK = 64 * KIB


class Upstream:
    """A registry. It counts what it sends.

    Attributes:
        sent: The bytes that were sent, by digest.
        may_send: Waited for before each chunk, with its first byte.
    """

    def __init__(self, *blobs: bytes) -> None:
        self._blobs = {Digest.of(each): each for each in blobs}
        self.sent = Counter[Digest]()
        self.may_send: Callable[[int], bool] = lambda _: True

    async def read(self, digest: Digest, offset: int) -> AsyncGenerator[bytes]:
        for start in range(offset, len(self._blobs[digest]), CHUNK):
            await until(lambda start=start: self.may_send(start))  # type: ignore[misc]  # bound early
            chunk = self._blobs[digest][start : start + CHUNK]
            self.sent[digest] += len(chunk)
            yield chunk


class Runtime:
    """Does what containerd does with one mirror: it writes what arrives into the store, and goes upstream after a 404.

    Attributes:
        received: How many bytes have arrived, by digest.
    """

    def __init__(self, host: Host, upstream: Upstream) -> None:
        self._store = host.store
        self._upstream = upstream
        self._url = f"http://{host.serving.local_addresses[0]}"
        self.received = Counter[Digest]()

    async def pull(self, digest: Digest, size: int) -> None:
        ingest = self._store.begin(digest, size)
        try:
            await self._fill(ingest, digest, size)
        except asyncio.CancelledError:
            ingest.abort()
            raise
        ingest.commit()

    async def _fill(self, ingest: MemoryIngest, digest: Digest, size: int) -> None:
        async with httpx.AsyncClient(base_url=self._url, trust_env=False, timeout=60) as client:
            while (offset := len(ingest.data)) < size:
                headers = {"Range": f"bytes={offset}-"} if offset else {}
                try:
                    async with client.stream("GET", path_of(digest), headers=headers) as response:
                        found = response.status_code in {200, 206}
                        async for chunk in response.aiter_raw() if found else self._upstream.read(digest, offset):
                            ingest.write(chunk)
                            self.received[digest] = len(ingest.data)
                except httpx.TransportError:
                    assert len(ingest.data) > offset, "a response was cut without progress"


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(tmp_path / "access")


async def test_each_blob_is_fetched_once_when_all_hosts_ask_at_the_same_time(access: Access) -> None:
    blobs = [content(size) for size in (3 * MIB, 2 * MIB + 1, 300 * KIB, 5 * KIB)]
    async with cluster(HOSTS, keys=access.peer_tls_factory(), limits=LIMITS) as hosts:
        await until(lambda: are_synced(hosts))
        upstream = Upstream(*blobs)
        runtimes = [Runtime(each, upstream) for each in hosts]
        await asyncio.gather(*(each.pull(Digest.of(blob), len(blob)) for each in runtimes for blob in blobs))
        assert upstream.sent == {Digest.of(each): len(each) for each in blobs}


async def test_the_bytes_reach_every_host_while_upstream_still_sends(access: Access) -> None:
    blob = content(7 * MIB)
    digest = Digest.of(blob)
    async with cluster(HOSTS, keys=access.peer_tls_factory(), limits=LIMITS) as hosts:
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
    async with cluster(HOSTS, keys=access.peer_tls_factory(), limits=LIMITS) as hosts:
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
    async with cluster(HOSTS, keys=access.peer_tls_factory(), limits=LIMITS) as hosts:
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
