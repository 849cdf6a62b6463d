"""Who is let in at the doors."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.requests import HTTPConnection
from tests.mirror.doors.house import codes, house, visitor

from peili.mirror import ConfigError, Limits, Mirror
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("127.0.0.1", 200),
        ("127.9.9.9", 200),
        ("::1", 200),
        ("::ffff:127.0.0.1", 200),
        ("10.0.0.1", 403),
        ("::ffff:10.0.0.1", 403),
        ("fe80::1%eth0", 403),
        ("0.0.0.0", 403),
        ("localhost", 403),
        ("", 403),
    ],
)
async def test_by_default_the_peer_door_is_for_this_host_only(address: str, status: int) -> None:
    async with house() as host, visitor(host.mirror.peer, address) as client:
        for path in ("/v2/", host.blob_path, "/_router/keys/x", "/nothing"):
            response = await client.get(path)
            assert (response.status_code == 403) == (status == 403), path
            assert response.headers["Peili-Id"] == "this-host"
            if status == 403:
                assert codes(response) == ["DENIED"]


async def test_a_client_that_is_not_known_is_not_this_host() -> None:
    async with house() as host:
        transport = httpx.ASGITransport(host.mirror.peer, client=None)  # type: ignore[arg-type]  # as on a unix socket
        async with httpx.AsyncClient(transport=transport, base_url="http://door.example") as client:
            assert (await client.get("/v2/")).status_code == 403


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Client-IP", "Host"])
async def test_what_a_client_says_about_itself_does_not_count(header: str) -> None:
    async with house() as host, visitor(host.mirror.peer, "10.0.0.1") as client:
        response = await client.get("/v2/", headers={header: "127.0.0.1"})
        assert response.status_code == 403


def nobody(_: HTTPConnection) -> bool:
    return False


async def test_the_local_door_is_for_whoever_reaches_it_unless_the_host_says_otherwise() -> None:
    async with house() as host, visitor(host.mirror.local, "10.0.0.1") as client:
        assert (await client.get(host.blob_path)).content == host.data
    async with house(local_auth=nobody) as host, visitor(host.mirror.local) as client:
        response = await client.get(host.blob_path)
        assert (response.status_code, codes(response)) == (403, ["DENIED"])


async def test_insecure_opens_the_peer_door() -> None:
    async with house(insecure=True) as host, visitor(host.mirror.peer, "10.0.0.1") as client:
        assert (await client.get(host.blob_path)).content == host.data


def knows_the_word(connection: HTTPConnection) -> bool:
    return connection.headers.get("authorization") == "Bearer peili"


async def knows_the_word_later(connection: HTTPConnection) -> bool:
    await asyncio.sleep(0)
    return knows_the_word(connection)


@pytest.mark.parametrize("auth", [knows_the_word, knows_the_word_later])
async def test_the_hosts_own_auth_decides_for_loopback_too(auth: object) -> None:
    async with house(auth=auth) as host:
        for address in ("10.0.0.1", "127.0.0.1"):
            async with visitor(host.mirror.peer, address) as client:
                assert (await client.get(host.blob_path)).status_code == 403
                response = await client.get(host.blob_path, headers={"Authorization": "Bearer peili"})
                assert response.content == host.data
                assert response.headers["Peili-Id"] == "this-host"


@pytest.mark.parametrize("door", ["local", "peer"])
async def test_an_auth_that_fails_lets_nobody_in_and_says_so(door: str, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: HTTPConnection) -> bool:
        raise LookupError("no such key")

    async with house(auth=broken, local_auth=broken) as host, visitor(host.door(door)) as client:
        assert (await client.get(host.blob_path)).status_code == 403
    assert "the access check failed" in caplog.text
    assert "no such key" in caplog.text


@pytest.mark.parametrize("door", ["local", "peer"])
async def test_an_auth_that_hangs_lets_nobody_in_and_says_so(door: str, caplog: pytest.LogCaptureFixture) -> None:
    async def hanging(_: HTTPConnection) -> bool:
        await asyncio.Event().wait()
        return True

    limits = Limits(first_byte_timeout=0.1)
    async with house(auth=hanging, local_auth=hanging, limits=limits) as host, visitor(host.door(door)) as client:
        async with asyncio.timeout(20):
            assert (await client.get(host.blob_path)).status_code == 403
        assert host.mirror.metrics.limited.value("first_byte_timeout") == 1
    assert "the access check did not return in time" in caplog.text


@pytest.mark.parametrize("door", ["local", "peer"])
async def test_an_auth_that_runs_into_a_timeout_of_its_own_is_not_counted(
    door: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def impatient(_: HTTPConnection) -> bool:
        raise TimeoutError("the key server does not answer")

    async with house(auth=impatient, local_auth=impatient) as host, visitor(host.door(door)) as client:
        assert (await client.get(host.blob_path)).status_code == 403
        assert host.mirror.metrics.limited.value("first_byte_timeout") == 0
    assert "the key server does not answer" in caplog.text
    assert "did not return in time" not in caplog.text


async def test_every_answer_of_the_peer_door_says_who_answers_and_none_of_the_local_door() -> None:
    async with house() as host:
        for path in ("/v2/", "/v2/X/tags/list", host.blob_path, "/_router", "/_router/nothing", "/other"):
            async with visitor(host.mirror.peer) as client:
                assert (await client.get(path)).headers["Peili-Id"] == "this-host"
            async with visitor(host.mirror.local) as client:
                assert "Peili-Id" not in (await client.get(path)).headers


@pytest.mark.parametrize("identity", ["", None])
def test_a_host_that_gives_no_id_gets_one_of_its_own(identity: str | None) -> None:
    one, other = (Mirror(MemoryStore(), MemoryRouter(), identity=identity).identity for _ in range(2))
    assert one.id
    assert one.id != other.id


@pytest.mark.parametrize("identity", ["a b", "ä", "a\r\nSet-Cookie: b", "a" * 256])
def test_an_id_that_can_not_stand_in_a_header_is_refused(identity: str) -> None:
    with pytest.raises(ConfigError, match=r"^identity: .*ASCII.*$"):
        Mirror(MemoryStore(), MemoryRouter(), identity=identity)


def test_auth_and_insecure_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"^insecure: "):
        Mirror(MemoryStore(), MemoryRouter(), insecure=True, auth=nobody)
