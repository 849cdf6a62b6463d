"""For each promise, an implementation that breaks it: the kit notices, and says which promise it was."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.broken_content import BROKEN_ARRIVING, BROKEN_WHOLE, Wrapped
from tests.conformance.broken_routers import BROKEN_MEMBERSHIP, BROKEN_RESOLVERS, BROKEN_ROUTERS, TableResolver
from tests.conformance.broken_stores import BROKEN_STORES, CallsItMissing
from tests.conformance.routers import MemorySubject as MemoryRouterSubject
from tests.conformance.routers import PushSubject
from tests.conformance.stores import LayoutSubject, MemoryArrival, MemorySubject
from typing_extensions import override

from peili.mirror import Descriptor, Digest, Peer, PushRouter, Reference
from peili.mirror.testing import (
    ConformanceError,
    ContentSubject,
    MembershipSubject,
    ResolverSubject,
    RouterSubject,
    StoreSubject,
    check_content,
    check_membership_router,
    check_options,
    check_resolver,
    check_router,
    check_store,
)
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio
WITHIN = 1.0
"""Seconds that a broken implementation gets for each promise: it is in memory."""


def table(broken: dict[Any, str]) -> list[Any]:
    return [pytest.param(kind, promise, id=kind.__name__) for kind, promise in broken.items()]


def naming(promise: str) -> Any:
    return pytest.raises(ConformanceError, match=f"^{re.escape(promise)}")


@pytest.mark.parametrize(("broken", "promise"), table(BROKEN_STORES))
async def test_a_broken_store_is_caught(broken: type[MemoryStore], promise: str) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[StoreSubject]:
        yield MemorySubject(broken())

    with naming(promise):
        await check_store(factory, within=WITHIN)


async def test_a_store_that_confuses_away_with_missing_is_caught() -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[StoreSubject]:
        with tempfile.TemporaryDirectory() as folder:
            subject = LayoutSubject(Path(folder) / "layout")
            subject.store = CallsItMissing(subject.path)
            yield subject

    with naming("while the backend is away StoreUnavailable is raised"):
        await check_store(factory)


@pytest.mark.parametrize(("broken", "promise"), table(BROKEN_WHOLE))
async def test_broken_whole_content_is_caught(broken: type[Wrapped], promise: str) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[ContentSubject]:
        store, data = MemoryStore(), os.urandom(2000)
        content = broken(await store.open(store.add(data).digest))
        try:
            yield ContentSubject(content, data)
        finally:
            with suppress(RuntimeError):  # as one of them raises
                await content.aclose()

    with naming(promise):
        await check_content(factory, within=WITHIN)


@pytest.mark.parametrize(("broken", "promise"), table(BROKEN_ARRIVING))
async def test_broken_arriving_content_is_caught(broken: type[Wrapped], promise: str) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[ContentSubject]:
        store, data = MemoryStore(), os.urandom(2000)
        ingest = store.begin(Digest.of(data), len(data))
        content = broken(await store.open(ingest.digest, partial=True))
        yield ContentSubject(content, data, MemoryArrival(ingest))

    with naming(promise):
        await check_content(factory, within=WITHIN)


@pytest.mark.parametrize(("broken", "promise"), table(BROKEN_ROUTERS))
async def test_a_broken_router_is_caught(broken: type[MemoryRouter], promise: str) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[RouterSubject]:
        yield MemoryRouterSubject(broken)

    with naming(promise):
        await check_router(factory, within=WITHIN)


@pytest.mark.parametrize(("broken", "promise"), table(BROKEN_MEMBERSHIP))
async def test_a_broken_membership_router_is_caught(broken: type[PushRouter], promise: str) -> None:
    @asynccontextmanager
    async def factory(members: Sequence[Peer]) -> AsyncGenerator[MembershipSubject]:
        router = broken()
        router.set(members)
        yield PushSubject(router)

    with naming(promise):
        await check_membership_router(factory, within=3)


class TableSubject(ResolverSubject):
    def __init__(self, resolver: TableResolver) -> None:
        self.resolver = resolver
        self.table = resolver.table

    @override
    async def know(self, reference: Reference) -> Descriptor | None:
        self.table[reference] = Descriptor("application/octet-stream", Digest.of(os.urandom(8)), 8)
        return self.table[reference]


@pytest.mark.parametrize(("broken", "promise"), table(BROKEN_RESOLVERS))
async def test_a_broken_resolver_is_caught(broken: type[TableResolver], promise: str) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[ResolverSubject]:
        yield TableSubject(broken())

    with naming(promise):
        await check_resolver(factory, within=WITHIN)


async def test_a_resolver_that_keeps_its_promises_passes() -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[ResolverSubject]:
        yield TableSubject(TableResolver())

    await check_resolver(factory)


class TakesAnything(MemoryStore):
    @classmethod
    @override
    def from_config(cls, config: object) -> MemoryStore:  # type: ignore[override]
        return cls()


def test_options_that_nobody_knows_are_not_to_be_taken() -> None:
    with naming("from_config raises ConfigError for an unknown option"):
        check_options(TakesAnything, {})
