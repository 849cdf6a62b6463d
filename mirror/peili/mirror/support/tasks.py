"""Background tasks that have an owner, the delay between tries, and the notification of waiting tasks."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, NoReturn, Self, TypeVar

_T = TypeVar("_T")


class Tasks:
    """The background tasks of one owner: ``async with Tasks(log) as tasks``.

    On exit they are cancelled and awaited, also those that one of them starts meanwhile. A task that fails affects no
    other task. An owner that does not use ``async with`` calls `cancel` and `drain`.

    Args:
        log: Receives the errors of tasks that fail. Without it, the code that started a task must retrieve its error.
    """

    def __init__(self, log: logging.Logger | None = None) -> None:
        self._log = log
        self._running: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    def __len__(self) -> int:
        """Return the number of running tasks."""
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Run `work` on the running loop until it ends or the owner exits, and return its task.

        After `close`, the task is cancelled before its first step.
        """
        task = asyncio.get_running_loop().create_task(work)
        if self._is_closed:
            task.cancel()
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def drain(self, timeout: float) -> None:
        """Wait for the tasks that are running now, for up to `timeout` seconds."""
        if self._running:
            await asyncio.wait(self._running, timeout=timeout)

    def cancel(self) -> None:
        """Cancel all running tasks."""
        for task in self._running:
            task.cancel()

    def close(self) -> None:
        """Cancel all running tasks, and each one that is started later: nobody would end it."""
        self._is_closed = True
        self.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self._log is not None:
            self._log.error("a background task failed", exc_info=error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        while self._running:  # a task that is cancelled may start another one
            self.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)


def is_cancelled(error: BaseException) -> bool:
    """Return whether `error` is the CancelledError of the current task.

    If not, it is another error; or a CancelledError that a plug-in raised itself, although the task was not cancelled.
    """
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def is_own_failure(error: BaseException) -> bool:
    """Return whether code of others, such as a plug-in, has failed by itself with `error`, so that the caller goes on.

    It may raise anything: also a CancelledError although nobody has cancelled it, or a BaseExceptionGroup. False means
    that the caller must end, too: its task was cancelled, its generator is being closed, or the process ends.
    """
    if isinstance(error, Exception):
        return True
    if _ends_the_caller(error):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs, so nothing is cancelled
        return True
    return task is None or not task.cancelling()


def _ends_the_caller(error: BaseException) -> bool:
    """Return whether `error`, or one in its group, ends the process or the generator of the caller."""
    anything: Any = error
    inner: Iterable[BaseException] = anything.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)) or any(map(_ends_the_caller, inner))


async def finish(work: Coroutine[Any, Any, None], cause: BaseException | None = None) -> None:
    """Run `work` in its own task to its end, even if the current task is cancelled again and again.

    A cancelled scope of anyio does that: it cancels its task at each await, also while that cleans up. So `work` must
    end by itself in bounded time. The cancellation is raised in the end.

    Args:
        work: What has to be done before the current task may go on.
        cause: Why the current task cleans up. If it was cancelled already, `work` is not disturbed. If not, the first
            cancellation is passed on to `work`, so that it hurries.
    """
    task = asyncio.create_task(work)
    is_passed_on, cancellation = isinstance(cause, asyncio.CancelledError), None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancellation = error
            if not is_passed_on:
                is_passed_on = True
                task.cancel()
    if not task.cancelled() and (failure := task.exception()) is not None:
        raise failure
    if cancellation is not None:
        raise cancellation


class Broadcast:
    """Notifies all waiting tasks of a change. Used on one event loop.

    A waiter takes `next_change` before it reads the state. It then misses no change, whatever it awaits meanwhile::

        while True:
            changed = broadcast.next_change
            ...  # read the state
            await changed.wait()
    """

    def __init__(self) -> None:
        self.next_change = asyncio.Event()
        """Set by the next `notify`, and never cleared."""

    def notify(self) -> None:
        """Wake all tasks that wait for the next change."""
        changed, self.next_change = self.next_change, asyncio.Event()
        changed.set()


class Backoff:
    """The delay before the next try: `first` seconds, doubled after each try, up to `longest` seconds.

    Args:
        first: The first delay in seconds.
        longest: The longest delay in seconds.
        jitter: Each delay is shortened by a random part, up to this share of it, so that different hosts try at
            different times.

    Attributes:
        delay: The next delay in seconds, without the jitter.
    """

    def __init__(self, first: float, longest: float, *, jitter: float = 0.0) -> None:
        self._first = first
        self._longest = longest
        self._jitter = jitter
        self.delay = first

    async def sleep(self) -> None:
        """Wait for the current delay. The next delay is twice as long."""
        await asyncio.sleep(self.next_delay())

    async def sleep_unless(self, retry_now: asyncio.Event) -> None:
        """Wait for the current delay, or until `retry_now` is set. If it is set, the next delay is no longer."""
        delay = self.delay
        try:
            async with asyncio.timeout(self.next_delay()):
                await retry_now.wait()
        except TimeoutError:
            return
        self.delay = delay

    def next_delay(self) -> float:
        """Return the current delay in seconds. The next delay is twice as long."""
        delay, self.delay = self.delay, min(2 * self.delay, self._longest)
        return delay * random.uniform(1 - self._jitter, 1)  # noqa: S311 - spreads hosts in time, not a secret

    def reset(self) -> None:
        """Begin with the first delay again, because a try succeeded."""
        self.delay = self._first


async def keep_running(
    work: Callable[[Backoff], Awaitable[None]], backoff: Backoff, failed: Callable[[BaseException], None]
) -> NoReturn:
    """Run `work` until this is cancelled. Each time that it ends or fails, it is run again after a delay.

    Args:
        work: Gets `backoff`, and resets it when it succeeds. It may raise anything, as plug-ins do.
        backoff: The delay.
        failed: Called with each error.
    """
    while True:
        try:
            await work(backoff)
        except BaseException as error:
            if not is_own_failure(error):
                raise
            failed(error)
        await backoff.sleep()
