"""Calls of plug-ins."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from peili.mirror import Context, Limits, NotFound, Peer, PeerClient, Selection, Unavailable
from peili.mirror.plugins.calls import CallFailed, call
from peili.routers.memory import MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

LIMITS = Limits(first_byte_timeout=0.05, lookup_timeout=60)


async def answer() -> int:
    await asyncio.sleep(0)
    return 7


async def hang() -> int:
    await asyncio.Event().wait()
    return 7


async def swallow() -> int:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise NotFound("cancelled") from None
    return 7


async def never_listening() -> Peer:
    raise NotImplementedError


def raises(error: Exception) -> Callable[[], Awaitable[int]]:
    async def fail() -> int:
        raise error

    return fail


def context(counted: list[str]) -> Context:
    return Context(
        identity="this-host",
        listening=never_listening,
        store=MemoryStore(),
        router=MemoryRouter(),
        client=PeerClient(LIMITS),
        selection=Selection(),
        limits=LIMITS,
        log=logging.getLogger("test_calls"),
        limited=counted.append,
    )


async def test_the_result_of_the_plug_in_is_returned() -> None:
    counted: list[str] = []
    assert await call(answer, context(counted), "the plug-in") == 7
    assert counted == []


@pytest.mark.parametrize("function", [hang, swallow])
async def test_a_call_that_takes_too_long_is_counted_and_logged(
    function: Callable[[], Awaitable[int]], caplog: pytest.LogCaptureFixture
) -> None:
    counted: list[str] = []
    with pytest.raises(CallFailed, match=r"^the plug-in did not return in time$"):
        await call(function, context(counted), "the plug-in", about="key", allowed=(NotFound,))
    assert counted == ["first_byte_timeout"]
    assert caplog.messages == ["key: the plug-in did not return in time"]


async def test_the_bound_may_differ_from_the_limit_that_is_counted() -> None:
    counted: list[str] = []
    with pytest.raises(CallFailed):
        await call(hang, context(counted), "the plug-in", limit="lookup_timeout", seconds=0.01)
    assert counted == ["lookup_timeout"]


@pytest.mark.parametrize("error", [TypeError("a bug"), TimeoutError("its own"), NotFound("not allowed")])
async def test_an_error_that_is_not_allowed_is_logged_with_its_stack(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    counted: list[str] = []
    with pytest.raises(CallFailed, match=r"^the plug-in failed$") as raised:
        await call(raises(error), context(counted), "the plug-in")
    assert isinstance(raised.value, Unavailable)
    assert raised.value.__cause__ is error
    assert counted == []
    (record,) = caplog.records
    assert (record.getMessage(), record.exc_info is not None) == ("the plug-in failed", True)


async def test_an_error_that_is_allowed_is_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    error = NotFound("nothing")
    with pytest.raises(NotFound) as raised:
        await call(raises(error), context([]), "the plug-in", allowed=(NotFound,))
    assert raised.value is error
    assert caplog.records == []


async def test_a_call_that_is_cancelled_from_outside_is_cancelled() -> None:
    calling = asyncio.create_task(call(hang, replace(context([]), limits=Limits()), "the plug-in"))
    await asyncio.sleep(0)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling


async def test_a_cancelled_error_of_the_plug_in_itself_is_its_failure() -> None:
    """As when it awaits a task that its own exit cancels."""

    async def awaits_a_cancelled_task() -> int:
        task = asyncio.create_task(hang())
        asyncio.get_running_loop().call_soon(task.cancel)
        return await task

    with pytest.raises(CallFailed, match=r"^the plug-in failed$"):
        await call(awaits_a_cancelled_task, replace(context([]), limits=Limits()), "the plug-in")
