"""How conformance kits check: a promise is a sentence, and a coroutine that fails when it is broken."""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from peili.mirror.support.deadlines import Deadline

IN_TIME = 30.0
"""Seconds that each promise has by default, all waiting included. Kits take another bound as `within`."""


class ConformanceError(AssertionError):
    """An implementation breaks a promise of its interface. The message is `promise`, and how it is broken."""

    def __init__(self, promise: str, how: str) -> None:
        self.promise = promise
        super().__init__(f"{promise}: {how}")


class Broken(Exception):
    """What a check found to be wrong, before it is known which promise that was."""


def expect(holds: object, found: str) -> None:
    """Where it does not hold, the promise is broken; `found` says what was seen instead."""
    if not holds:
        raise Broken(found)


def expect_type(value: object, *kinds: type[Any]) -> None:
    """`value` has to be one of these; type checkers believe a stranger's annotations, the kits don't."""
    expect(isinstance(value, kinds), f"{value!r} is no {' or '.join(kind.__name__ for kind in kinds)}")


async def keep(promise: str, check: Awaitable[None], within: float = IN_TIME) -> None:
    """Run `check`. Raises ConformanceError when it fails, in whatever way, or takes longer than `within` seconds."""
    deadline = Deadline(within)
    try:
        async with deadline:
            await check
    except ConformanceError:
        raise
    except Broken as error:
        raise ConformanceError(promise, str(error)) from error
    except Exception as error:
        if deadline.expired():
            raise ConformanceError(promise, f"that was not so within {within:g} s") from error
        raise ConformanceError(promise, f"{error!r} was raised") from error


async def expect_raises(kinds: type[Exception] | tuple[type[Exception], ...], call: Awaitable[object]) -> None:
    """`call` has to raise one of `kinds`."""
    names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    try:
        result = await call
    except kinds:
        return
    except Exception as error:
        raise Broken(f"{error!r} was raised, not {names}") from error
    raise Broken(f"{result!r} was returned, and {names} not raised")


async def expect_cancellable(call: Callable[[], Coroutine[Any, Any, object]], steps: int = 12) -> None:
    """Cancel `call` at its first await, at its second, and so on; it has to let the cancellation through."""
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
            raise Broken(f"cancelled after {step} steps of the loop, it ended with {outcome!r}")


async def eventually(condition: Callable[[], object]) -> None:
    """Wait for `condition`; bounded by `keep`."""
    while not condition():  # noqa: ASYNC110 - of strangers' objects, which tell nobody when they change
        await asyncio.sleep(0.01)


async def expect_cheap(call: Callable[[], object]) -> None:
    """`call` may be made often: it takes no time to speak of, but where others have the machine."""
    loop = asyncio.get_running_loop()
    times: list[float] = []
    for _ in range(100):
        began = loop.time()
        call()
        times.append(loop.time() - began)
    usual = statistics.median(times)
    expect(usual < 0.005, f"a call took {1000 * usual:.1f} ms")


def fresh_bytes(size: int) -> bytes:
    """Content that no backend has yet."""
    return os.urandom(size)


Promises = Sequence[tuple[str, Callable[..., Coroutine[Any, Any, None]]]]
"""Sentences with the coroutine functions that check them."""
