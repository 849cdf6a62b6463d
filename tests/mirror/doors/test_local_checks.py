"""Requests that a web page may have caused are refused by the local door and by the ops app."""

from __future__ import annotations

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from tests.mirror.doors.in_memory_host import InMemoryHost, client_for, error_codes, in_memory_host
from tests.mirror.doors.served_host import served_host
from tests.support.plain_http import plain_client

from peili.mirror import serve

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:5050", 200),
        ("localhost.", 200),
        ("127.0.0.1", 200),
        ("127.9.9.9:80", 200),
        ("[::1]:5050", 200),
        ("[::ffff:127.0.0.1]", 200),
        ("", 200),
        ("rebound.example", 403),
        ("rebound.example:5050", 403),
        ("localhost.rebound.example", 403),
        ("127.0.0.1.rebound.example", 403),
        ("10.0.0.9", 403),
        ("[fe80::1]", 403),
        ("0.0.0.0", 403),
        ("2130706433", 403),
    ],
)
async def test_the_local_door_refuses_a_foreign_host(host: str, status: int) -> None:
    async with in_memory_host() as this, client_for(this.mirror.local) as client:
        response = await client.get(this.blob_path, headers={"Host": host})
        assert response.status_code == status
        if status == 403:
            assert error_codes(response) == ["DENIED"]


async def test_names_of_the_local_door_can_be_allowed() -> None:
    for allowed, status in ((["Mirror.internal"], 200), (["*"], 200), (["other.internal"], 403)):
        async with in_memory_host(local_hosts=allowed) as host, client_for(host.mirror.local) as client:
            response = await client.get(host.blob_path, headers={"Host": "mirror.internal:5050"})
            assert response.status_code == status, allowed


async def test_the_peer_door_allows_every_host() -> None:
    async with in_memory_host() as host, client_for(host.mirror.peer) as client:
        assert (await client.get(host.blob_path, headers={"Host": "node-1.internal"})).status_code == 200


async def test_the_address_at_which_a_request_arrived_is_allowed() -> None:
    async with in_memory_host() as host:
        app = _at_address(host.mirror.local, "10.0.0.2")
        async with client_for(app) as client:
            for name, status in (("10.0.0.2:5050", 200), ("10.0.0.3:5050", 403)):
                assert (await client.get(host.blob_path, headers={"Host": name})).status_code == status


def _at_address(app: ASGIApp, address: str) -> ASGIApp:
    async def arrived(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "server": (address, 5050)}, receive, send)

    return arrived


@pytest.mark.parametrize(
    "header",
    [
        {"Origin": "http://rebound.example"},
        {"Origin": "http://localhost"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ],
)
async def test_the_local_door_refuses_browsers(header: dict[str, str]) -> None:
    async with in_memory_host() as host, client_for(host.mirror.local) as client:
        for path in ("/v2/", host.blob_path, host.manifest_path):
            response = await client.get(path, headers=header)
            assert (response.status_code, error_codes(response)) == (403, ["DENIED"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Origin": "http://rebound.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
    ],
)
async def test_ops_refuses_only_pages_of_other_sites(headers: dict[str, str], status: int) -> None:
    async with in_memory_host() as host, client_for(host.mirror.ops) as client:
        assert (await client.get("/livez", headers=headers)).status_code == status


async def test_ops_at_the_local_door_refuses_a_foreign_host_too() -> None:
    async with served_host() as host, plain_client(trust_env=False) as client:
        for name, status in (("localhost", 200), ("rebound.example", 403)):
            response = await client.get(f"{host.url('local')}/livez", headers={"Host": name})
            assert response.status_code == status


async def test_the_first_refusal_is_logged_with_its_setting(caplog: pytest.LogCaptureFixture) -> None:
    host = InMemoryHost()
    async with host.mirror, serve(host.mirror, local="127.0.0.1:0") as serving, plain_client() as client:
        for _ in range(3):
            await client.get(f"http://{serving.local_addresses[0]}/v2/", headers={"Host": "mirror.internal"})
    [message] = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert "mirror.internal" in message
    assert "local.allow_hosts" in message
