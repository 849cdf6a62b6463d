"""A host whose store is in memory, and a client of each of its doors."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import httpx
import pytest
from tests.mirror.doors.in_memory_host import DOORS, InMemoryHost, client_for, in_memory_host


@pytest.fixture
async def host() -> AsyncGenerator[InMemoryHost]:
    async with in_memory_host() as running_host:
        yield running_host


@pytest.fixture(params=DOORS)
async def client(request: pytest.FixtureRequest, host: InMemoryHost) -> AsyncGenerator[httpx.AsyncClient]:
    async with client_for(host.door(request.param)) as http_client:
        yield http_client
