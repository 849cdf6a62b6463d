"""``/livez``, ``/readyz`` and ``/status``."""

from __future__ import annotations

import time

import pytest
from tests.mirror.doors.in_memory_host import client_for
from typing_extensions import override

from peili.mirror import Mirror, Peer, PushRouter, Unavailable
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
                {"id": "other", "urls": ["http://10.0.0.3:5051"]},
                {"id": "named", "urls": ["https://10.0.0.4:5051"], "tls_name": "node.example"},
            ]
            assert {name: counts["requests"] for name, counts in document["runtime"].items()} == {
                "containerd": 2,
                "other": 1,
            }
            assert before <= document["runtime"]["containerd"]["last"] <= time.time()
