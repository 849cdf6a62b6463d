"""The built-in routers keep what their interfaces promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from tests.conformance.routers import memory_router, push_router, static_router, talos_router

from peili.mirror import PushRouter, Router
from peili.mirror.testing import MembershipFactory, check_membership_router, check_options, check_router
from peili.routers.memory import MemoryRouter
from peili.routers.static import StaticRouter
from peili.routers.talos import TalosRouter

pytestmark = pytest.mark.anyio


async def test_the_memory_router_keeps_its_promises() -> None:
    await check_router(memory_router)


@pytest.mark.parametrize("factory", [static_router, push_router, talos_router])
async def test_a_membership_router_keeps_its_promises(factory: MembershipFactory) -> None:
    await check_membership_router(factory)


@pytest.mark.parametrize(
    ("router", "options"),
    [
        (MemoryRouter, {}),
        (PushRouter, {}),
        (StaticRouter, {"peers": ["http://10.0.0.3:5051"]}),
        (TalosRouter, {"file": "/run/members.json"}),
        (TalosRouter, {"command": ["talosctl", "get", "members", "-o", "json"], "port": 443, "scheme": "https"}),
    ],
)
def test_a_router_checks_its_options(router: type[Router], options: Mapping[str, Any]) -> None:
    check_options(router, options)
