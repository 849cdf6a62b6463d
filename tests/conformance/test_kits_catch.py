"""For each promise, an implementation that breaks it: the kit notices, and says which promise it was."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest
from tests.conformance.broken_content import BROKEN_ARRIVING, BROKEN_WHOLE, Wrapped
from tests.conformance.broken_routers import BROKEN_MEMBERSHIP, BROKEN_RESOLVERS, BROKEN_ROUTERS, TableResolver
from tests.conformance.broken_stores import BROKEN_AWAY, BROKEN_STORES
from tests.conformance.routers import MemorySubject as MemoryRouterSubject
from tests.conformance.routers import PushSubject
from tests.conformance.stores import LayoutSubject, MemoryArrival, MemorySubject
from typing_extensions import override

from peili.mirror import ConfigError, Descriptor, Digest, Peer, PushRouter, Reference
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
    content_kit,
    membership_kit,
    plugin_kit,
    resolver_kit,
    router_kit,
    store_kit,
)
from peili.mirror.testing.promises import Promises
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore
from peili.stores.oci_layout import OciLayoutStore

pytestmark = pytest.mark.anyio
WITHIN = 1.0
"""Seconds that a broken implementation gets for each promise: it is in memory."""


def sentences(promises: Promises) -> list[str]:
    return [promise for promise, _ in promises]


class TakesAnything(MemoryStore):
    @classmethod
    @override
    def from_config(cls, config: object) -> MemoryStore:  # type: ignore[override]
        return cls()


class NeedsALoop(MemoryStore):
    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        asyncio.get_running_loop()
        return super().from_config(config)


class NamesNoOption(MemoryStore):
    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        if config:
            raise ConfigError("options", "none")
        return cls()


BROKEN_OPTIONS: dict[type[MemoryStore], str] = {
    NeedsALoop: "from_config takes options that are right, without an event loop",
    TakesAnything: "from_config raises ConfigError for an unknown option",
    NamesNoOption: "from_config raises ConfigError for an unknown option",
}


def table(broken: dict[Any, str]) -> list[Any]:
    return [pytest.param(kind, promise, id=kind.__name__) for kind, promise in broken.items()]


@contextmanager
def naming(beginning: str) -> Generator[None]:
    """A kit finds something to be wrong, and names the promise that begins so."""
    with pytest.raises(ConformanceError) as caught:
        yield
    assert caught.value.promise.startswith(beginning), str(caught.value)
    assert str(caught.value).startswith(f"{caught.value.promise}: ")


def test_the_kits_need_no_test_framework() -> None:
    program = "import sys, peili.mirror.testing; print({'pytest', 'unittest'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("promises", "broken"),
    [
        pytest.param(sentences(store_kit.PROMISES), [*BROKEN_STORES.values(), *BROKEN_AWAY.values()], id="Store"),
        pytest.param(
            [*sentences(content_kit.WHOLE), content_kit.CLOSING], list(BROKEN_WHOLE.values()), id="Content, whole"
        ),
        pytest.param(sentences(content_kit.ARRIVING), list(BROKEN_ARRIVING.values()), id="Content, growing"),
        pytest.param(sentences(router_kit.PROMISES), list(BROKEN_ROUTERS.values()), id="Router"),
        pytest.param(sentences(membership_kit.PROMISES), list(BROKEN_MEMBERSHIP.values()), id="MembershipRouter"),
        pytest.param(sentences(resolver_kit.PROMISES), list(BROKEN_RESOLVERS.values()), id="Resolver"),
        pytest.param(
            [plugin_kit.TAKES_OPTIONS, plugin_kit.REFUSES_OPTIONS], list(BROKEN_OPTIONS.values()), id="options"
        ),
    ],
)
def test_for_each_promise_there_is_an_implementation_that_breaks_it(promises: list[str], broken: list[str]) -> None:
    meant = [[promise for promise in promises if promise.startswith(beginning)] for beginning in broken]
    assert all(len(each) == 1 for each in meant), "each names one promise, and no other"
    assert {each[0] for each in meant} == set(promises)


@pytest.mark.parametrize(("broken", "promise"), table(BROKEN_STORES))
async def test_a_broken_store_is_caught(broken: type[MemoryStore], promise: str) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[StoreSubject]:
        yield MemorySubject(broken())

    with naming(promise):
        await check_store(factory, within=WITHIN)


@pytest.mark.parametrize(("broken", "promise"), table(BROKEN_AWAY))
async def test_a_store_that_is_broken_while_its_backend_is_away_is_caught(
    broken: type[OciLayoutStore], promise: str
) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[StoreSubject]:
        with tempfile.TemporaryDirectory() as folder:
            subject = LayoutSubject(Path(folder) / "layout")
            subject.store = broken(subject.path)
            yield subject

    with naming(promise):
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


@pytest.mark.parametrize(("broken", "promise"), table(BROKEN_OPTIONS))
async def test_broken_options_are_caught(broken: type[MemoryStore], promise: str) -> None:
    with naming(promise):
        check_options(broken, {})
