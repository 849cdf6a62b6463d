"""Several ranges of whole content in the store: multipart/byteranges, or the whole content if that is cheaper."""

from __future__ import annotations

import asyncio
import random
import shutil
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.mirror.doors.in_memory_host import DOORS, InMemoryHost, error_codes
from tests.mirror.doors.multipart_parser import parse_parts, parts_of
from tests.mirror.relay.peers import honest, peers
from tests.mirror.relay.pulling import content, path_of, pulling

from peili.mirror import Digest, serve
from peili.mirror.oci.ranges import MAX_RANGES, ByteRange

pytestmark = pytest.mark.anyio


def _expected_spans(range_header: str, size: int) -> list[tuple[int, int]]:
    """A second implementation of RFC 9110, section 14.1.2."""
    spans: list[tuple[int, int]] = []
    for each in range_header.removeprefix("bytes=").split(","):
        first, last = each.strip().split("-")
        start = int(first) if first else max(0, size - int(last))
        stop = min(int(last) + 1, size) if first and last else size
        if start < stop:
            spans.append((start, stop))
    return spans


@pytest.mark.parametrize(
    "range_header",
    [
        "bytes=0-9,20-29",
        "bytes=20-29, 0-9",
        "bytes=0-0,-1",
        "bytes=0-5119,5120-",
        "bytes=100-199,150-249,150-249",
        "bytes=0-9,10239-99999",
        "bytes=0-9,20-29,99999-",
        "bytes=-5,-10",
        "bytes=" + ",".join(f"{n}-{n}" for n in range(MAX_RANGES)),
    ],
)
async def test_several_ranges_are_parts(client: httpx.AsyncClient, host: InMemoryHost, range_header: str) -> None:
    for path, data, media_type in (
        (host.blob_path, host.data, "application/octet-stream"),
        (host.manifest_path, host.manifest_data, host.manifest.media_type),
    ):
        answer = await client.get(path, headers={"Range": range_header})
        expected = _expected_spans(range_header, len(data))
        if sum(stop - start for start, stop in expected) > len(data):
            assert (answer.status_code, answer.content) == (200, data)
            continue
        assert answer.status_code == 206
        if len(expected) == 1:
            [(start, stop)] = expected
            assert answer.content == data[start:stop]
            continue
        assert answer.headers["Content-Length"] == str(len(answer.content))
        assert answer.headers["ETag"] == f'"{answer.headers["Docker-Content-Digest"]}"'
        assert "Content-Range" not in answer.headers
        assert [(each.content_range, each.data, each.content_type) for each in parts_of(answer)] == [
            (f"bytes {start}-{stop - 1}/{len(data)}", data[start:stop], media_type) for start, stop in expected
        ]


@pytest.mark.parametrize("range_header", ["bytes=5-9,99999-", "bytes=99999-,5-9", "bytes=-0,5-9,99999-100000"])
async def test_if_one_range_remains_it_is_sent_alone(
    client: httpx.AsyncClient, host: InMemoryHost, range_header: str
) -> None:
    answer = await client.get(host.blob_path, headers={"Range": range_header})
    assert (answer.status_code, answer.content) == (206, host.data[5:10])
    assert answer.headers["Content-Range"] == "bytes 5-9/10240"


@pytest.mark.parametrize("range_header", ["bytes=10240-,99999-", "bytes=-0,-0"])
async def test_if_no_range_remains_it_is_416_with_the_size(
    client: httpx.AsyncClient, host: InMemoryHost, range_header: str
) -> None:
    answer = await client.get(host.blob_path, headers={"Range": range_header})
    assert (answer.status_code, error_codes(answer)) == (416, ["SIZE_INVALID"])
    assert answer.headers["Content-Range"] == "bytes */10240"


@pytest.mark.parametrize(
    "range_header",
    [
        "bytes=0-,0-",
        "bytes=0-5120,5120-",
        "bytes=" + ",".join(["0-"] * MAX_RANGES),
        "bytes=" + ",".join(["0-999"] * 11),
        "bytes=" + ",".join(f"{n}-{n}" for n in range(MAX_RANGES + 1)),
        "bytes=0-1,5-4",
        "bytes=0-1,",
        "bytes=0-1,x",
    ],
)
async def test_too_large_or_malformed_ranges_return_the_whole(
    client: httpx.AsyncClient, host: InMemoryHost, range_header: str
) -> None:
    answer = await client.get(host.blob_path, headers={"Range": range_header})
    assert (answer.status_code, answer.content) == (200, host.data)
    assert answer.headers["Content-Length"] == "10240"


@pytest.mark.parametrize(("condition", "status"), [('"{}"', 206), ('W/"{}"', 200), ('"other"', 200)])
async def test_if_range_decides_on_several_ranges(
    client: httpx.AsyncClient, host: InMemoryHost, condition: str, status: int
) -> None:
    headers = {"Range": "bytes=5-9,20-29", "If-Range": condition.format(host.layer.digest)}
    answer = await client.get(host.blob_path, headers=headers)
    assert answer.status_code == status
    if status == 206:
        assert [each.data for each in parts_of(answer)] == [host.data[5:10], host.data[20:30]]


async def test_head_and_304_ignore_ranges(client: httpx.AsyncClient, host: InMemoryHost) -> None:
    # RFC 9110, 14.2: ranges are defined for GET alone.
    head = await client.head(host.blob_path, headers={"Range": "bytes=0-9,20-29"})
    whole = await client.get(host.blob_path)
    assert (head.status_code, head.headers) == (200, whole.headers)
    tag = f'"{host.layer.digest}"'
    held = await client.get(host.blob_path, headers={"Range": "bytes=0-9,20-29", "If-None-Match": tag})
    assert held.status_code == 304


async def test_content_from_a_peer_is_sent_whole() -> None:
    for size in (20_000, 600_000):
        data = content(size)
        async with peers(data, honest) as [a], pulling([a.holder]) as here:
            answer = await here.client.get(path_of(Digest.of(data)), headers={"Range": "bytes=0-9,20-29"})
            assert (answer.status_code, answer.content) == (200, data)
            assert a.ranges == [None]


RANGES = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 300_000), st.integers(0, 300_000)).map(lambda pair: ByteRange(min(pair), max(pair))),
        st.integers(0, 300_000).map(lambda first: ByteRange(first, None)),
        st.integers(0, 300_000).map(lambda last: ByteRange(None, last)),
    ),
    min_size=1,
    max_size=18,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(ranges=RANGES, size=st.sampled_from([0, 1, 10, 65_536, 65_537, 262_145]), seed=st.integers(0, 3))
async def test_the_response_is_never_larger_than_the_content(
    client: httpx.AsyncClient, host: InMemoryHost, ranges: list[ByteRange], size: int, seed: int
) -> None:
    data = random.Random(seed).randbytes(size)
    path = f"/v2/registry.example/demo/blobs/{host.store.add(data).digest}"
    range_header = "bytes=" + ",".join(str(each).removeprefix("bytes=") for each in ranges)
    answer = await client.get(path, headers={"Range": range_header})
    expected = _expected_spans(range_header, size)
    assert answer.headers["Content-Length"] == str(len(answer.content))
    if len(ranges) > MAX_RANGES or sum(stop - start for start, stop in expected) > size:
        assert (answer.status_code, answer.content) == (200, data)
    elif not expected:
        assert answer.status_code == 416
    elif len(expected) == 1:
        [(start, stop)] = expected
        assert (answer.status_code, answer.content) == (206, data[start:stop])
    else:
        assert answer.status_code == 206
        assert [each.data for each in parts_of(answer)] == [data[start:stop] for start, stop in expected]
        assert len(answer.content) <= size + 300 * MAX_RANGES


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
@pytest.mark.parametrize("door", DOORS)
async def test_curl_gets_its_ranges(host: InMemoryHost, door: str, version: str) -> None:
    async with serve(host.mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        addresses: list[str] = getattr(serving, f"{door}_addresses")
        url = f"http://{addresses[0]}{host.blob_path}"
        head, body = await _curl(version, "-r", "0-9,20-29", url)
    assert head[0].split()[1] == "206"
    fields: dict[str, Any] = dict(line.split(": ", 1) for line in head[1:])
    assert fields["content-length"] == str(len(body))
    parts = parse_parts(fields["content-type"], body)
    assert [(each.content_range, each.data) for each in parts] == [
        ("bytes 0-9/10240", host.data[:10]),
        ("bytes 20-29/10240", host.data[20:30]),
    ]


async def _curl(*arguments: str) -> tuple[list[str], bytes]:
    """Return the lines of the head and the body that curl receives."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "-i", "--noproxy", "*", "--max-time", "60", *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    head, _, body = out.partition(b"\r\n\r\n")
    return head.decode().split("\r\n"), body
