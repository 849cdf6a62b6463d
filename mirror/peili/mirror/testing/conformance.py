"""What all conformance kits share: promises, expectations, and the checks of what every plug-in promises.

A promise is one sentence of an interface, with a coroutine function that fails if an implementation breaks it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from peili.mirror.errors import ConfigError
from peili.mirror.plugins.interfaces import Plugin
from peili.mirror.support.deadlines import ON_OVERRUN, Deadline
from peili.mirror.support.tasks import is_own_failure

DEFAULT_TIMEOUT = 30.0
"""The default of `within`: the seconds in which each promise must be kept, all waits included."""
Promises = Sequence[tuple[str, Callable[..., Coroutine[Any, Any, None]]]]
"""Sentences with the coroutine functions that check them."""

READY = "ready returns true or false, and is cheap"
CAN_BE_CANCELLED = "entering and exiting can be cancelled, and repeated"
SECOND_ENTRY = "a second entry at the same time raises RuntimeError, or both are served"
ACCEPTS_OPTIONS = "from_config accepts right options, without an event loop"
REFUSES_OPTIONS = "from_config raises ConfigError with the name of an unknown option"


class ConformanceError(AssertionError):
    """An implementation breaks a promise of its interface.

    The message has the promise and what was wrong.

    Attributes:
        promise: The sentence that states the promise.
    """

    def __init__(self, promise: str, found: str) -> None:
        self.promise = promise
        super().__init__(f"{promise}: {found}")


class BrokenPromise(Exception):
    """What a check has found to be wrong. `check_promise` adds the promise."""


async def check_promise(promise: str, check: Awaitable[None], within: float = DEFAULT_TIMEOUT) -> None:
    """Run `check`. Raises ConformanceError if it fails in any way, or takes longer than `within` seconds."""
    overrun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def report(task: asyncio.Task[Any]) -> None:
        if task is checking and not overrun.done():
            overrun.set_result(None)

    token = ON_OVERRUN.set(report)
    checking = asyncio.create_task(_check_promise(promise, check, within))  # its own: it may ignore a cancellation
    ON_OVERRUN.reset(token)
    try:
        await asyncio.wait({checking, overrun}, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        checking.cancel()
        await asyncio.wait({checking}, timeout=within)
        raise
    if not checking.done():
        raise ConformanceError(promise, f"not so within {within:g} s, and it ignores that it was cancelled")
    if checking.cancelled():
        raise ConformanceError(promise, "the task that called it was cancelled by it")
    checking.result()


async def _check_promise(promise: str, check: Awaitable[None], within: float) -> None:
    deadline = Deadline(within)
    try:
        async with deadline:
            await check
    except ConformanceError:
        raise
    except BrokenPromise as error:
        raise ConformanceError(promise, str(error)) from error
    except BaseException as error:
        if not is_own_failure(error):
            raise
        if deadline.expired():
            raise ConformanceError(promise, f"not so within {within:g} s") from error
        raise ConformanceError(promise, f"{error!r} was raised") from error


async def check_promises(
    promises: Promises, factory: Callable[[], AbstractAsyncContextManager[object]], within: float
) -> None:
    """Check each promise on a new subject. Raises ConformanceError for the first one that is broken.

    Args:
        promises: The promises.
        factory: Creates a subject.
        within: Seconds in which each promise must be kept.
    """
    for promise, check in promises:
        async with factory() as subject:
            await check_promise(promise, check(subject), within)


def expect(condition: object, found: str) -> None:
    """Raise BrokenPromise if `condition` is false. `found` says what was found instead."""
    if not condition:
        raise BrokenPromise(found)


def expect_type(value: object, *types: type[Any]) -> None:
    """Raise BrokenPromise unless `value` is an instance of one of `types`, whatever the annotations say."""
    expect(isinstance(value, types), f"{value!r} is no {' or '.join(each.__name__ for each in types)}")


async def expect_raises(types: type[Exception] | tuple[type[Exception], ...], call: Awaitable[object]) -> None:
    """Raise BrokenPromise unless `call` raises one of `types`."""
    names = " or ".join(each.__name__ for each in (types if isinstance(types, tuple) else (types,)))
    try:
        result = await call
    except types:
        return
    except Exception as error:
        raise BrokenPromise(f"{error!r} was raised, not {names}") from error
    raise BrokenPromise(f"{result!r} was returned, and {names} not raised")


async def expect_cancellable(call: Callable[[], Coroutine[Any, Any, object]], steps: int = 12) -> None:
    """Cancel `call` at its first await, at its second, and so on. Raises BrokenPromise if it is not cancelled."""
    for step in range(steps):
        task = asyncio.ensure_future(call())
        for _ in range(step):
            await asyncio.sleep(0)
        if task.done():
            await task
            return
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            outcome = task.exception() or task.result()
            raise BrokenPromise(f"cancelled after {step} steps of the loop, it ended with {outcome!r}")


async def expect_cheap(call: Callable[[], object]) -> None:
    """Raise BrokenPromise if 100 calls take 5 ms or more in the median. A busy machine does not change the median."""
    loop = asyncio.get_running_loop()
    times: list[float] = []
    for _ in range(100):
        started = loop.time()
        call()
        times.append(loop.time() - started)
    median = statistics.median(times)
    expect(median < 0.005, f"a call took {1000 * median:.1f} ms")


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until `condition` is true. The timeout of `check_promise` limits this."""
    while not condition():  # noqa: ASYNC110 - the object under test has no event
        await asyncio.sleep(0.01)


def fresh_bytes(size: int) -> bytes:
    """Return content that no backend has yet."""
    return os.urandom(size)


async def _check_ready(plugin: Plugin, enter: Callable[[], AbstractAsyncContextManager[object]]) -> None:
    """Check `READY` before the entry, inside and afterwards."""

    def call() -> None:
        expect_type(plugin.ready(), bool)

    await expect_cheap(call)
    async with enter():
        await expect_cheap(call)
    await expect_cheap(call)


async def _check_cancellation(plugin: Plugin, enter: Callable[[], AbstractAsyncContextManager[object]]) -> None:
    """Check `CAN_BE_CANCELLED`."""

    async def enter_and_exit() -> None:
        async with enter():
            pass

    await expect_cancellable(enter_and_exit)
    async with enter():
        await eventually(plugin.ready)


async def _check_second_entry(plugin: Plugin, enter: Callable[[], AbstractAsyncContextManager[object]]) -> None:
    """Check `SECOND_ENTRY`, as far as `ready` shows it."""
    async with enter():
        await eventually(plugin.ready)
        with suppress(RuntimeError):
            async with enter():
                pass
        expect(plugin.ready(), "after the second exit, it was no longer ready for the first user")


def plugin_promises(
    plugin_of: Callable[[Any], Plugin], enter: Callable[[Any], AbstractAsyncContextManager[object]]
) -> Promises:
    """Return the promises of every plug-in, for the kit of one interface.

    Args:
        plugin_of: Returns the plug-in of a subject.
        enter: Enters the plug-in of a subject.
    """

    async def ready(subject: Any) -> None:
        await _check_ready(plugin_of(subject), lambda: enter(subject))

    async def cancellation(subject: Any) -> None:
        await _check_cancellation(plugin_of(subject), lambda: enter(subject))

    async def second_entry(subject: Any) -> None:
        await _check_second_entry(plugin_of(subject), lambda: enter(subject))

    return ((READY, ready), (CAN_BE_CANCELLED, cancellation), (SECOND_ENTRY, second_entry))


def check_options(plugin: type[Plugin], options: Mapping[str, Any]) -> None:
    """Check that `from_config` accepts right options and refuses an unknown one by name.

    Args:
        plugin: The class of the plug-in.
        options: Options that are right.

    Raises:
        ConformanceError: A promise is broken.
    """
    try:
        with ThreadPoolExecutor(1) as thread:  # a thread has no running loop, even if this is called on one
            thread.submit(plugin.from_config, options).result()
    except Exception as error:
        raise ConformanceError(ACCEPTS_OPTIONS, f"{error!r} was raised") from error
    try:
        plugin.from_config({**options, "no-such-option": True})
    except ConfigError as error:
        if error.key == "no-such-option":
            return
        raise ConformanceError(REFUSES_OPTIONS, f"it named {error.key!r}") from error
    except Exception as error:
        raise ConformanceError(REFUSES_OPTIONS, f"{error!r} was raised") from error
    raise ConformanceError(REFUSES_OPTIONS, "it was accepted")
