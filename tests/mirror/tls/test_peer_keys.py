"""Hosts with a shared key: who is a peer, when certificates are renewed, and how keys are replaced."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from starlette.requests import HTTPConnection
from tests.mirror.tls.tls_hosts import TLSHost, host_keys, status_at, tls_host, until_found, until_pulled, write_keys
from tests.support.waiting import until

from peili.mirror import ConfigError, Digest, Mirror, PeerKeys, PeerTLS, PushRouter, TLSContexts, peer_identity, serve
from peili.mirror.client import pool
from peili.mirror.tls import from_files, peer_keys
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

KEY, OTHER_KEY = bytes(32), bytes(range(32))


def plain_client() -> ssl.SSLContext:
    """A client that verifies nothing and has no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def clock_at(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock of `PeerKeys` to so many seconds from now."""
    monkeypatch.setattr(peer_keys, "now", lambda: time.time() + seconds)


async def test_hosts_with_the_same_key_pull_from_each_other(tmp_path: Path) -> None:
    async with tls_host(host_keys(tmp_path, "one", KEY)) as one, tls_host(host_keys(tmp_path, "two", KEY)) as two:
        assert one.mirror.identity.id == "one"
        assert one.url.startswith("https://127.0.0.1:")
        one.know(two)
        two.know(one)
        added = one.store.add(b"shared")
        await until_pulled(two, added.digest)


async def test_hosts_with_other_keys_refuse_each_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one_keys, two_keys = host_keys(tmp_path, "one", KEY), host_keys(tmp_path, "two", OTHER_KEY)
    async with tls_host(one_keys) as one, tls_host(two_keys) as two:
        one.know(two)
        two.know(one)
        assert await one.pull(two.store.add(b"of two").digest) == 404
        assert await two.pull(one.store.add(b"of one").digest) == 404
        with pytest.raises(ssl.SSLCertVerificationError):  # the client refuses the server
            await status_at(
                one.port, two_keys.contexts().client, peer_keys.CLUSTER_NAME
            )  # the client refuses the server
        careless = two_keys.contexts().client
        careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
        with pytest.raises(OSError):  # noqa: PT011 - the server refuses the client; OpenSSL says how
            await status_at(one.port, careless, peer_keys.CLUSTER_NAME)
    assert "the peer door refused a connection in the TLS handshake" in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_client_without_a_certificate_or_without_tls_is_refused(tmp_path: Path) -> None:
    async with tls_host(host_keys(tmp_path, "one", KEY)) as one:
        with pytest.raises(OSError):  # noqa: PT011 - OpenSSL says how
            await status_at(one.port, plain_client(), peer_keys.CLUSTER_NAME)
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        writer.write(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not (await reader.read(1000)).startswith(b"HTTP")
        writer.close()


async def test_older_versions_of_tls_are_refused(tmp_path: Path) -> None:
    own = host_keys(tmp_path, "one", KEY)
    async with tls_host(own) as one:
        older = own.contexts().client
        older.minimum_version = older.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(OSError):  # noqa: PT011 - OpenSSL says how
            await status_at(one.port, older, peer_keys.CLUSTER_NAME)


@pytest.mark.parametrize(
    ("ahead", "is_refused"), [(3000, False), (-3000, False), (-40_000, False), (4000, True), (-90_000, True)]
)
async def test_a_certificate_is_valid_from_an_hour_ago_for_a_day(
    ahead: float, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose clock is up to an hour ahead of that of its peer is a peer; so is one that is half a day behind."""
    clock_at(ahead, monkeypatch)
    of_other_clock = host_keys(tmp_path, "two", KEY).contexts().client
    monkeypatch.undo()
    async with tls_host(host_keys(tmp_path, "one", KEY)) as one:
        if not is_refused:
            assert await status_at(one.port, of_other_clock, peer_keys.CLUSTER_NAME) == b"HTTP/1.1 200 OK\r\n"
            return
        with pytest.raises(OSError):  # noqa: PT011 - OpenSSL says how
            await status_at(one.port, of_other_clock, peer_keys.CLUSTER_NAME)


async def test_a_server_with_an_expired_certificate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock_at(-90_000, monkeypatch)
    async with tls_host(host_keys(tmp_path, "one", KEY)) as one:
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            await status_at(one.port, host_keys(tmp_path, "two", KEY).contexts().client, peer_keys.CLUSTER_NAME)


@pytest.mark.parametrize("seconds", [peer_keys.RENEWAL + 60, -60])
async def test_a_certificate_is_renewed_while_a_transfer_runs(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is also renewed if the clock was set back."""
    own = host_keys(tmp_path, "one", KEY)
    async with tls_host(own) as one, tls_host(host_keys(tmp_path, "two", KEY)) as two:
        two.know(one)
        large = one.store.add(bytes(16 << 20))
        await until_pulled(two, one.store.add(b"small").digest)
        url = f"{two.local}/v2/registry.example/demo/blobs/{large.digest}"
        async with two.client.stream("GET", url) as response:
            assert response.status_code == 200
            before = own.contexts()
            clock_at(seconds, monkeypatch)
            await until(lambda: own.contexts() is not before)
            after = own.contexts()
            await own.refresh()
            assert own.contexts() is after
            assert len(await response.aread()) == large.size
        monkeypatch.undo()
        await own.refresh()
        other = host_keys(tmp_path, "three", KEY).contexts().client
        assert await status_at(one.port, other, peer_keys.CLUSTER_NAME) == b"HTTP/1.1 200 OK\r\n"


async def test_keys_are_replaced_in_three_steps_without_a_failed_pull(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in docs/security.md. Each step reaches one host after the other, and after each, every host pulls."""
    monkeypatch.setattr(from_files, "_REFRESH_INTERVAL", 0.05)
    monkeypatch.setattr(pool, "KEEP_ALIVE", 0.0)  # each pull makes new connections
    names = ["one", "two", "three"]
    async with AsyncExitStack() as stack:
        keys = [host_keys(tmp_path, name, KEY) for name in names]
        hosts = [await stack.enter_async_context(tls_host(each, miss_ttl=0.01)) for each in keys]
        for each in hosts:
            each.know(*hosts)
        for step in ([KEY, OTHER_KEY], [OTHER_KEY, KEY], [OTHER_KEY]):
            for name, each in zip(names, hosts, strict=True):
                assert each.mirror.peer_tls is not None
                before = each.mirror.peer_tls.contexts()
                contents = await add_everywhere(hosts, f"{step} {name}")
                write_keys(tmp_path / f"{name}.key", *step)
                await until(partial(has_changed, each.mirror.peer_tls, before))
                for digest, holder in zip(contents, hosts, strict=True):
                    for other in hosts:
                        assert other is holder or await other.pull(digest) == 200, f"{step} {name}"
        with pytest.raises(OSError):  # noqa: PT011 - OpenSSL says how
            await status_at(hosts[0].port, host_keys(tmp_path, "late", KEY).contexts().client, peer_keys.CLUSTER_NAME)


def has_changed(tls: PeerTLS, before: TLSContexts) -> bool:
    return tls.contexts() is not before


async def add_everywhere(hosts: Sequence[TLSHost], content: str) -> Sequence[Digest]:
    """Give each host content of its own, and wait until each other one finds it."""
    contents = [holder.store.add(f"{content} of {holder.url}".encode()).digest for holder in hosts]
    for other in hosts:
        for digest, holder in zip(contents, hosts, strict=True):
            if other is not holder:
                await until_found(other, digest)
    return contents


@pytest.mark.parametrize("held", [[KEY], [OTHER_KEY], [KEY, OTHER_KEY], [OTHER_KEY, KEY]])
async def test_a_host_with_both_keys_is_a_peer_of_hosts_with_either(held: list[bytes], tmp_path: Path) -> None:
    async with tls_host(host_keys(tmp_path, "one", KEY, OTHER_KEY)) as one:
        of_two = host_keys(tmp_path, "two", *held).contexts().client
        assert await status_at(one.port, of_two, peer_keys.CLUSTER_NAME) == b"HTTP/1.1 200 OK\r\n"


async def test_a_broken_new_file_keeps_the_old_keys_and_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = host_keys(tmp_path, "one", KEY)
    before = own.contexts()
    (tmp_path / "one.key").write_text("broken")
    with caplog.at_level(logging.INFO, "peili.tls"):
        for _ in range(2):
            await own.refresh()
            assert own.contexts() is before
        [record] = caplog.records
        assert record.levelname == "ERROR"
        assert "one.key is not a key file" in record.message
        clock_at(peer_keys.RENEWAL + 60, monkeypatch)
        await own.refresh()
        renewed = own.contexts()
        assert renewed is not before  # with the old keys
        await own.refresh()
        assert own.contexts() is renewed
        assert caplog.records == [record]
        write_keys(tmp_path / "one.key", OTHER_KEY)
        await own.refresh()
        assert own.contexts() is not renewed
        assert caplog.records[-1].message == f"read again: {tmp_path / 'one.key'}"


async def test_the_peer_door_knows_the_id_that_the_certificate_shows(tmp_path: Path) -> None:
    seen: list[str | None] = []

    def note_identity(request: HTTPConnection) -> bool:
        seen.append(peer_identity(request))
        return True

    own = host_keys(tmp_path, "one", KEY)
    mirror = Mirror(MemoryStore(), PushRouter(), peer_tls=own, auth=note_identity)
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        port = int(serving.peer_addresses[0].rpartition(":")[2])
        for identity in ("two", "https://2.example:5051/~%7e", "a:b%2Fc#d"):
            other = PeerKeys(tmp_path / "one.key", identity).contexts().client
            await status_at(port, other, peer_keys.CLUSTER_NAME)
    assert [each for each in seen if each != "one"] == ["two", "https://2.example:5051/~%7e", "a:b%2Fc#d"]


@pytest.mark.parametrize("seconds", [peer_keys.LIFETIME + 60, -peer_keys.SKEW - 60])
async def test_an_invalid_certificate_is_not_used(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host may have slept for a day, or have started with a wrong clock."""
    own = host_keys(tmp_path, "one", KEY)
    before = own.contexts()
    clock_at(seconds, monkeypatch)
    await own.refresh()
    assert own.contexts() is not before


def test_a_mirror_has_the_id_of_its_certificate(tmp_path: Path) -> None:
    own = host_keys(tmp_path, "one", KEY)
    assert Mirror(MemoryStore(), PushRouter(), peer_tls=own).identity.id == "one"
    with pytest.raises(ConfigError, match=r"^identity: 'one', which the certificate shows, not 'two'$"):
        Mirror(MemoryStore(), PushRouter(), peer_tls=own, identity="two")


@pytest.mark.parametrize("other", [{"insecure": True}, {"client_ssl": ssl.create_default_context()}])
def test_peer_tls_excludes_other_ways(other: dict[str, bool], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not both"):
        Mirror(MemoryStore(), PushRouter(), peer_tls=host_keys(tmp_path, "one", KEY), **other)  # type: ignore[arg-type]
