"""Waiting for a condition in async tests. Tests without an event loop use `tests.lab.processes.wait_for`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

WAIT = 60.0
"""Seconds after which a wait fails. Even on a busy machine, only something broken takes longer."""


async def until(condition: Callable[[], object], *, within: float = WAIT) -> None:
    """Poll `condition` until what it returns is true. Use this only if there is no event to wait for.

    Raises:
        TimeoutError: It was not true within `within` seconds.
    """
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.005)
