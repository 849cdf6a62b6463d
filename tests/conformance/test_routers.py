"""The conformance kits, run on the built-in routers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import pytest
from tests.conformance.routers import (
    dns_router,
    file_router,
    mdns_router,
    memory_router,
    push_router,
    static_router,
    talos_router,
)
from tests.support.name_server import HAS_NSD

from peili.mirror import PushRouter, Router
from peili.mirror.testing import MembershipFactory, check_membership_router, check_options, check_router
from peili.routers.dns import DnsRouter
from peili.routers.file import FileRouter
from peili.routers.kubernetes import KubernetesRouter
from peili.routers.mdns import MdnsRouter, discovery, router, service
from peili.routers.memory import MemoryRouter
from peili.routers.static import StaticRouter
from peili.routers.talos import TalosRouter

pytestmark = pytest.mark.anyio


async def test_the_memory_router_conforms() -> None:
    await check_router(memory_router)


@pytest.mark.skipif(not HAS_NSD, reason="not installed: nsd")
async def test_the_dns_router_conforms() -> None:
    await check_membership_router(dns_router)


@pytest.mark.parametrize("factory", [static_router, file_router, push_router, talos_router])
async def test_a_membership_router_conforms(factory: MembershipFactory) -> None:
    await check_membership_router(factory)


async def test_the_mdns_router_conforms(monkeypatch: pytest.MonkeyPatch) -> None:
    service_type = f"_peili{uuid4().hex[:8]}._tcp.local."  # other tests may use the same loopback at the same time
    for module in (discovery, router, service):
        monkeypatch.setattr(module, "SERVICE_TYPE", service_type)
    await check_membership_router(mdns_router)


@pytest.mark.parametrize(
    ("plugin", "options"),
    [
        (MemoryRouter, {}),
        (PushRouter, {}),
        (MdnsRouter, {"interfaces": ["eth0"], "labels": {"zone": "a"}}),
        (DnsRouter, {"name": "peili.example.com", "port": 5051, "servers": ["10.0.0.2"], "tls_name": "peili.test"}),
        (DnsRouter, {"srv": "_peili._tcp.example.com", "scheme": "https", "path": "/peili", "timeout": 2}),
        (FileRouter, {"path": "/etc/peili/peers", "interval": 1}),
        (KubernetesRouter, {"service": "peili", "api_server": "https://10.96.0.1", "zone_label": "example.com/zone"}),
        (StaticRouter, {"peers": ["http://10.0.0.3:5051"]}),
        (TalosRouter, {"file": "/run/members.json"}),
        (TalosRouter, {"command": ["talosctl", "get", "members", "-o", "json"], "port": 443, "scheme": "https"}),
    ],
)
def test_a_router_checks_its_options(plugin: type[Router], options: Mapping[str, Any]) -> None:
    check_options(plugin, options)
