"""The conformance kit for stores, run on this store with a real containerd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from tests.stores.containerd.tenant import Tenant, new_tenant
from typing_extensions import override

from peili.mirror import Digest, Reference
from peili.mirror.testing import Arrival, StoreSubject, check_options, check_store
from peili.stores.containerd import ContainerdStore

pytestmark = pytest.mark.anyio


class ContainerdSubject(StoreSubject):
    """A store over one namespace of a real containerd. Only if the tenant is `sole`, containerd can be stopped."""

    def __init__(self, tenant: Tenant, stack: AsyncExitStack, *, by_api: bool = False, sole: bool = False) -> None:
        self._sole = sole
        self.store = tenant.store(content_path=tenant.directory / "nowhere" if by_api else None)
        self._tenant = tenant
        self._stack = stack
        self._by_api = by_api
        self._named: dict[Digest, Reference] = {}

    @override
    async def add(self, data: bytes, reference: Reference | None = None) -> None:
        digest = await self._tenant.put(data)
        if reference is not None:
            await self._tenant.tag(reference, digest, len(data))
            self._named[digest] = reference

    @override
    async def remove(self, digest: Digest) -> None:
        if digest in self._named:
            await self._tenant.ctr("images", "rm", str(self._named.pop(digest)))
        await self._tenant.ctr("content", "rm", digest)

    @override
    async def begin(self, data: bytes) -> Arrival | None:
        return None if self._by_api else await self._stack.enter_async_context(self._tenant.writing(data))

    @override
    async def lose(self) -> bool:
        if self._sole:
            await asyncio.to_thread(self._tenant.containerd.stop)
        return self._sole

    @override
    async def restore(self) -> None:
        await asyncio.to_thread(self._tenant.containerd.start)


@pytest.mark.parametrize("by_api", [False, True], ids=["from its directory", "through the API"])
async def test_the_store_conforms(tenant: Tenant, by_api: bool) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[StoreSubject, None]:
        async with AsyncExitStack() as stack:
            yield ContainerdSubject(new_tenant(tenant.containerd, tenant.directory), stack, by_api=by_api)

    await check_store(factory)


async def test_the_store_conforms_while_containerd_restarts(sole_tenant: Tenant) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[StoreSubject, None]:
        async with AsyncExitStack() as stack:
            yield ContainerdSubject(new_tenant(sole_tenant.containerd, sole_tenant.directory), stack, sole=True)

    await check_store(factory)


def test_the_options_are_checked() -> None:
    check_options(ContainerdStore, {"address": "/run/containerd/containerd.sock", "namespaces": ["k8s.io"]})
