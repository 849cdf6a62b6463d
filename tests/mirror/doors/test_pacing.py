"""Bytes per second, the number of uploads that a rate allows, and the total time of a response."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.mirror.doors.in_memory_host import DOORS, client_for, in_memory_host
from tests.mirror.doors.served_host import ZEROS_PATH, open_request, served_host
from tests.mirror.doors.server_kinds import SERVER_KINDS
from tests.support.plain_http import plain_client
from tests.support.waiting import until

from peili.mirror import Digest, Limits
from peili.mirror.doors.pacing import Pacer, Rate, RateLimit
from peili.mirror.doors.upload_slots import UploadSlots
from peili.mirror.limits import KIB, MIB
from peili.mirror.oci.requests import HTTPError

pytestmark = pytest.mark.anyio

DIGEST = Digest.of(b"any content")


def test_a_rate_grants_no_more_than_its_bytes_per_second() -> None:
    rate = Rate(1000)
    delays = [rate.delay(100, now=10.0) for _ in range(5)]
    assert delays == pytest.approx([0, 0, 0.1, 0.2, 0.3])  # the first 0.1 s made up for unused time
    assert rate.delay(100, now=20.0) == 0


async def test_each_client_has_its_own_rate_within_the_total() -> None:
    limited: list[str] = []
    pacer = Pacer(RateLimit("all", 10**9), RateLimit("each", 10**6), limited.append)
    async with asyncio.timeout(60):
        await asyncio.gather(*(pacer.wait(f"client-{number}", 10**5) for number in range(50)))
    assert limited == []
    for _ in range(3):
        await pacer.wait("client-1", 10**5)
    assert set(limited) == {"each"}


@pytest.mark.parametrize("kind", [SERVER_KINDS[0], SERVER_KINDS[2], SERVER_KINDS[4]], ids=str)
async def test_every_byte_arrives_at_a_limited_rate(kind: object, tmp_path: Path) -> None:
    """With sendfile, and with messages."""
    assert isinstance(kind, type(SERVER_KINDS[0]))
    data = bytes(range(256)) * 4096 * 2
    (tmp_path / "blob").write_bytes(data)
    async with kind.host(local_rate=8 * MIB) as host, plain_client(trust_env=False, timeout=60) as client:
        path = host.store.add_file(tmp_path / "blob")
        assert (await client.get(f"http://{host.address}{path}")).content == data
        assert (await client.get(f"http://{host.address}{path}", headers={"Range": "bytes=5-"})).content == data[5:]
        assert host.mirror.metrics.limited.value("local_rate") > 0


async def test_without_a_limit_nothing_is_paced() -> None:
    async with in_memory_host() as host, client_for(host.mirror.local) as client:
        assert (await client.get(host.blob_path)).content == host.data
        assert host.mirror.metrics.limited.value("local_rate") == 0


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (Limits(upload_rate=3 * 64 * KIB), "upload_rate"),
        (Limits(upload_rate_per_peer=3 * 64 * KIB), "upload_rate_per_peer"),
    ],
)
def test_a_rate_allows_only_as_many_uploads_as_it_can_feed(limits: Limits, limit: str) -> None:
    limited: list[str] = []
    slots = UploadSlots(limits, limited.append)
    with slots.acquire("a", DIGEST), slots.acquire("a", DIGEST), slots.acquire("a", DIGEST):
        with pytest.raises(HTTPError) as refused, slots.acquire("a", DIGEST):
            pass
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "1")
        assert limited == [limit]
    with slots.acquire("a", DIGEST):
        pass


@pytest.mark.parametrize("door", DOORS)
async def test_a_response_that_takes_too_long_in_total_is_cut_off(door: str) -> None:
    """A client that reads a little now and then does not hold its place for ever."""
    async with served_host(limits=Limits(response_timeout=0.5)) as host:
        with open_request(host.address(door), ZEROS_PATH):
            await until(lambda: host.mirror.metrics.limited.value("response_timeout") == 1)
            async with asyncio.timeout(60):
                await host.store.opened[0].closed.wait()
