"""Waiting for conditions, and following a store's `watch`, in tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from peili.mirror.testing import Watched, watching

__all__ = ["WAIT", "Watched", "until", "watching"]

WAIT = 60.0
"""Seconds after which what a test waits for counts as never happening."""


async def until(condition: Callable[[], bool], *, within: float = WAIT) -> None:
    """Wait until `condition` holds of something that tells nobody when it changes; TimeoutError when it does not."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.02)
