"""Which requests the doors allow."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.requests import HTTPConnection
from tests.mirror.doors.in_memory_host import client_for, error_codes, in_memory_host

from peili.mirror import ConfigError, Limits, Mirror, clients_in
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
async def test_by_default_the_peer_door_allows_only_loopback(address: str, status: int) -> None:
    async with in_memory_host() as host, client_for(host.mirror.peer, address) as client:
        for path in ("/v2/", host.blob_path, "/_router/keys/x", "/nothing"):
            response = await client.get(path)
            assert (response.status_code == 403) == (status == 403), path
            assert response.headers["Peili-Id"] == "this-host"
            if status == 403:
                assert error_codes(response) == ["DENIED"]


async def test_a_client_without_an_address_is_denied() -> None:
    async with in_memory_host() as host:
        transport = httpx.ASGITransport(host.mirror.peer, client=None)  # type: ignore[arg-type]  # as on a unix socket
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/v2/")).status_code == 403


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Client-IP", "Host"])
async def test_headers_of_the_client_are_not_trusted(header: str) -> None:
    async with in_memory_host() as host, client_for(host.mirror.peer, "10.0.0.1") as client:
        response = await client.get("/v2/", headers={header: "127.0.0.1"})
        assert response.status_code == 403


def deny(_: HTTPConnection) -> bool:
    return False


@pytest.mark.parametrize(("address", "status"), [("127.0.0.1", 200), ("::1", 200), ("10.0.0.1", 403), ("", 403)])
async def test_by_default_the_local_door_allows_only_loopback(address: str, status: int) -> None:
    async with in_memory_host() as host, client_for(host.mirror.local, address) as client:
        assert (await client.get(host.blob_path)).status_code == status


async def test_local_auth_decides_who_may_use_the_local_door() -> None:
    auth = clients_in(["10.0.0.0/24", "fd00::5"])
    for address, status in (("10.0.0.9", 200), ("::ffff:10.0.0.9", 200), ("fd00::5", 200), ("10.0.1.9", 403)):
        async with in_memory_host(local_auth=auth) as host, client_for(host.mirror.local, address) as client:
            assert (await client.get(host.blob_path)).status_code == status, address
    async with in_memory_host(local_auth=deny) as host, client_for(host.mirror.local) as client:
        response = await client.get(host.blob_path)
        assert (response.status_code, error_codes(response)) == (403, ["DENIED"])


async def test_the_first_refused_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with in_memory_host() as host, client_for(host.mirror.local, "10.0.0.1") as client:
        for _ in range(3):
            await client.get(host.blob_path)
    [message] = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert message.startswith("refused a request from 10.0.0.1 to the local door")


async def test_insecure_opens_the_peer_door() -> None:
    async with in_memory_host(insecure=True) as host, client_for(host.mirror.peer, "10.0.0.1") as client:
        assert (await client.get(host.blob_path)).content == host.data


def has_token(connection: HTTPConnection) -> bool:
    return connection.headers.get("authorization") == "Bearer peili"


async def has_token_async(connection: HTTPConnection) -> bool:
    await asyncio.sleep(0)
    return has_token(connection)


@pytest.mark.parametrize("auth", [has_token, has_token_async])
async def test_auth_decides_for_loopback_too(auth: object) -> None:
    async with in_memory_host(auth=auth) as host:
        for address in ("10.0.0.1", "127.0.0.1"):
            async with client_for(host.mirror.peer, address) as client:
                assert (await client.get(host.blob_path)).status_code == 403
                response = await client.get(host.blob_path, headers={"Authorization": "Bearer peili"})
                assert response.content == host.data
                assert response.headers["Peili-Id"] == "this-host"


@pytest.mark.parametrize("door", ["local", "peer"])
async def test_a_failing_auth_denies_access_and_is_logged(door: str, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: HTTPConnection) -> bool:
        raise LookupError("no such key")

    async with in_memory_host(auth=broken, local_auth=broken) as host, client_for(host.door(door)) as client:
        assert (await client.get(host.blob_path)).status_code == 403
    assert "the access check failed" in caplog.text
    assert "no such key" in caplog.text


@pytest.mark.parametrize("door", ["local", "peer"])
async def test_a_hanging_auth_denies_access_and_is_logged(door: str, caplog: pytest.LogCaptureFixture) -> None:
    async def hanging(_: HTTPConnection) -> bool:
        await asyncio.Event().wait()
        return True

    limits = Limits(first_byte_timeout=0.1)
    async with (
        in_memory_host(auth=hanging, local_auth=hanging, limits=limits) as host,
        client_for(host.door(door)) as client,
    ):
        async with asyncio.timeout(60):
            assert (await client.get(host.blob_path)).status_code == 403
        assert host.mirror.metrics.limited.value("first_byte_timeout") == 1
    assert "the access check did not return in time" in caplog.text


@pytest.mark.parametrize("door", ["local", "peer"])
async def test_a_timeout_error_of_auth_itself_is_not_counted(door: str, caplog: pytest.LogCaptureFixture) -> None:
    async def impatient(_: HTTPConnection) -> bool:
        raise TimeoutError("the key server does not answer")

    async with in_memory_host(auth=impatient, local_auth=impatient) as host, client_for(host.door(door)) as client:
        assert (await client.get(host.blob_path)).status_code == 403
        assert host.mirror.metrics.limited.value("first_byte_timeout") == 0
    assert "the key server does not answer" in caplog.text
    assert "did not return in time" not in caplog.text


async def test_only_responses_of_the_peer_door_have_the_id() -> None:
    async with in_memory_host() as host:
        for path in ("/v2/", "/v2/X/tags/list", host.blob_path, "/_router", "/_router/nothing", "/other"):
            async with client_for(host.mirror.peer) as client:
                assert (await client.get(path)).headers["Peili-Id"] == "this-host"
            async with client_for(host.mirror.local) as client:
                assert "Peili-Id" not in (await client.get(path)).headers


@pytest.mark.parametrize("identity", ["", None])
def test_a_mirror_without_identity_gets_a_unique_id(identity: str | None) -> None:
    one, other = (Mirror(MemoryStore(), MemoryRouter(), identity=identity).identity for _ in range(2))
    assert one.id
    assert one.id != other.id


@pytest.mark.parametrize("identity", ["a b", "ä", "a\r\nSet-Cookie: b", "a" * 256])
def test_an_id_that_is_not_a_header_value_is_refused(identity: str) -> None:
    with pytest.raises(ConfigError, match=r"^identity: .*ASCII.*$"):
        Mirror(MemoryStore(), MemoryRouter(), identity=identity)


def test_auth_and_insecure_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"^insecure: "):
        Mirror(MemoryStore(), MemoryRouter(), insecure=True, auth=deny)
