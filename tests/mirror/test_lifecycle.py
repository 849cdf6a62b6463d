"""A mirror is entered and exited, with plug-ins that fail, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import anyio
import httpx
import pytest
from tests.support.plain_http import plain_client
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import (
    Context,
    Have,
    Key,
    Limits,
    Mirror,
    Peer,
    Reference,
    StoreEvent,
    Unavailable,
    serve,
)
from peili.routers.memory import MemoryNetwork, MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

QUICK = Limits(backoff_min=0.01, backoff_max=0.02, start_timeout=0.2, stop_timeout=0.2, drain_timeout=0.2)
NOTHING = "/v2/registry.example/demo/blobs/sha256:" + "0" * 64


async def status(mirror: Mirror, path: str) -> int:
    transport = httpx.ASGITransport(mirror.local)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return (await client.get(path)).status_code


@pytest.fixture(autouse=True)
async def nothing_is_left_behind() -> AsyncGenerator[None]:
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    yield
    await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() - tasks if "TestRunner" not in repr(task)]  # anyio's own
    assert not {thread for thread in set(threading.enumerate()) - threads if not thread.name.startswith("asyncio_")}


async def test_a_mirror_can_be_entered_in_one_task_and_exited_in_another() -> None:
    mirror = Mirror(MemoryStore(), MemoryRouter())
    await asyncio.create_task(mirror.__aenter__())
    assert mirror.ready()
    await asyncio.create_task(mirror.__aexit__(None, None, None))
    assert not mirror.ready()


async def test_a_mirror_can_be_entered_again_but_not_twice_at_once() -> None:
    mirror = Mirror(MemoryStore(), MemoryRouter())
    for _ in range(3):
        async with mirror:
            assert mirror.ready()
            with pytest.raises(RuntimeError, match="running already"):
                await mirror.__aenter__()
            assert mirror.ready()
        assert not mirror.ready()


async def test_two_mirrors_run_side_by_side_and_find_each_other() -> None:
    network = MemoryNetwork()
    stores = MemoryStore(), MemoryStore()
    one, two = (Mirror(store, MemoryRouter(network)) for store in stores)
    added = stores[0].add(b"content that one of them has")
    path = f"/v2/registry.example/demo/blobs/{added.digest}"
    async with (
        one,
        two,
        serve(one, local="127.0.0.1:0", peer="127.0.0.1:0"),
        serve(two, local="127.0.0.1:0", peer="127.0.0.1:0") as serving,
        plain_client() as client,
    ):
        await until(lambda: added.digest in network.holdings[one.identity.id])
        response = await client.get(f"http://{serving.local_addresses[0]}{path}")
        assert (response.status_code, response.content) == (200, b"content that one of them has")


class Fragile(MemoryStore):
    """Fails a given number of times, at a given moment."""

    def __init__(self, when: str, *, failures: int = 2) -> None:
        super().__init__()
        self.when = when
        self.failures = failures
        self.entered = 0

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        self.entered += 1
        failing = self.entered <= self.failures
        if failing and self.when == "entering":
            raise LookupError("out of order")
        if failing and self.when == "entering, cancelled":
            raise asyncio.CancelledError
        if failing and self.when == "entering, in a group":
            raise BaseExceptionGroup("out of order", [asyncio.CancelledError(), LookupError()])
        if failing and self.when == "later":
            async with asyncio.TaskGroup() as group:
                group.create_task(self._fail())
                yield
        else:
            yield
        if self.when == "leaving":
            raise LookupError("out of order")
        if self.when == "leaving, in a group":
            raise BaseExceptionGroup("out of order", [asyncio.CancelledError()])

    async def _fail(self) -> None:
        await asyncio.sleep(0.01)
        raise LookupError("out of order")


@pytest.mark.parametrize("when", ["entering", "entering, cancelled", "entering, in a group", "later"])
async def test_a_plug_in_that_fails_is_entered_again_and_the_agent_continues(
    when: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Fragile(when)
    limits = replace(QUICK, backoff_max=1000)  # far above what a busy machine takes for one try
    async with Mirror(store, MemoryRouter(), limits=limits) as mirror:
        assert await status(mirror, NOTHING) == 404
        await until(lambda: store.entered == 3)
        await mirror.wait_ready(30)
        assert await status(mirror, NOTHING) == 404
    messages = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert messages == [f"Fragile failed; entered again in {pause} s" for pause in ("0.01", "0.02")]


@pytest.mark.parametrize("when", ["leaving", "leaving, in a group"])
async def test_a_plug_in_that_fails_on_exit_does_not_affect_the_agent(
    when: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Fragile(when)
    async with Mirror(store, MemoryRouter(), limits=QUICK):
        pass
    assert [each.getMessage() for each in caplog.records] == ["Fragile failed to exit"]


class CancelsItsTask(MemoryStore):
    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        yield


async def test_the_log_says_that_the_task_of_a_plug_in_was_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    async with Mirror(CancelsItsTask(), MemoryRouter(), limits=QUICK) as mirror:
        await until(lambda: "CancelsItsTask: its task was cancelled; it is not entered again" in caplog.text)
        assert await status(mirror, NOTHING) == 404


class Slow(MemoryStore):
    """Takes long to be entered or exited."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.when = when
        self.ended = False

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        try:
            if self.when == "entering":
                await asyncio.sleep(600)
            yield
            await asyncio.sleep(600)
        finally:
            self.ended = True


@pytest.mark.parametrize("when", ["entering", "leaving"])
async def test_a_plug_in_that_hangs_is_not_awaited(when: str) -> None:
    store = Slow(when)
    async with asyncio.timeout(60):
        async with Mirror(store, MemoryRouter(), limits=QUICK) as mirror:
            assert mirror.readiness() == {"store": when == "leaving", "router": True, "resolver": True}
            assert await status(mirror, NOTHING) == 404
    assert store.ended


async def test_a_cancelled_entry_or_exit_leaves_nothing_behind() -> None:
    limits = Limits(start_timeout=60, stop_timeout=0.5)
    for when in ("entering", "leaving"):
        store = Slow(when)
        mirror = Mirror(store, MemoryRouter(), limits=limits)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), mirror:
                pass
        assert store.ended


class Recording(MemoryRouter):
    """Records what is advertised and withdrawn; may fail then."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error
        self.advertised: set[Key] = set()

    @override
    async def advertise(self, have: Collection[StoreEvent]) -> None:
        self.advertised.update(event.key for event in have if isinstance(event, Have))

    @override
    async def withdraw(self, keys: Collection[Key]) -> None:
        self.advertised.difference_update(keys)
        if self.error is not None:
            raise self.error


async def test_content_is_advertised_once_our_peer_door_answers_and_withdrawn_by_drain() -> None:
    store, router = MemoryStore(), Recording()
    added = store.add(b"peili")
    async with Mirror(store, router, limits=QUICK) as mirror:
        await asyncio.sleep(0.2)
        assert not router.advertised
        async with serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0"):
            await until(lambda: router.advertised == {added.digest})
            more = store.add(b"more")
            await until(lambda: router.advertised == {added.digest, more.digest})
            store.remove(added.digest)
            await until(lambda: router.advertised == {more.digest})
            await mirror.drain(1)
            assert not router.advertised
            assert await status(mirror, f"/v2/registry.example/demo/blobs/{more.digest}") == 200
            await mirror.drain(1)


class Hesitating(Recording):
    """Withdraws once it `may`."""

    def __init__(self) -> None:
        super().__init__()
        self.was_asked, self.may_answer = asyncio.Event(), asyncio.Event()

    @override
    async def withdraw(self, keys: Collection[Key]) -> None:
        self.was_asked.set()
        await self.may_answer.wait()
        await super().withdraw(keys)


async def test_a_second_drain_completes_a_cancelled_one() -> None:
    store, router = MemoryStore(), Hesitating()
    added = store.add(b"peili")
    async with Mirror(store, router) as mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0"):
        await until(lambda: router.advertised == {added.digest})
        draining = asyncio.create_task(mirror.drain(1))
        await router.was_asked.wait()
        draining.cancel()
        await asyncio.wait([draining])
        router.may_answer.set()
        await mirror.drain(1)
        assert not router.advertised


async def test_a_mirror_that_stays_entered_can_be_served_again_elsewhere() -> None:
    network = MemoryNetwork()
    store = MemoryStore()
    one, two = Mirror(store, MemoryRouter(network), limits=QUICK), Mirror(MemoryStore(), MemoryRouter(network))
    added = store.add(b"content that one of them has")
    path = f"/v2/registry.example/demo/blobs/{added.digest}"
    ports = set[str]()
    async with one, two:
        for _ in range(3):
            async with serve(one, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
                await one.wait_ready(5)
                await until(lambda: one.identity.id in network.hosts)  # the router may be entered again just now
                await until(lambda: added.digest in network.holdings[one.identity.id])
                assert network.hosts[one.identity.id].urls == (f"http://{serving.peer_addresses[0]}",)
                assert await status(two, path) == 200
                ports.add(serving.peer_addresses[0])
            assert one.ready()
            assert await status(two, path) == 404
    assert len(ports) == 3


async def test_resume_advertises_again_a_mirror_that_is_mounted_in_the_agents_server() -> None:
    store, router = MemoryStore(), Recording()
    added = store.add(b"peili")
    mirror = Mirror(store, router, limits=QUICK)
    await mirror.resume()
    assert not mirror.ready()
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0"):
        for _ in range(2):
            await until(lambda: router.advertised == {added.digest})
            await mirror.drain(1)
            assert not router.advertised
            await asyncio.gather(mirror.resume(), mirror.resume())
        await until(lambda: router.advertised == {added.digest})
        await mirror.resume()
        assert router.advertised == {added.digest}


async def test_a_mirror_that_is_exited_while_it_resumes_leaves_nothing_behind() -> None:
    class Hanging(MemoryRouter):
        hangs = False
        entering = asyncio.Event()

        @override
        @asynccontextmanager
        async def run(self, context: Context) -> AsyncGenerator[None]:
            async with super().run(context):
                if self.hangs:
                    self.entering.set()
                    await asyncio.sleep(60)
                yield

    router = Hanging()
    async with Mirror(MemoryStore(), router, extensions=[Slow("entering")], limits=QUICK) as mirror:
        await mirror.drain(0.1)
        router.hangs = True
        resuming = asyncio.create_task(mirror.resume())
        await router.entering.wait()
    await resuming


class ForgetsWhenItFails(Recording):
    """Forgets what was advertised before it failed."""

    def __init__(self) -> None:
        super().__init__()
        self.failing = asyncio.Event()
        self.entered = 0

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        self.entered += 1
        self.advertised.clear()
        async with super().run(context), asyncio.TaskGroup() as group:
            failing = group.create_task(self._fail())
            yield
            failing.cancel()

    async def _fail(self) -> None:
        await self.failing.wait()
        self.failing.clear()
        raise LookupError("out of order")


async def test_a_router_that_was_entered_again_receives_everything_again() -> None:
    store, router = MemoryStore(), ForgetsWhenItFails()
    added = store.add(b"peili")
    mirror = Mirror(store, router, limits=QUICK)
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0"):
        for times in range(1, 5):
            await until(lambda: router.advertised == {added.digest})
            assert router.entered == times
            router.advertised.clear()
            router.failing.set()
        await until(lambda: router.advertised == {added.digest})
        more = store.add(b"more")
        await until(lambda: router.advertised == {added.digest, more.digest})


async def test_another_hosts_door_is_not_ours() -> None:
    """The URL answers, but with another id: `advertise` is wrong, or another process has the port."""
    store, router = MemoryStore(), Recording()
    store.add(b"peili")
    other = Mirror(MemoryStore(), MemoryRouter())
    async with other, serve(other, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        wrong = Peer("this-host", (f"http://{serving.peer_addresses[0]}",))
        async with Mirror(store, router, identity=wrong, limits=QUICK):
            await asyncio.sleep(0.3)
            assert not router.advertised


async def test_references_outside_the_selection_are_not_advertised() -> None:
    store, router = MemoryStore(), Recording()
    added = store.add(b"peili")
    tags = [Reference("registry.example", "demo", tag) for tag in ("latest", "v1")]
    for tag in tags:
        store.tag(tag, added)
    mirror = Mirror(store, router, exclude=[":latest$"], limits=QUICK)
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0"):
        await until(lambda: added.digest in router.advertised)
        assert router.advertised == {added.digest, tags[1]}


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (Unavailable("away"), "could not withdraw: away"),
        (LookupError("a bug in a plug-in"), "the router's withdraw failed"),
    ],
)
async def test_a_router_that_can_not_withdraw_does_not_affect_the_agent(
    error: Exception, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    store, router = MemoryStore(), Recording(error)
    store.add(b"peili")
    mirror = Mirror(store, router, limits=QUICK)
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0"):
        await until(lambda: len(router.advertised) == 1)
    messages = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert messages == [line]


class Obstinate(Recording):
    """Ignores that `withdraw` is cancelled, until `go_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.has_ended = asyncio.Event()

    @override
    async def withdraw(self, keys: Collection[Key]) -> None:
        while not self.go_on.is_set():
            with suppress(asyncio.CancelledError):
                await self.go_on.wait()
        self.has_ended.set()


async def test_a_router_that_ignores_its_cancellation_does_not_hold_up_the_agent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, router = MemoryStore(), Obstinate()
    store.add(b"peili")
    mirror = Mirror(store, router, limits=QUICK)

    async def run() -> None:
        async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0"):
            await until(lambda: len(router.advertised) == 1)

    agent = asyncio.create_task(run())
    ended, _ = await asyncio.wait({agent}, timeout=60)
    router.go_on.set()
    await agent
    assert ended
    assert "Obstinate.withdraw ignores that it was cancelled; not awaited" in caplog.text
    await router.has_ended.wait()


@pytest.mark.parametrize("when", ["entering", "serving"])
async def test_a_cancelled_scope_of_anyio_does_not_disturb_the_exit(
    when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a scope cancels its task at each await, also at those of the exit."""
    store, router = MemoryStore(), Recording()
    store.add(b"peili")
    mirror = Mirror(store, router, limits=replace(QUICK, stop_timeout=30))
    with anyio.CancelScope() as scope:
        if when == "entering":
            scope.cancel()
        async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0"):
            await until(lambda: len(router.advertised) == 1)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert not router.advertised
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
    async with mirror:
        await mirror.wait_ready(30)


async def test_one_object_may_be_store_and_router_and_need_not_be_hashable() -> None:
    class Both(MemoryStore, MemoryRouter):
        __hash__ = None  # type: ignore[assignment]  # as a dataclass that is not frozen

        def __init__(self) -> None:
            MemoryStore.__init__(self)
            MemoryRouter.__init__(self)

        @override
        @asynccontextmanager
        async def run(self, context: Context) -> AsyncGenerator[None]:
            async with MemoryRouter.run(self, context):
                yield

    both = Both()
    async with Mirror(both, both, limits=QUICK) as mirror:
        assert mirror.ready()
