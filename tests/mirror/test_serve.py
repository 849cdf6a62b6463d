"""`serve`: where it listens, what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from pathlib import Path

import httpx
import pytest
from tests.mirror.doors.served_host import ZEROS_PATH, open_request, served_host
from tests.support.certificates import make_certificate
from tests.support.plain_http import plain_client
from tests.support.waiting import until

from peili.mirror import Address, ConfigError, Limits, ListenError, Mirror, Peer, serve
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


def mirror(**limits: float) -> Mirror:
    return Mirror(MemoryStore(), MemoryRouter(), limits=Limits(**limits))  # type: ignore[arg-type]  # times only


async def alive(address: str) -> bool:
    async with plain_client() as client:
        return (await client.get(f"http://{address}/v2/")).status_code == 200


async def test_serve_listens_on_several_addresses_and_returns_them() -> None:
    where = ["127.0.0.1:0", "[::1]:0", ":0"]
    async with serve(mirror(), local=where, peer="[::]:0") as serving:
        assert len(serving.local_addresses) == 3
        assert serving.local_addresses[1].startswith("[::1]:")
        assert serving.local_addresses[2].startswith("127.0.0.1:")
        port = serving.peer_addresses[0].rpartition(":")[2]
        for address in (*serving.local_addresses, f"127.0.0.1:{port}", f"[::1]:{port}"):
            assert await alive(address)


async def test_the_local_door_has_the_ops_routes_and_the_peer_door_has_not() -> None:
    async with serve(mirror(), local="127.0.0.1:0", peer="127.0.0.1:0") as serving, plain_client() as client:
        for path, status in (("/livez", 200), ("/readyz", 503)):
            assert (await client.get(f"http://{serving.local_addresses[0]}{path}")).status_code == status
            assert (await client.get(f"http://{serving.peer_addresses[0]}{path}")).status_code == 404


async def test_given_sockets_stay_the_callers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        for _ in range(2):
            async with serve(mirror(), local=sock) as serving:
                assert serving.local_addresses == (address,)
                assert serving.peer_addresses == ()
                assert await alive(address)
            assert sock.getsockname()[1] == int(address.rpartition(":")[2])


async def test_a_port_in_use_is_named_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for local, peer in ((address, None), ("127.0.0.1:0", address), (["127.0.0.1:0", address], None)):
            with pytest.raises(ListenError) as refused:
                async with serve(mirror(), local=local, peer=peer):
                    pass
            assert str(refused.value) == f"can't listen on {address}: address already in use"


async def test_an_unknown_host_name_is_reported_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")  # without asking a network that may hang

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ListenError, match=r"^can't listen on nowhere\.invalid:0: name or service not known$"):
        async with serve(mirror(), local="nowhere.invalid:0"):
            pass


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:x",
        "127.0.0.1:65536",
        "::1:80",
        "http://a:80",
        "a@b:80",
        "a:80/v2",
        "[::1:80",
    ],
)
async def test_a_malformed_address_is_answered_with_what_would_be_right(address: str) -> None:
    with pytest.raises(ConfigError) as refused:
        async with serve(mirror(), local=address):
            pass
    assert str(refused.value) == (f"listen: HOST:PORT, such as 127.0.0.1:5050 or [::]:5051, not {address!r}")


@pytest.mark.parametrize(
    ("address", "error"),
    [("a" * 64 + ".example:80", ConfigError), ("198.51.100.7:0", ListenError), ("no-such-host.invalid:0", ListenError)],
)
async def test_an_address_of_another_host_is_refused_in_one_line(address: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^.*" + address.replace(".", r"\.")) as refused:
        async with serve(mirror(), local=address):
            pass
    assert "\n" not in str(refused.value)


async def test_a_socket_that_is_not_tcp_is_refused() -> None:
    with socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        unix.bind("")  # a name that the kernel chooses
        wrong: list[Address] = [unix, udp]
        for each in wrong:
            with pytest.raises(ConfigError, match="listen: a TCP socket"):
                async with serve(mirror(), local=each):
                    pass


async def test_serve_handles_no_signals() -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    async with serve(mirror(), local="127.0.0.1:0"):
        assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


async def test_peers_get_the_bound_address_or_the_advertised_one() -> None:
    one, two, three = mirror(), mirror(), mirror()
    async with serve(one, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        assert one.identity.urls == (f"http://{serving.peer_addresses[0]}",)
    async with serve(two, local="127.0.0.1:0", peer="127.0.0.1:0", advertise="http://peer.example:1/peili"):
        assert two.identity.urls == ("http://peer.example:1/peili",)
    async with serve(three, local="127.0.0.1:0", peer="[::]:0") as serving:
        assert three.identity.urls
        assert not any("[::]" in url or "0.0.0.0" in url for url in three.identity.urls)


async def test_peers_get_the_address_where_the_mirror_is_served_now() -> None:
    again, given = mirror(), Mirror(MemoryStore(), MemoryRouter(), identity=Peer("a", ("http://a.example:1",)))
    for _ in range(2):
        async with serve(again, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
            assert again.identity.urls == (f"http://{serving.peer_addresses[0]}",)
        async with serve(given, local="127.0.0.1:0", peer="127.0.0.1:0"):
            assert given.identity.urls == ("http://a.example:1",)
    async with serve(again, local="127.0.0.1:0", peer="127.0.0.1:0", advertise="http://b.example:1/"):
        assert again.identity.urls == ("http://b.example:1",)
    async with serve(again, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        assert again.identity.urls == (f"http://{serving.peer_addresses[0]}",)


@pytest.mark.parametrize("door", ["local", "peer"])
async def test_serve_ends_soon_and_quietly_whatever_is_open(door: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with contextlib.AsyncExitStack() as stack:
        limits = Limits(drain_timeout=0.2, reader_timeout=600)  # much longer than the test
        host = await stack.enter_async_context(served_host(limits=limits))
        async with plain_client() as idle:
            assert (await idle.get(f"{host.url(door)}/v2/")).status_code == 200
            with open_request(host.address(door), ZEROS_PATH), open_request(host.address(door), "/v2/"):
                await until(lambda: len(host.store.opened) == 1)
                async with asyncio.timeout(60):
                    await stack.aclose()
    assert host.store.opened[0].closed.is_set()
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


async def test_a_response_in_progress_gets_time_to_end() -> None:
    async with served_host(limits=Limits(drain_timeout=60)) as host:
        added = host.store.add(bytes(8 << 20))
        url = f"{host.url('peer')}/v2/registry.example/demo/blobs/{added.digest}"
        async with plain_client() as client, client.stream("GET", url) as response:
            draining = asyncio.create_task(host.mirror.drain(60))
            assert len(await response.aread()) == added.size
            await draining


async def test_the_peer_door_can_require_client_certificates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificate = make_certificate(tmp_path)
    client_ssl = certificate.client_context()
    async with served_host(
        client_ssl=client_ssl, peer_ssl=certificate.server_context(), limits=Limits(drain_timeout=0.2)
    ) as host:
        url = host.url("peer").replace("http:", "https:")
        assert host.mirror.identity.urls == (url,)
        async with httpx.AsyncClient(verify=client_ssl, timeout=60, trust_env=False) as client:
            assert (await client.get(f"{url}/v2/")).status_code == 200
            async with client.stream("GET", url + ZEROS_PATH) as response:
                assert response.status_code == 200
                await host.mirror.drain(0.1)
                with pytest.raises(httpx.TransportError):
                    await response.aread()
        stranger = ssl.create_default_context(cafile=certificate.ca)
        async with httpx.AsyncClient(verify=stranger, timeout=60, trust_env=False) as client:
            with pytest.raises((httpx.TransportError, ssl.SSLError)):
                await client.get(f"{url}/v2/")
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]
