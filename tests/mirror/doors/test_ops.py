"""``/livez``, ``/readyz`` and ``/status``."""

from __future__ import annotations

import time

import pytest
from starlette.types import Receive, Scope, Send
from tests.mirror.doors.in_memory_host import client_for
from typing_extensions import override

from peili.mirror import Mirror, Peer, PushRouter, Unavailable, clients_in
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


class SlowStore(MemoryStore):
    """A store that is ready when `is_available` is set."""

    is_available = False

    @override
    def ready(self) -> bool:
        return self.is_available


async def test_livez_is_always_200_and_readyz_needs_every_part() -> None:
    store = SlowStore()
    mirror = Mirror(store, MemoryRouter())
    async with client_for(mirror.ops) as client:
        assert (await client.get("/livez")).status_code == 200
        response = await client.get("/readyz")
        assert (response.status_code, response.json()) == (503, {"store": False, "router": False, "resolver": False})
        async with mirror:
            assert (await client.get("/livez")).status_code == 200
            response = await client.get("/readyz")
            assert (response.status_code, response.json()) == (503, {"store": False, "router": True, "resolver": True})
            with pytest.raises(Unavailable, match=r"^not ready after 0\.05 s: store$"):
                await mirror.wait_ready(0.05)
            store.is_available = True
            await mirror.wait_ready(30)
            response = await client.get("/readyz")
            assert (response.status_code, response.json()) == (200, {"store": True, "router": True, "resolver": True})
            assert (await client.head("/readyz")).status_code == 200
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503


@pytest.mark.parametrize(
    ("client", "status"), [("127.0.0.1", 200), ("::1", 200), ("10.0.0.9", 403), ("10.0.0.1", 200), ("10.1.2.3", 200)]
)
async def test_at_the_local_door_only_its_clients_and_this_host_see_ops(client: str, status: int) -> None:
    mirror = Mirror(MemoryStore(), MemoryRouter(), local_auth=clients_in(["10.1.0.0/16"]), local_hosts=["*"])

    async def at_its_address(scope: Scope, receive: Receive, send: Send) -> None:
        await mirror.local_ops({**scope, "server": ("10.0.0.1", 5050)}, receive, send)

    for path in ("/status", "/livez", "/images", "/"):
        async with client_for(at_its_address, client) as asking:
            found = (await asking.get(path)).status_code
        assert found == (503 if (status, path) == (200, "/images") else status)  # the mirror is not entered
    async with client_for(mirror.own_ops, client) as asking:
        assert (await asking.get("/status")).status_code == 200


async def test_a_mirror_that_is_not_entered_is_not_ready() -> None:
    mirror = Mirror(MemoryStore(), MemoryRouter())
    with pytest.raises(Unavailable, match="store, router, resolver"):
        await mirror.wait_ready(0.01)


async def test_status_shows_identity_peers_and_runtime_requests() -> None:
    router = PushRouter()
    mirror = Mirror(MemoryStore(), router, identity=Peer("me", ("http://10.0.0.2:5051",)))
    async with client_for(mirror.ops) as client, client_for(mirror.local) as runtime:
        before_start = (await client.get("/status")).json()
        assert {
            name: before_start[name] for name in ("identity", "urls", "ready", "peers", "unreachable", "runtime")
        } == {
            "identity": "me",
            "urls": ["http://10.0.0.2:5051"],
            "ready": {"store": False, "router": False, "resolver": False},
            "peers": [],
            "unreachable": [],
            "runtime": {},
        }
        router.set(
            [Peer("other", ("http://10.0.0.3:5051",)), Peer("named", ("https://10.0.0.4:5051",), "node.example")]
        )
        async with mirror:
            await mirror.wait_ready(30)
            before = time.time()
            for agent in ("containerd/v2.1.4", "containerd/1.6.20", "curl/8"):
                await runtime.get("/v2/", headers={"User-Agent": agent})
            document = (await client.get("/status")).json()
            assert all(document["ready"].values())
            assert document["peers"] == [
                {"id": "other", "name": "other", "urls": ["http://10.0.0.3:5051"]},
                {"id": "named", "name": "named", "urls": ["https://10.0.0.4:5051"], "tls_name": "node.example"},
            ]
            assert {name: counts["requests"] for name, counts in document["runtime"].items()} == {
                "containerd": 2,
                "other": 1,
            }
            assert before <= document["runtime"]["containerd"]["last"] <= time.time()
