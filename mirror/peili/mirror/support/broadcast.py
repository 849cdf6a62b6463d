"""Wakes every task that waits for a change."""

from __future__ import annotations

import asyncio


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
