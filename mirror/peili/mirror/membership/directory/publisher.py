"""Reports the keys of this host to their homes: first all of them, then changes, and heartbeats in between."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable
from enum import Enum, auto
from itertools import islice

from peili.mirror.limits import Limits
from peili.mirror.membership.directory.homes import HomeSet, slot_of
from peili.mirror.oci.references import Key
from peili.mirror.peer_api.directory import MAX_BATCH, Holding, Holdings
from peili.mirror.peer_api.messages import MAX_KEY_LENGTH
from peili.mirror.plugins.content import Have, StoreEvent, Synced
from peili.mirror.support.tasks import Backoff, Tasks

_GATHER_TIME = 0.05
"""Seconds between two messages to a home after a burst. Changes that come meanwhile are gathered into one message."""
_BURST = 10
"""How many messages may follow each other at once after a quiet time: as many as a pull of a small image causes."""
_GROWTH_INTERVAL = 0.5
"""Seconds between two messages about content that arrives, if nothing is urgent."""
_MAX_REQUESTS = 8
"""How many messages are sent at the same time."""


class Reply(Enum):
    """The outcome of a message to a home."""

    ACCEPTED = auto()
    OUT_OF_SEQUENCE = auto()
    """The home lacks earlier messages, so it needs everything again."""
    FAILED = auto()


class Publisher:
    """Sends what this host has to the homes of each key. For use on one loop.

    Each home gets one message at a time. A change is sent at once, because lookups rely on what homes know. Changes
    that come while a message is under way are gathered, and after `_BURST` messages also those that come within
    `_GATHER_TIME`. A message that failed is repeated after a growing delay. Nothing is sent until everything in the
    store was advertised once. Until then, no home knows this host.

    Args:
        limits: The limits.
        tasks: Owns the tasks that send.
        send: Sends a message to the home with this id.
        interval: Returns the seconds between two messages to a home.
        identity: The id of this host, which may be a home, too.
        is_awaited: Returns whether other hosts may wait for the content of a key while it arrives here. Its first bytes
            are sent at once, and its growth about twice a second. Other content that begins to arrive waits for half a
            second, and its growth for the next message: what a host reads from others, its leases tell.
        upstream_rate: Returns the rate for `Holdings.upstream_rate`.
        doubted: Returns the key for `Holdings.doubted`.
    """

    def __init__(
        self,
        limits: Limits,
        tasks: Tasks,
        send: Callable[[str, Holdings], Awaitable[Reply]],
        interval: Callable[[], float],
        *,
        identity: str = "",
        is_awaited: Callable[[str], bool] = lambda _: False,
        upstream_rate: Callable[[], float | None] = lambda: None,
        doubted: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._limits = limits
        self._tasks = tasks
        self._send = send
        self._interval = interval
        self._identity = identity
        self._is_awaited = is_awaited
        self._upstream_rate = upstream_rate
        self._doubted = doubted
        self._slots = asyncio.Semaphore(_MAX_REQUESTS)
        self._by_slot: dict[int, dict[str, Have]] = {}
        self._homes = HomeSet(frozenset())
        self._links: dict[str, _Link] = {}
        self._farewells: dict[str, asyncio.Task[None]] = {}  # to hosts that are no homes any more
        self._has_started = False

    def advertise(self, have: Iterable[StoreEvent]) -> None:
        """Record that this host has these keys. With `Synced`, everything that the store has was advertised."""
        for event in have:
            if isinstance(event, Have) and len(key := _text(event.key)) <= MAX_KEY_LENGTH:
                self._set(key, event)
            elif isinstance(event, Synced) and not self._has_started:
                self._has_started = True
                self._update_links(HomeSet(frozenset()))

    def withdraw(self, keys: Collection[Key]) -> None:
        """Record that this host no longer has these keys. Unknown keys are ignored."""
        for key in keys:
            self._set(_text(key), None)

    def set_homes(self, homes: HomeSet) -> None:
        """Divide the keys among these homes from now on. Only the slots that moved are sent again."""
        before, self._homes = self._homes, homes
        if self._has_started:
            self._update_links(before)

    def send_now(self, home: str) -> None:
        """Send the next message to `home` now: it may have lost the earlier ones."""
        if (link := self._links.get(home)) is not None:
            link.wake.set()
            link.retry_now.set()

    def _set(self, key: str, have: Have | None) -> None:
        slot = slot_of(key)
        keys = self._by_slot.setdefault(slot, {})
        before = keys.get(key)
        if before == have:
            return
        if have is None:
            del keys[key]
        else:
            keys[key] = have
        for home in self._homes.homes_of(slot):
            if (link := self._links.get(home)) is not None:
                link.pending[key] = have
                if have is None or have.complete or (before is not None and before.complete):
                    link.wake.set()
                elif before is None or not before.available:  # the first bytes are urgent for who waits for them
                    link.wake_later(0 if self._is_awaited(key) else _GROWTH_INTERVAL)
                elif self._is_awaited(key):
                    link.wake_later(_GROWTH_INTERVAL)

    def _update_links(self, before: HomeSet) -> None:
        homes = self._homes
        for home in self._links.keys() - homes.ids:
            link = self._links.pop(home)
            link.task.cancel()
            if link.was_accepted and homes.ids and home != self._identity:  # else it is gone, or needs no message
                self._farewells[home] = farewell = self._tasks.start(self._leave(home))
                farewell.add_done_callback(lambda done, home=home: self._forget_farewell(home, done))  # type: ignore[misc]  # bound early
        new = homes.ids - self._links.keys()
        for slot, keys in self._by_slot.items():
            old, now = before.homes_of(slot), homes.homes_of(slot)
            for home in self._links.keys() & {*old, *now}:
                if (home in old) != (home in now):
                    self._links[home].pending.update(keys if home in now else dict.fromkeys(keys))
        for link in self._links.values():
            link.is_synced = False
            link.wake.set()
        for home in new:
            if home in self._farewells:  # it must not arrive after the new session has begun
                self._farewells.pop(home).cancel()
            link = self._links[home] = _Link(home)
            link.begin(self._keys_of(home))
            link.task = self._tasks.start(self._run(link))

    async def _leave(self, home: str) -> None:
        """Tell a host that is no home any more: it is not told of changes now, so it must not say what this host lacks.

        A new session lets it forget the keys. If the message fails, it forgets them after a few intervals.
        """
        async with self._slots:
            homes = tuple(self._homes.ids)
            await self._send(home, Holdings(secrets.token_hex(8), 0, self._interval(), homes, is_synced=False))

    def _forget_farewell(self, home: str, farewell: asyncio.Task[None]) -> None:
        if self._farewells.get(home) is farewell:
            del self._farewells[home]

    def _keys_of(self, home: str) -> dict[str, Have]:
        slots = self._by_slot.items()
        return {key: each for slot, keys in slots if home in self._homes.homes_of(slot) for key, each in keys.items()}

    async def _run(self, link: _Link) -> None:
        backoff = Backoff(self._limits.backoff_min, self._limits.backoff_max, jitter=0.25)
        while True:
            try:
                async with asyncio.timeout(self._interval() * random.uniform(0.75, 1)):  # noqa: S311 - no secret
                    await link.wake.wait()
                    await asyncio.sleep(link.pause())
            except TimeoutError:
                pass
            async with self._slots:
                link.wake.clear()
                link.retry_now.clear()
                link.note_sent()
                is_accepted = link.was_accepted = await self._send_next(link)
            if is_accepted:
                backoff.reset()
            else:
                await backoff.sleep_unless(link.retry_now)
            if not is_accepted or link.pending or not link.is_synced:
                link.wake.set()

    async def _send_next(self, link: _Link) -> bool:
        """Send the next message to a home. Returns False if the next try has to wait."""
        homes = self._homes
        items = [*islice(link.pending.items(), MAX_BATCH)]
        message = Holdings(
            session=link.session,
            sequence=link.sequence,
            interval=self._interval(),
            homes=None if link.homes is homes else tuple(homes.ids),
            is_synced=link.is_synced or len(items) == len(link.pending),
            have=tuple(_holding(key, have) for key, have in items if have is not None),
            gone=tuple(key for key, have in items if have is None),
            upstream_rate=self._upstream_rate(),
            doubted=self._doubted(),
        )
        match await self._send(link.home, message):
            case Reply.ACCEPTED:
                link.sequence += 1
                link.homes = homes
                link.is_synced = message.is_synced and homes is self._homes
                for key, have in items:
                    if key in link.pending and link.pending[key] is have:
                        del link.pending[key]
                return True
            case Reply.OUT_OF_SEQUENCE:
                was_first = link.sequence == 0
                link.begin(self._keys_of(link.home))
                return not was_first
            case Reply.FAILED:
                return False


class _Link:
    """The session with one home.

    Attributes:
        home: The id of the home.
        session: The name of the session.
        sequence: The number of the next message.
        pending: What it has not received yet: the state of keys, None for a key that is gone.
        homes: The homes in the last message that it accepted.
        is_synced: Whether it knows everything that it should know, except the newest changes.
        wake: Set when there is something to send.
        retry_now: Set when the next try should not wait, although the last one failed.
        was_accepted: Whether the home has accepted the last message.
        task: Sends the messages.
    """

    task: asyncio.Task[None]

    def __init__(self, home: str) -> None:
        self.home = home
        self.wake = asyncio.Event()
        self.retry_now = asyncio.Event()
        self.was_accepted = False
        self._quiet_at = 0.0  # when the burst of messages so far is over, on the loop's clock
        self._waking: asyncio.TimerHandle | None = None
        self.begin({})

    def begin(self, keys: dict[str, Have]) -> None:
        """Begin a new session, which sends all `keys`."""
        self.session = secrets.token_hex(8)
        self.sequence = 0
        self.pending: dict[str, Have | None] = {**keys}
        self.homes: HomeSet | None = None
        self.is_synced = False
        self.wake.set()

    def note_sent(self) -> None:
        """Note that a message is sent now."""
        self._quiet_at = max(self._quiet_at, asyncio.get_running_loop().time()) + _GATHER_TIME

    def pause(self) -> float:
        """Return for how many seconds changes are gathered before the next message."""
        return max(0.0, self._quiet_at - asyncio.get_running_loop().time() - (_BURST - 1) * _GATHER_TIME)

    def wake_later(self, seconds: float) -> None:
        """Send something in `seconds`, or earlier if another call of this said so."""
        loop = asyncio.get_running_loop()
        due, waking = loop.time() + seconds, self._waking
        if waking is not None and loop.time() < waking.when():
            if waking.when() <= due:
                return
            waking.cancel()
        self._waking = loop.call_at(due, self.wake.set)


def _text(key: Key) -> str:
    """Return a key as text. A digest is a string already, and copies of thousands would take memory."""
    return key if isinstance(key, str) else str(key)


def _holding(key: str, have: Have) -> Holding:
    return Holding(key, have.size, None if have.complete else have.available or 0)
