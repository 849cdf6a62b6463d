"""For each promise there is an implementation that breaks it. The kit must notice this, and name the promise."""

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
from tests.conformance.broken_content import BROKEN_COMPLETE, BROKEN_INGESTS, Wrapped
from tests.conformance.broken_routers import BROKEN_MEMBERSHIP, BROKEN_RESOLVERS, BROKEN_ROUTERS, TableResolver
from tests.conformance.broken_stores import BROKEN_AWAY, BROKEN_STORES
from tests.conformance.routers import MemorySubject as MemoryRouterSubject
from tests.conformance.routers import PushSubject
from tests.conformance.stores import LayoutSubject, MemoryArrival, MemorySubject
from typing_extensions import override

from peili.mirror import ConfigError, Descriptor, Digest, Peer, PushRouter, Reference, StoreEvent
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
    conformance,
    content_kit,
    membership_kit,
    resolver_kit,
    router_kit,
    store_kit,
)
from peili.mirror.testing.conformance import Promises
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore
from peili.stores.oci_layout import OciLayoutStore

pytestmark = pytest.mark.anyio
WITHIN = 1.0
"""Seconds for each promise of a broken implementation, which is in memory."""


def sentences(promises: Promises) -> list[str]:
    return [promise for promise, _ in promises]


class AcceptsAnything(MemoryStore):
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
    NeedsALoop: "from_config accepts right options",
    AcceptsAnything: "from_config raises ConfigError with the name",
    NamesNoOption: "from_config raises ConfigError with the name",
}


def table(broken: dict[Any, str]) -> list[Any]:
    return [pytest.param(kind, promise, id=kind.__name__) for kind, promise in broken.items()]


@contextmanager
def expect_broken(start: str) -> Generator[None]:
    """Check that a kit raises ConformanceError for the promise that starts with `start`."""
    with pytest.raises(ConformanceError) as caught:
        yield
    assert caught.value.promise.startswith(start), str(caught.value)
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
            [*sentences(content_kit.COMPLETE), content_kit.CLOSING],
            list(BROKEN_COMPLETE.values()),
            id="Content, complete",
        ),
        pytest.param(sentences(content_kit.INGEST), list(BROKEN_INGESTS.values()), id="Content, ingest"),
        pytest.param(sentences(router_kit.PROMISES), list(BROKEN_ROUTERS.values()), id="Router"),
        pytest.param(sentences(membership_kit.PROMISES), list(BROKEN_MEMBERSHIP.values()), id="MembershipRouter"),
        pytest.param(sentences(resolver_kit.PROMISES), list(BROKEN_RESOLVERS.values()), id="Resolver"),
        pytest.param(
            [conformance.ACCEPTS_OPTIONS, conformance.REFUSES_OPTIONS], list(BROKEN_OPTIONS.values()), id="options"
        ),
    ],
)
def test_for_each_promise_there_is_an_implementation_that_breaks_it(promises: list[str], broken: list[str]) -> None:
    named = [[promise for promise in promises if promise.startswith(start)] for start in broken]
    assert all(len(each) == 1 for each in named), "each start belongs to exactly one promise"
    assert {each[0] for each in named} == set(promises)


@pytest.mark.parametrize(("broken", "promise"), table(BROKEN_STORES))
async def test_a_broken_store_is_caught(broken: type[MemoryStore], promise: str) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[StoreSubject]:
        yield MemorySubject(broken())

    with expect_broken(promise):
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

    with expect_broken(promise):
        await check_store(factory)


@pytest.mark.parametrize(("broken", "promise"), table(BROKEN_COMPLETE))
async def test_broken_complete_content_is_caught(broken: type[Wrapped], promise: str) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[ContentSubject]:
        store, data = MemoryStore(), os.urandom(2000)
        content = broken(await store.open(store.add(data).digest))
        try:
            yield ContentSubject(content, data)
        finally:
            with suppress(RuntimeError):  # which one of them raises
                await content.aclose()

    with expect_broken(promise):
        await check_content(factory, within=WITHIN)


@pytest.mark.parametrize(("broken", "promise"), table(BROKEN_INGESTS))
async def test_a_broken_ingest_is_caught(broken: type[Wrapped], promise: str) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[ContentSubject]:
        store, data = MemoryStore(), os.urandom(2000)
        ingest = store.begin(Digest.of(data), len(data))
        content = broken(await store.open(ingest.digest, partial=True))
        yield ContentSubject(content, data, MemoryArrival(ingest))

    with expect_broken(promise):
        await check_content(factory, within=WITHIN)


@pytest.mark.parametrize(("broken", "promise"), table(BROKEN_ROUTERS))
async def test_a_broken_router_is_caught(broken: type[MemoryRouter], promise: str) -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[RouterSubject]:
        yield MemoryRouterSubject(broken)

    with expect_broken(promise):
        await check_router(factory, within=WITHIN)


@pytest.mark.parametrize(("broken", "promise"), table(BROKEN_MEMBERSHIP))
async def test_a_broken_membership_router_is_caught(broken: type[PushRouter], promise: str) -> None:
    @asynccontextmanager
    async def factory(members: Sequence[Peer]) -> AsyncGenerator[MembershipSubject]:
        router = broken()
        router.set(members)
        yield PushSubject(router)

    with expect_broken(promise):
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

    with expect_broken(promise):
        await check_resolver(factory, within=WITHIN)


async def test_a_conforming_resolver_passes() -> None:
    @asynccontextmanager
    async def factory() -> AsyncGenerator[ResolverSubject]:
        yield TableSubject(TableResolver())

    await check_resolver(factory)


@pytest.mark.parametrize(("broken", "promise"), table(BROKEN_OPTIONS))
async def test_broken_options_are_caught(broken: type[MemoryStore], promise: str) -> None:
    with expect_broken(promise):
        check_options(broken, {})


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), BaseExceptionGroup("a group", [asyncio.CancelledError()])], ids=repr
)
async def test_any_error_of_an_implementation_breaks_the_promise(error: BaseException) -> None:
    async def fail() -> None:
        raise error

    with pytest.raises(ConformanceError, match="it does not fail"):
        await conformance.check_promise("it does not fail", fail())


async def test_an_implementation_must_not_cancel_its_caller() -> None:
    async def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(ConformanceError, match="it leaves its caller alone: the task that called it was cancelled"):
        await conformance.check_promise("it leaves its caller alone", cancel())


async def test_an_implementation_that_ignores_its_cancellation_is_not_awaited() -> None:
    go_on = asyncio.Event()

    async def ignore() -> None:
        while not go_on.is_set():
            with suppress(asyncio.CancelledError):
                await go_on.wait()

    with pytest.raises(ConformanceError, match=r"it ends: not so within 0\.05 s, and it ignores"):
        await conformance.check_promise("it ends", ignore(), 0.05)
    go_on.set()


class WithoutYield(MemoryStore):
    @override
    def watch(self) -> Any:
        return asyncio.sleep(0)


class FailingWatch(MemoryStore):
    @override
    async def watch(self) -> AsyncGenerator[Sequence[StoreEvent], None]:
        raise BaseExceptionGroup("out of order", [asyncio.CancelledError()])
        yield


@pytest.mark.parametrize(
    ("store", "words"),
    [(WithoutYield, "it must be an async generator"), (FailingWatch, "out of order")],
)
async def test_the_kit_says_why_a_watch_has_ended(store: type[MemoryStore], words: str) -> None:
    @asynccontextmanager
    async def subject() -> AsyncGenerator[StoreSubject]:
        yield MemorySubject(store())

    with pytest.raises(ConformanceError, match=f"the watch ended with .*{words}"):
        await check_store(subject, within=WITHIN)
