"""The built-in routers keep what their interfaces promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import pytest
from tests.conformance.routers import mdns_router, memory_router, push_router, static_router, talos_router

from peili.mirror import PushRouter, Router
from peili.mirror.testing import MembershipFactory, check_membership_router, check_options, check_router
from peili.routers.mdns import MdnsRouter
from peili.routers.mdns import router as mdns
from peili.routers.mdns import service as mdns_service
from peili.routers.memory import MemoryRouter
from peili.routers.static import StaticRouter
from peili.routers.talos import TalosRouter

pytestmark = pytest.mark.anyio


async def test_the_memory_router_keeps_its_promises() -> None:
    await check_router(memory_router)


@pytest.mark.parametrize("factory", [static_router, push_router, talos_router])
async def test_a_membership_router_keeps_its_promises(factory: MembershipFactory) -> None:
    await check_membership_router(factory)


async def test_the_mdns_router_keeps_its_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    of_our_own = f"_peili{uuid4().hex[:8]}._tcp.local."  # other tests may run beside this one, on the same loopback
    for module in (mdns, mdns_service):
        monkeypatch.setattr(module, "SERVICE_TYPE", of_our_own)
    await check_membership_router(mdns_router)


@pytest.mark.parametrize(
    ("router", "options"),
    [
        (MemoryRouter, {}),
        (PushRouter, {}),
        (MdnsRouter, {"interfaces": ["eth0"], "labels": {"zone": "a"}}),
        (StaticRouter, {"peers": ["http://10.0.0.3:5051"]}),
        (TalosRouter, {"file": "/run/members.json"}),
        (TalosRouter, {"command": ["talosctl", "get", "members", "-o", "json"], "port": 443, "scheme": "https"}),
    ],
)
def test_a_router_checks_its_options(router: type[Router], options: Mapping[str, Any]) -> None:
    check_options(router, options)
