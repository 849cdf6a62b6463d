"""Certificates of registries are those that are in the files now, and a refused one is no outage."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tests.mirror.upstream.registries import BY_TAG, PATIENT, READABLE, SmallRegistry
from tests.support.certificates import Authority, Certificate
from tests.support.neighbours import served
from tests.support.stream_server import stream_server

from peili.mirror.rights.outages import Outages
from peili.mirror.support.tasks import Tasks
from peili.mirror.support.threads import DaemonThreads
from peili.mirror.upstream.answers import Absent, Unreachable
from peili.mirror.upstream.api_roots import ApiRoot
from peili.mirror.upstream.client import UpstreamClient
from peili.mirror.upstream.pools import ConnectionPools

pytestmark = pytest.mark.anyio

OLD, NEW = "old.example", "new.example"


class TLSConnection:
    """The server's side of a TLS connection. Unlike that of asyncio, it tells the client why it refuses it."""

    def __init__(self, context: ssl.SSLContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._reader, self._writer = reader, writer

    async def answer(self, response: bytes) -> None:
        """Read a request, send `response`, and wait until the client closes the connection."""
        with suppress(ssl.SSLError):
            await self._call(self._tls.do_handshake)
            await self._call(partial(self._tls.read, 10_000))
            await self._call(partial(self._tls.write, response))
        with suppress(OSError):
            self._writer.write_eof()
            while await self._reader.read(10_000):
                pass

    async def _call(self, method: Callable[[], object]) -> None:
        while True:
            try:
                method()
            except ssl.SSLWantReadError:
                self._writer.write(self._outgoing.read())
                if data := await self._reader.read(10_000):
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            else:
                return
            finally:
                self._writer.write(self._outgoing.read())


@asynccontextmanager
async def listening(context: ssl.SSLContext | None) -> AsyncGenerator[str]:
    """Yield the URL of a registry that has nothing. Without a context, it ends each connection at once."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if context is not None:
            response = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            await TLSConnection(context, reader, writer).answer(response)

    async with stream_server(answer) as port:
        yield f"https://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> list[Certificate]:
    """Two nodes, each with an authority of its own."""
    directory = tmp_path_factory.mktemp("nodes")
    return [Authority(directory / f"{n}").issue(directory / f"{n}-node", "127.0.0.1") for n in range(2)]


def install(node: Certificate, directory: Path, *names: str) -> ApiRoot:
    """Put the files `names` of `node` into `directory` at once, as containerd would find them. The URL comes later."""
    for name in names:
        shutil.copyfile(getattr(node, name), new := directory / f"{name}.new")
        new.replace(directory / f"{name}.pem")
    here = Certificate.below(directory)
    return ApiRoot.of("https://registry.example", ca=(here.ca,), client=((here.cert, here.key),))


def server_context(own: Certificate, authority: Certificate) -> ssl.SSLContext:
    """Return the context of a registry with the certificate of `own`, whose clients need one of `authority`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.ca)
    context.load_cert_chain(own.cert, own.key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.mark.parametrize("changed", [("ca",), ("cert", "key"), ("ca", "cert", "key")])
async def test_new_certificates_at_the_same_path_are_used_and_refused_ones_are_no_outage(
    changed: tuple[str, ...], nodes: list[Certificate], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = nodes
    root = install(old, tmp_path, "ca", "cert", "key")
    own, authority = (new if "ca" in changed else old), (new if "cert" in changed else old)
    async with listening(server_context(old, old)) as before, listening(server_context(own, authority)) as after:
        roots = {OLD: replace(root, url=f"{before}/v2"), NEW: replace(root, url=f"{after}/v2")}
        now, log = [1000.0], logging.getLogger("peili.test")
        async with UpstreamClient(PATIENT, roots=lambda name: [roots[name]]) as client, Tasks(log) as tasks:
            outages = Outages(client.check, tasks, log, lambda: now[0])
            assert await client.ask(replace(BY_TAG, registry=OLD)) == Absent()
            for _ in range(2):
                answer = await client.ask(replace(BY_TAG, registry=NEW))
                assert isinstance(answer, Unreachable)
                assert (answer.was_asked, answer.is_down) == (False, False), answer
            logged = [each.getMessage() for each in caplog.records if each.name == "peili.upstream"]
            assert len(logged) == 1
            assert after in logged[0]
            install(new, tmp_path, *changed)
            assert await client.ask(replace(BY_TAG, registry=NEW)) == Absent()
            assert await outages.find(NEW, now[0] + 1) is None  # it can be checked from now on
            install(old, tmp_path, *changed)
            now[0] += 10
            assert await outages.find(NEW, now[0]) is None


async def test_certificates_that_are_no_longer_used_make_room_for_others(tmp_path: Path) -> None:
    registry = SmallRegistry()
    async with served(registry) as url:

        def find(name: str) -> list[ApiRoot]:
            return [ApiRoot.of(url, ca=(tmp_path / name,))]

        async with UpstreamClient(PATIENT, roots=find) as client:
            for number in range(70):
                assert await client.ask(replace(BY_TAG, registry=f"{number}.example")) == READABLE


async def test_files_that_can_not_be_used_are_no_outage_and_are_read_again(
    nodes: list[Certificate], tmp_path: Path
) -> None:
    root = install(nodes[0], tmp_path, "ca", "cert", "key")
    async with listening(server_context(nodes[0], nodes[0])) as url:
        root = replace(root, url=f"{url}/v2")
        async with UpstreamClient(PATIENT, roots=lambda _: [root]) as client:
            for name in ("ca", "cert", "key"):
                (tmp_path / f"{name}.pem").write_text("nothing of use\n")
                answer = await client.ask(BY_TAG)
                assert isinstance(answer, Unreachable)
                assert not answer.was_asked
                install(nodes[0], tmp_path, name)
                assert await client.ask(BY_TAG) == Absent()


async def test_a_registry_that_ends_the_connection_in_the_handshake_is_silent(
    nodes: list[Certificate], tmp_path: Path
) -> None:
    root = install(nodes[0], tmp_path, "ca", "cert", "key")
    async with listening(None) as url:
        root = replace(root, url=f"{url}/v2")
        async with UpstreamClient(PATIENT, roots=lambda _: [root]) as client:
            answer = await client.ask(BY_TAG)
    assert isinstance(answer, Unreachable)
    assert answer.was_asked
    assert answer.is_down


async def test_a_request_ends_with_the_certificates_that_it_began_with(
    nodes: list[Certificate], tmp_path: Path
) -> None:
    root = install(nodes[0], tmp_path, "ca", "cert", "key")
    pools = ConnectionPools(PATIENT, DaemonThreads(1, "test"))
    async with pools.lend(root) as old:
        install(nodes[1], tmp_path, "ca", "cert", "key")
        async with pools.lend(root) as new:
            assert new is not old
        assert not old.is_closed
    assert old.is_closed
    assert not new.is_closed
    async with pools.lend(root) as again:
        assert again is new
    await pools.aclose()
    assert new.is_closed
