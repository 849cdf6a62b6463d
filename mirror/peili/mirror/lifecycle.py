"""Runs the plug-ins of a mirror while the mirror is entered, and advertises what its store has.

Each plug-in is entered and exited in its own task. So different tasks may enter and exit the mirror, and a plug-in that
fails can be entered again while the mirror and the host agent continue.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import replace
from typing import Any

from peili.mirror.advertiser import Advertiser
from peili.mirror.peer_api.peers import Peer, UnreachablePeer
from peili.mirror.plugins.checks import check, plain
from peili.mirror.plugins.interfaces import Context, Plugin
from peili.mirror.relay.relay import Relay
from peili.mirror.support.tasks import Backoff, Tasks, is_own_failure
from peili.mirror.tls.from_files import refreshing
from peili.mirror.tls.peer_tls import PeerTLS


class Lifecycle:
    """One run of a mirror, from entering it to exiting it. Used on the loop that it is constructed on.

    `start` and `stop` are called once each; the other methods are called in between.

    Args:
        context: Each plug-in gets it with its own logger.
        plugins: The plug-ins that the doors need.
        extensions: Other plug-ins. They are entered after `plugins`.
        relay: Started and stopped with the mirror.
        peer_tls: Refreshed while the mirror runs.
        background: Runs in a task while the mirror runs. It must end when it is cancelled.

    Attributes:
        is_withdrawn: Whether `withdraw` was called, and not `resume` since.
        loop: As above.
    """

    def __init__(
        self,
        context: Context,
        plugins: Collection[Plugin],
        extensions: Collection[Plugin],
        relay: Relay,
        peer_tls: PeerTLS | None,
        *,
        background: Callable[[Context], Coroutine[Any, Any, None]],
    ) -> None:
        self._context = context
        self._background = background
        self._tasks = Tasks(context.log)
        self._plugins = plugins
        self._extensions = tuple(extensions)
        self._relay = relay
        self._peer_tls = peer_tls
        self._supervisors: dict[int, Supervisor] = {}  # by the plug-in's id(): a plug-in may not be hashable
        self._advertiser: Advertiser | None = None
        self._logged: set[int] = set()  # plug-ins whose failure to report their state was logged
        self._drain_lock = asyncio.Lock()  # held by `withdraw` and `resume`
        self.is_withdrawn = False
        self._is_stopped = False
        self._stack = AsyncExitStack()
        self.loop = asyncio.get_running_loop()

    def is_ready(self, plugin: Plugin) -> bool:
        """Return whether `plugin` is entered and reports that it can do its work now."""
        supervisor = self._supervisors.get(id(plugin))
        try:
            return supervisor is not None and supervisor.is_entered and plain(plugin.ready(), _method(plugin, "ready"))
        except BaseException as error:
            if not is_own_failure(error):
                raise
            self._log_once(plugin, "whether it is ready", error)
            return False

    def peers(self) -> Collection[Peer]:
        """Return the peers that the router knows."""
        router = self._context.router
        try:
            return tuple(plain(router.peers(), _method(router, "peers")))
        except BaseException as error:
            if not is_own_failure(error):
                raise
            self._log_once(router, "its peers", error)
            return ()

    def unreachable(self) -> Collection[UnreachablePeer]:
        """Return the peers that the router knows, but that do not answer."""
        router = self._context.router
        try:
            return tuple(plain(router.unreachable(), _method(router, "unreachable")))
        except BaseException as error:
            if not is_own_failure(error):
                raise
            self._log_once(router, "its unreachable peers", error)
            return ()

    @property
    def advertised(self) -> int:
        """The number of keys that are advertised to the router."""
        return self._advertiser.advertised if self._advertiser is not None else 0

    def _log_once(self, plugin: Plugin, what: str, error: BaseException) -> None:
        """Log, once for each plug-in, that it failed to report its state."""
        if id(plugin) not in self._logged:
            self._logged.add(id(plugin))
            self._context.log.error("%s failed to report %s", type(plugin).__name__, what, exc_info=error)

    async def start(self) -> None:
        """Enter the plug-ins. Return when each was tried once, or after ``limits.start_timeout`` seconds."""
        await self._stack.enter_async_context(refreshing(self._peer_tls, self._context.log))
        await self._stack.enter_async_context(self._context.client)
        await self._stack.enter_async_context(self._context.upstream)
        self._tasks.start(self._background(self._context))
        self._relay.start()
        await self._enter()

    async def _enter(self) -> None:
        """Enter the plug-ins that are not entered, and announce what the store has."""
        deadline = time.monotonic() + self._context.limits.start_timeout
        supervisors = self._supervise(self._plugins)
        self._advertiser = Advertiser(self._context)
        in_time = await _wait_tried(supervisors, deadline)
        if self._is_stopped or self.is_withdrawn:
            return
        in_time &= await _wait_tried(self._supervise(self._extensions), deadline)
        if not in_time:
            self._context.limited("start_timeout")

    def _supervise(self, plugins: Iterable[Plugin]) -> list[Supervisor]:
        """Start a supervisor for each of `plugins`. An object that is, for example, both store and router gets one."""
        new: list[Supervisor] = []
        for plugin in plugins:
            if id(plugin) not in self._supervisors:
                own = replace(self._context, log=self._context.log.getChild(type(plugin).__name__))
                on_reentry = self._advertise_again if plugin is self._context.router else None
                self._supervisors[id(plugin)] = supervisor = Supervisor(plugin, own, on_reentry)
                new.append(supervisor)
        return new

    def _advertise_again(self) -> None:
        if self._advertiser is not None:
            self._advertiser.restart()

    async def _exit(self, plugin: Plugin) -> None:
        if supervisor := self._supervisors.get(id(plugin)):
            try:
                await supervisor.stop()
            finally:  # also if this is cancelled
                self._supervisors.pop(id(plugin), None)

    async def withdraw(self) -> None:
        """Exit the extensions and withdraw what was advertised, until `resume`. Idempotent."""
        async with self._drain_lock:
            await self._withdraw()

    async def _withdraw(self) -> None:
        self.is_withdrawn = True
        try:
            for extension in reversed(self._extensions):
                await self._exit(extension)
        finally:  # also if this is cancelled
            if (advertiser := self._advertiser) is not None:
                await advertiser.stop()
                self._advertiser = None

    async def resume(self) -> None:
        """Undo `withdraw`. Do nothing if there was none.

        The router is exited and entered again, because it may have published the previous address of our peer door.
        Takes as long as exiting the router and `start` take.
        """
        async with self._drain_lock:
            if not self.is_withdrawn:
                return
            await self._withdraw()  # completes an earlier one that was cancelled
            await self._exit(self._context.router)
            if self._is_stopped:
                return
            self.is_withdrawn = False
            try:
                await self._enter()
            except BaseException:
                self.is_withdrawn = True
                raise

    async def stop(self) -> None:
        """Exit everything, even if this task is cancelled meanwhile."""
        self._is_stopped = True
        self._relay.stop()
        # In this order: withdraw, background, relay, plug-ins (last entered first), client. So leases are released
        # before the router is exited.
        async with self._stack as stack:
            for supervisor in self._supervisors.values():
                stack.push_async_callback(supervisor.stop)
            stack.push_async_callback(self._relay.aclose)
            stack.push_async_callback(self._tasks.drain, self._context.limits.stop_timeout)
            self._tasks.cancel()
            await self._withdraw()  # without `_drain_lock`: it must not wait for a `withdraw` or `resume` in progress


class Supervisor:
    """Keeps one plug-in entered, from its construction until `stop`.

    A plug-in that fails is entered again after a growing delay.

    Args:
        plugin: The plug-in.
        context: The context with its logger.
        on_reentry: Called each time that the plug-in was entered again.

    Attributes:
        is_entered: Whether the plug-in is entered now.
        tried: Set when the first try to enter the plug-in has succeeded or failed.
    """

    def __init__(self, plugin: Plugin, context: Context, on_reentry: Callable[[], None] | None) -> None:
        self._plugin = plugin
        self._context = context
        self._on_reentry = on_reentry
        self._stopping = asyncio.Event()
        self.tried = asyncio.Event()
        self.is_entered = False
        self._task = asyncio.create_task(self._run(), name=f"peili {type(plugin).__name__}")

    async def stop(self) -> None:
        """Exit the plug-in. Cancel it if that takes longer than ``limits.stop_timeout``. Idempotent, never raises."""
        timeout = self._context.limits.stop_timeout
        self._stopping.set()
        try:
            await asyncio.wait({self._task}, timeout=timeout)
        finally:  # also if this is cancelled
            if not self._task.done():
                self._context.limited("stop_timeout")
                self._context.log.warning("%s does not stop; cancelled", type(self._plugin).__name__)
                self._task.cancel()
                await asyncio.wait({self._task}, timeout=timeout)

    async def _run(self) -> None:
        limits, name = self._context.limits, type(self._plugin).__name__
        backoff = Backoff(limits.backoff_min, limits.backoff_max)
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                await self._enter()
            except BaseException as error:
                is_own = is_own_failure(error)
                if is_own or isinstance(error, BaseExceptionGroup):
                    self._context.log.exception("%s %s", name, self._failure(backoff.delay))
                if isinstance(error, BaseExceptionGroup) and not is_own:
                    raise asyncio.CancelledError from error  # the plug-in was cancelled, and failed to exit
                if not is_own:
                    if not self._stopping.is_set():
                        self._context.log.warning("%s: its task was cancelled; it is not entered again", name)
                    raise
            finally:
                self.is_entered = False
                self.tried.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(backoff.next_delay()):
                    await self._stopping.wait()
            if time.monotonic() - began > 2 * limits.backoff_max:
                backoff.reset()

    async def _enter(self) -> None:
        method = _method(self._plugin, "run")
        manager = plain(self._plugin.run(self._context), method, "one with @asynccontextmanager and one yield")
        check(manager, AbstractAsyncContextManager, f"{method} (is @asynccontextmanager missing?) returned")
        async with manager:
            self.is_entered = True
            if self.tried.is_set() and self._on_reentry is not None:
                self._on_reentry()
            self.tried.set()
            await self._stopping.wait()

    def _failure(self, delay: float) -> str:
        return "failed to exit" if self._stopping.is_set() else f"failed; entered again in {delay:g} s"


def _method(plugin: Plugin, name: str) -> str:
    return f"{type(plugin).__name__}.{name}"


async def _wait_tried(supervisors: Iterable[Supervisor], deadline: float) -> bool:
    """Wait until each has tried once to enter its plug-in. Return whether all did before the deadline."""
    tried = [asyncio.create_task(each.tried.wait()) for each in supervisors]
    if not tried:
        return True
    try:
        _, late = await asyncio.wait(tried, timeout=max(0, deadline - time.monotonic()))
    finally:
        for task in tried:
            task.cancel()
        await asyncio.gather(*tried, return_exceptions=True)
    return not late
