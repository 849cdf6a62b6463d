"""Servers that offer ``http.response.pathsend`` of ASGI send the files themselves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tests.mirror.doors.server_kinds import FIRST, Host, ServerKind, on_uvicorn
from tests.support.plain_http import plain_client
from tests.support.waiting import until

from peili.mirror import Mirror
from peili.mirror.doors.stored_content import TAIL

pytestmark = pytest.mark.anyio

DATA = random.Random(5).randbytes((3 << 20) + 1)


def add_pathsend(app: ASGIApp) -> ASGIApp:
    """A server that accepts paths, and opens the files some time later: ASGI does not say when it must."""

    async def offering(scope: Scope, receive: Receive, send: Send) -> None:
        sending: list[asyncio.Task[None]] = []

        async def take(message: Message) -> None:
            if message["type"] == "http.response.pathsend":
                sending.append(asyncio.create_task(send_file(message["path"], send)))
            else:
                await send(message)

        async with asyncio.timeout(60):
            await app({**scope, "extensions": {"http.response.pathsend": {}}}, receive, take)
            await asyncio.gather(*sending)

    return offering


async def send_file(path: str, send: Send) -> None:
    await asyncio.sleep(0.2)
    data = await asyncio.to_thread(Path(path).read_bytes)
    await send({"type": "http.response.body", "body": data})


def with_pathsend(mirror: Mirror) -> ASGIApp:
    return add_pathsend(mirror.local)


@asynccontextmanager
async def host_and_client() -> AsyncGenerator[tuple[Host, httpx.AsyncClient]]:
    server_kind = ServerKind("a server that offers pathsend", on_uvicorn(with_pathsend, http="httptools"))
    async with (
        server_kind.host() as host,
        plain_client(base_url=f"http://{host.address}", trust_env=False) as client,
    ):
        yield host, client


async def test_the_server_sends_a_whole_file_which_stays_open_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "blob"
    file.write_bytes(DATA)
    async with host_and_client() as (host, client):
        path = host.store.add_file(file)
        getting = asyncio.create_task(client.get(path))
        await until(lambda: len(host.store.opened) == 1)
        file.unlink()  # the open file is sent
        answer = await getting
        assert (answer.status_code, answer.content) == (200, DATA)
        assert host.store.opened[0].read == FIRST
        async with asyncio.timeout(60):
            await host.store.opened[0].closed.wait()


async def test_parts_and_small_files_are_sent_as_messages(tmp_path: Path) -> None:
    file, small = tmp_path / "blob", tmp_path / "small"
    file.write_bytes(DATA)
    small.write_bytes(DATA[:TAIL])
    async with host_and_client() as (host, client):
        part = await client.get(host.store.add_file(file), headers={"Range": "bytes=1-2000000"})
        assert (part.status_code, part.content) == (206, DATA[1:2000001])
        assert (await client.get(host.store.add_file(small))).content == DATA[:TAIL]
        assert [each.read for each in host.store.opened] == [FIRST + 2_000_000, TAIL]


async def test_head_has_the_headers_of_get(tmp_path: Path) -> None:
    file = tmp_path / "blob"
    file.write_bytes(DATA)
    async with host_and_client() as (host, client):
        answer = await client.head(host.store.add_file(file))
        assert (answer.status_code, answer.headers["Content-Length"]) == (200, str(len(DATA)))
        assert not host.store.opened
