"""A registry and runtimes for the tests of cold starts, in one process with the mirrors."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable

import httpx
from tests.mirror.membership.directory.cluster import Host
from tests.mirror.relay.pulling import path_of
from tests.support.plain_http import plain_client
from tests.support.waiting import until

from peili.mirror import Digest, Limits
from peili.mirror.limits import KIB
from peili.stores.memory import MemoryIngest

COLD_LIMITS = Limits(lookup_timeout=5, claim_timeout=60, wait_timeout=60)
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
        async with plain_client(base_url=self._url, trust_env=False, timeout=60) as client:
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
