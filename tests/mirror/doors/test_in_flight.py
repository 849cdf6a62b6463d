"""Content that is still arriving: the peer door sends it, as it arrives, to hosts that ask for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.mirror.metrics.test_metrics import scrape
from tests.support.plain_http import plain_client
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Content, Digest, GrowingFileContent, Limits, Mirror, serve
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryIngest, MemoryStore

pytestmark = pytest.mark.anyio

DATA = os.urandom(1_000_000)
DIGEST = Digest.of(DATA)
PATH = f"/v2/registry.example/demo/blobs/{DIGEST}"
IN_FLIGHT = {"Peili-In-Flight": "1"}


class Host:
    """A served mirror whose store has an ingest of `DATA`.

    Attributes:
        mirror: The mirror.
        store: Its store.
        ingest: The ingest, empty at first.
        client: A client of the peer door, at its base URL.
        local: The base URL of the local door.
    """

    def __init__(
        self, mirror: Mirror, store: MemoryStore, ingest: MemoryIngest, client: httpx.AsyncClient, local: str
    ) -> None:
        self.mirror = mirror
        self.store = store
        self.ingest = ingest
        self.client = client
        self.local = local

    def limited(self, limit: str) -> float:
        return self.mirror.metrics.limited.value(limit)

    @asynccontextmanager
    async def reading(self, byte_range: str | None = None) -> AsyncGenerator[Reader]:
        headers = IN_FLIGHT if byte_range is None else {**IN_FLIGHT, "Range": byte_range}
        async with self.client.stream("GET", PATH, headers=headers) as response:
            reader = Reader(response)
            task = asyncio.create_task(reader.run())
            try:
                yield reader
            finally:
                task.cancel()
                await asyncio.wait([task])


class Reader:
    """Reads a body in the background. `is_whole` is None until it has ended."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.body = bytearray()
        self.is_whole: bool | None = None

    async def run(self) -> None:
        try:
            async for piece in self.response.aiter_raw():
                self.body += piece
        except (httpx.RemoteProtocolError, httpx.ReadError):
            self.is_whole = False
        else:
            self.is_whole = True


@asynccontextmanager
async def host(store: MemoryStore | None = None, **limits: Any) -> AsyncGenerator[Host]:
    store = store or MemoryStore()
    ingest = store.begin(DIGEST, len(DATA))
    limits.setdefault("drain_timeout", 0.1)
    mirror = Mirror(store, MemoryRouter(), limits=Limits(**limits))
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        url = f"http://{serving.peer_addresses[0]}"
        async with plain_client(base_url=url, trust_env=False, timeout=60) as client:
            yield Host(mirror, store, ingest, client, f"http://{serving.local_addresses[0]}")


async def test_a_blob_is_sent_while_it_arrives() -> None:
    async with host() as here, here.reading() as reader:
        assert reader.response.status_code == 200
        headers = reader.response.headers
        assert headers["Content-Length"] == str(len(DATA))
        assert headers["Docker-Content-Digest"] == DIGEST
        assert (headers["Peili-Complete"], headers["Peili-Available"]) == ("false", "0")
        for start in range(0, len(DATA), 250_000):
            here.ingest.write(DATA[start : start + 250_000])
            await until(lambda: len(reader.body) == len(here.ingest.data))
            if len(reader.body) < len(DATA):
                assert reader.is_whole is None
        await until(lambda: reader.is_whole is not None)  # the end of the response may arrive after its last byte
        assert reader.is_whole
        assert reader.body == DATA


@pytest.mark.parametrize(
    ("byte_range", "start", "stop"),
    [("bytes=100-", 100, 1_000_000), ("bytes=600000-", 600_000, 1_000_000), ("bytes=10-499999", 10, 500_000)],
)
async def test_a_range_is_sent_while_it_arrives(byte_range: str, start: int, stop: int) -> None:
    async with host() as here:
        here.ingest.write(DATA[:300_000])
        async with here.reading(byte_range) as reader:
            assert reader.response.status_code == 206
            assert reader.response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
            assert reader.response.headers["Peili-Available"] == "300000"
            here.ingest.write(DATA[300_000:])
            await until(lambda: reader.is_whole)
            assert reader.body == DATA[start:stop]


async def test_a_range_behind_the_end_is_refused() -> None:
    async with host() as here:
        response = await here.client.get(PATH, headers={**IN_FLIGHT, "Range": f"bytes={len(DATA)}-"})
        assert (response.status_code, response.headers["Content-Range"]) == (416, f"bytes */{len(DATA)}")


async def test_a_head_request_describes_it() -> None:
    async with host() as here:
        here.ingest.write(DATA[:10])
        response = await here.client.head(PATH, headers=IN_FLIGHT)
        assert response.status_code == 200
        names = ("Content-Length", "Peili-Complete", "Peili-Available")
        assert [response.headers[name] for name in names] == [str(len(DATA)), "false", "10"]


async def test_the_commit_during_a_response_does_not_disturb_it() -> None:
    async with host() as here, here.reading() as reader:
        here.ingest.write(DATA[:500_000])
        await until(lambda: len(reader.body) == 500_000)
        here.ingest.write(DATA[500_000:])
        here.ingest.commit()
        await until(lambda: reader.is_whole)
        assert reader.body == DATA
        response = await here.client.get(PATH, headers=IN_FLIGHT)
        assert (response.content, "Peili-Complete" in response.headers) == (DATA, False)


async def test_an_abort_cuts_the_response_off() -> None:
    async with host() as here, here.reading() as reader:
        here.ingest.write(DATA[:500_000])
        await until(lambda: len(reader.body) == 500_000)
        here.ingest.abort()
        await until(lambda: reader.is_whole is False)
        assert reader.body == DATA[:500_000]
        assert (await here.client.get(PATH, headers=IN_FLIGHT)).status_code == 404


async def test_silence_cuts_the_response_off() -> None:
    async with host(wait_timeout=0.2) as here, here.reading() as reader:
        here.ingest.write(DATA[:500_000])
        await until(lambda: reader.is_whole is False)
        assert reader.body == DATA[:500_000]
        assert here.limited("wait_timeout") == 1


@pytest.mark.parametrize("headers", [{}, {"Peili-In-Flight": "0"}, {"Peili-In-Flight": ""}])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_without_the_header_it_is_not_there(method: str, headers: dict[str, str]) -> None:
    async with host() as here:
        here.ingest.write(DATA[:10])
        assert (await here.client.request(method, PATH, headers=headers)).status_code == 404


async def test_a_manifest_is_not_sent_before_it_is_whole() -> None:
    async with host() as here:
        path = f"/v2/registry.example/demo/manifests/{DIGEST}"
        assert (await here.client.get(path, headers=IN_FLIGHT)).status_code == 404


async def test_content_of_unknown_size_is_not_there() -> None:
    async with host() as here:
        here.ingest.abort()
        here.store.begin(DIGEST).write(DATA)
        assert (await here.client.get(PATH, headers=IN_FLIGHT)).status_code == 404


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_local_door_never_sends_it(method: str) -> None:
    async with host() as here:
        here.ingest.write(DATA)
        async with plain_client(base_url=here.local, trust_env=False) as client:
            assert (await client.request(method, PATH, headers=IN_FLIGHT)).status_code == 404


@pytest.mark.parametrize("limit", ["children", "in_flight_uploads"])
async def test_the_uploads_of_content_in_flight_are_bounded(limit: str) -> None:
    limits: dict[str, Any] = {limit: 2}
    async with host(**limits) as here, AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(here.reading()) for _ in range(2)]
        response = await here.client.get(PATH, headers=IN_FLIGHT)
        assert (response.status_code, response.headers["Retry-After"]) == (429, "1")
        assert here.limited(limit) == 1
        assert (await here.client.head(PATH, headers=IN_FLIGHT)).status_code == 200
        here.ingest.write(DATA)
        await until(lambda: all(reader.is_whole for reader in readers))
        assert (await here.client.get(PATH, headers=IN_FLIGHT)).content == DATA


class _FileStore(MemoryStore):
    """Has an unfinished file at `path`."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.path.touch()

    def append(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        if not partial:
            return await super().open(digest)
        return GrowingFileContent(os.open(self.path, os.O_RDONLY), self.path.with_name("blob"), len(DATA))


async def test_a_growing_file_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    sendfile = os.sendfile

    def recording(out: int, file: int, offset: int, count: int) -> int:
        sent.append(sendfile(out, file, offset, count))
        return sent[-1]

    monkeypatch.setattr(os, "sendfile", recording)
    store = _FileStore(tmp_path / "data")
    async with host(store) as here, here.reading("bytes=10-") as reader:
        for start in range(0, len(DATA), 250_000):
            store.append(DATA[start : start + 250_000])
            await until(lambda: len(reader.body) == store.path.stat().st_size - 10)
            assert reader.body == DATA[10 : start + 250_000]
        await until(lambda: reader.is_whole)
    assert sum(sent) > len(DATA) // 2, "the kernel did not send most of it"


async def test_a_file_that_gets_shorter_cuts_the_response_off(tmp_path: Path) -> None:
    store = _FileStore(tmp_path / "data")
    async with host(store) as here, here.reading() as reader:
        store.append(DATA[:500_000])
        await until(lambda: len(reader.body) == 500_000)
        os.truncate(store.path, 100)
        await until(lambda: reader.is_whole is False)
        assert reader.body == DATA[:500_000]


class _Failing(Content):
    """Content in flight that breaks the promises of its interface after 10 bytes."""

    def __init__(self, fault: str) -> None:
        self.size, self.available, self.complete = len(DATA), 10, False
        self._fault = fault

    @override
    async def readinto(self, offset: int, buffer: memoryview) -> int:
        count = min(max(0, 10 - offset), len(buffer))
        buffer[:count] = DATA[offset : offset + count]
        return count

    @override
    async def wait(self, past: int) -> int:
        match self._fault:
            case "raises OSError":
                raise OSError("the disk is broken")
            case "ends":
                return past
            case _:
                return past + 1  # but there are no more bytes

    @override
    async def aclose(self) -> None:
        pass


class _FailingStore(MemoryStore):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self._fault = fault

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        return _Failing(self._fault) if partial else await super().open(digest)


@pytest.mark.parametrize("fault", ["raises OSError", "ends", "has no bytes"])
async def test_a_store_that_breaks_its_promises_cuts_the_response_off(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with host(_FailingStore(fault)) as here, here.reading() as reader:
        await until(lambda: reader.is_whole is False)
        assert reader.body == DATA[:10]
        assert "response cut off" in caplog.text


async def test_a_reader_that_disconnects_frees_its_slot() -> None:
    async with host(children=1) as here:
        async with here.reading():
            pass
        await until(lambda: scrape(here.mirror)("peili_uploads") == 0)
        async with here.reading() as reader:
            assert reader.response.status_code == 200
