"""The conformance kit for stores, run on this store with a real containerd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from tests.stores.containerd.namespace import Namespace, new_namespace
from typing_extensions import override

from peili.mirror import Digest, Reference
from peili.mirror.testing import Arrival, StoreSubject, check_options, check_store
from peili.stores.containerd import ContainerdStore

pytestmark = pytest.mark.anyio


class ContainerdSubject(StoreSubject):
    """A store over one namespace of a real containerd. If `can_stop`, the test may stop containerd."""

    def __init__(
        self, namespace: Namespace, stack: AsyncExitStack, *, by_api: bool = False, can_stop: bool = False
    ) -> None:
        self._can_stop = can_stop
        self.store = namespace.store(content_path=namespace.directory / "nowhere" if by_api else None)
        self._namespace = namespace
        self._stack = stack
        self._by_api = by_api
        self._named: dict[Digest, Reference] = {}

    @override
    async def add(self, data: bytes, reference: Reference | None = None) -> None:
        digest = await self._namespace.put(data)
        if reference is not None:
            await self._namespace.tag(reference, digest, len(data))
            self._named[digest] = reference

    @override
    async def remove(self, digest: Digest) -> None:
        if digest in self._named:
            await self._namespace.ctr("images", "rm", str(self._named.pop(digest)))
        await self._namespace.ctr("content", "rm", digest)

    @override
    async def begin(self, data: bytes) -> Arrival | None:
        return None if self._by_api else await self._stack.enter_async_context(self._namespace.writing(data))

    @override
    async def lose(self) -> bool:
        if self._can_stop:
            await asyncio.to_thread(self._namespace.containerd.stop)
        return self._can_stop

    @override
    async def restore(self) -> None:
        await asyncio.to_thread(self._namespace.containerd.start)


@pytest.mark.parametrize("by_api", [False, True], ids=["from its directory", "through the API"])
async def test_the_store_conforms(namespace: Namespace, by_api: bool) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[StoreSubject, None]:
        async with AsyncExitStack() as stack:
            yield ContainerdSubject(new_namespace(namespace.containerd, namespace.directory), stack, by_api=by_api)

    await check_store(factory)


async def test_the_store_conforms_while_containerd_restarts(own_namespace: Namespace) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[StoreSubject, None]:
        async with AsyncExitStack() as stack:
            yield ContainerdSubject(
                new_namespace(own_namespace.containerd, own_namespace.directory), stack, can_stop=True
            )

    await check_store(factory)


def test_the_options_are_checked() -> None:
    check_options(ContainerdStore, {"address": "/run/containerd/containerd.sock", "namespaces": ["k8s.io"]})
