"""Extensions are entered after the mirror's own plug-ins and exited before them. Their failures affect nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
import pytest
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Context, Limits, Mirror, Plugin, serve
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

QUICK = Limits(backoff_min=0.01, backoff_max=0.02, start_timeout=0.2, stop_timeout=0.2)


class Noted:
    """Records when it is entered and exited."""

    def __init__(self, notes: list[str], name: str) -> None:
        self.notes = notes
        self.name = name

    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        self.notes.append(f"{self.name} in")
        yield
        self.notes.append(f"{self.name} out")


class NotedStore(Noted, MemoryStore):
    def __init__(self, notes: list[str]) -> None:
        Noted.__init__(self, notes, "store")
        MemoryStore.__init__(self)


class Extension(Noted, Plugin):
    pass


class Lingering(Plugin):
    """Does not exit while it `lingers`."""

    def __init__(self) -> None:
        self.lingers = True
        self.leaving = asyncio.Event()

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        yield
        self.leaving.set()
        if self.lingers:
            await asyncio.sleep(60)


class Dawdling(Plugin):
    """Is entered at once, or once it `may` be."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.entering = asyncio.Event()

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        self.entering.set()
        await self.may.wait()
        yield


class DawdlingRouter(Dawdling, MemoryRouter):
    def __init__(self) -> None:
        Dawdling.__init__(self)
        MemoryRouter.__init__(self)


class Useless(Plugin):
    """Can't be entered."""

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None]:
        raise LookupError("out of order")
        yield


class Hesitant(Plugin):
    """Is never ready."""

    @override
    def ready(self) -> bool:
        return False


async def test_extensions_are_entered_last_and_exited_first_in_reverse_order() -> None:
    notes: list[str] = []
    mirror = Mirror(NotedStore(notes), MemoryRouter(), extensions=[Extension(notes, "one"), Extension(notes, "two")])
    for _ in range(2):
        async with mirror:
            assert notes == ["store in", "one in", "two in"]
            assert mirror.readiness() == {"store": True, "router": True, "resolver": True, "Extension": True}
        assert notes[3:] == ["two out", "one out", "store out"]
        notes.clear()


async def test_drain_exits_extensions_and_the_mirror_continues() -> None:
    notes: list[str] = []
    async with Mirror(NotedStore(notes), MemoryRouter(), extensions=[Extension(notes, "it")]) as mirror:
        await mirror.drain(0.1)
        await mirror.drain(0.1)
        assert notes == ["store in", "it in", "it out"]
        assert mirror.ready()
        assert mirror.readiness()["Extension"] is False
    assert notes == ["store in", "it in", "it out", "store out"]


async def test_extensions_are_entered_again_when_a_drained_mirror_is_served_again() -> None:
    notes: list[str] = []
    async with Mirror(NotedStore(notes), MemoryRouter(), extensions=[Extension(notes, "it")]) as mirror:
        for _ in range(2):
            async with serve(mirror, local="127.0.0.1:0"):
                assert notes[-1] == "it in"
                assert mirror.readiness()["Extension"] is True
            assert notes[-1] == "it out"
    assert notes == ["store in", "it in", "it out", "it in", "it out", "store out"]


async def test_a_cancelled_drain_is_undone_by_resume() -> None:
    extension = Lingering()
    mirror = Mirror(MemoryStore(), MemoryRouter(), extensions=[extension])
    async with mirror:
        draining = asyncio.create_task(mirror.drain(0.1))
        await extension.leaving.wait()
        draining.cancel()
        await asyncio.wait([draining])
        assert mirror.readiness()["Lingering"] is False
        await mirror.resume()
        assert mirror.readiness()["Lingering"] is True
        extension.lingers = False


async def test_a_cancelled_exit_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    extension = Lingering()
    mirror = Mirror(MemoryStore(), MemoryRouter(), extensions=[extension], limits=Limits(stop_timeout=0.5))
    await mirror.__aenter__()
    leaving = asyncio.create_task(mirror.__aexit__(None, None, None))
    await extension.leaving.wait()
    leaving.cancel()
    await asyncio.wait([leaving])
    assert asyncio.all_tasks() == before


async def test_an_extension_is_not_entered_after_drain() -> None:
    notes: list[str] = []
    router = DawdlingRouter()
    router.may.clear()
    mirror = Mirror(MemoryStore(), router, extensions=[Extension(notes, "it")])
    entering = asyncio.create_task(mirror.__aenter__())
    await router.entering.wait()
    await mirror.drain(0.1)
    router.may.set()
    await entering
    assert notes == []
    await mirror.resume()
    assert notes == ["it in"]
    await mirror.__aexit__(None, None, None)


async def test_a_cancelled_resume_can_be_tried_again() -> None:
    notes: list[str] = []
    router = DawdlingRouter()
    async with Mirror(MemoryStore(), router, extensions=[Extension(notes, "it")]) as mirror:
        await mirror.drain(0.1)
        router.may.clear()
        router.entering.clear()
        resuming = asyncio.create_task(mirror.resume())
        await router.entering.wait()
        resuming.cancel()
        await asyncio.wait([resuming])
        router.may.set()
        await mirror.resume()
        assert notes == ["it in", "it out", "it in"]


async def test_an_extension_that_fails_or_is_not_ready_is_reported_and_affects_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mirror = Mirror(MemoryStore(), MemoryRouter(), extensions=[Useless(), Hesitant()], limits=QUICK)
    async with mirror:
        await mirror.wait_ready(30)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(mirror.ops), base_url="http://ops") as client:
            response = await client.get("/readyz")
        assert response.status_code == 200
        assert response.json() == {
            "store": True,
            "router": True,
            "resolver": True,
            "Useless": False,
            "Hesitant": False,
        }
        await until(lambda: "Useless failed; entered again in 0.02 s" in caplog.text)


async def test_reload_reaches_every_plug_in_also_after_one_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    reloaded: list[str] = []

    class Failing(MemoryStore):
        @override
        def reload(self) -> None:
            raise ValueError("no file")

    class Reloading(Plugin):
        @override
        def reload(self) -> None:
            reloaded.append("extension")

    async with Mirror(Failing(), MemoryRouter(), extensions=[Reloading()]) as mirror:
        mirror.reload()
    assert reloaded == ["extension"]
    assert [record.getMessage() for record in caplog.records if record.exc_info] == ["Failing failed to reload"]
